"""What a run keeps of its code, config and environment is what runs again, whatever the place and the settings."""

import enum
import json
from pathlib import Path

import dagster as dg
import pytest

from dagster_mlops.code_state import CodeState
from dagster_mlops.lineage.recipe import find_recipe
from dagster_mlops.mlflow import MlflowResource, training_asset
from dagster_mlops.mlflow.capture import log_capture
from dagster_mlops.mlflow.models import log_model

pytestmark = [
    # MLflow's own queries, under SQLAlchemy 2.1.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning"),
    # MLflow's own type hints, when mlflow.pyfunc is imported.
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]


# Config


class Loss(enum.Enum):
    SQUARED = "squared"
    HUBER = "huber"


class Source(dg.Config):
    loss: Loss = Loss.SQUARED
    losses: list[Loss]
    by_day: dict[str, Loss | None]
    url: str = "https://host/labels.csv?api_key=abc"
    other: str = "unused"
    where: str = "s3://bucket@v1"
    more: dict[str, list[str]]


@training_asset(registered_model_name="delay")
def delay(config: Source) -> None:
    import pandas as pd
    from sklearn.tree import DecisionTreeClassifier

    rows = pd.DataFrame({"hour": [1.0, 23.0]})
    log_model(DecisionTreeClassifier().fit(rows, [0, 1]), rows)


def test_the_config_can_be_given_again_but_for_its_secrets_which_are_named(tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    given = {
        "losses": ["HUBER"],
        "by_day": {"Mo": "HUBER", "Tu": None},
        "other": "postgresql://ml:s3cret@db/x",
        "more": {"a b": ["s3://x", "https://h/?sig=s3cret"]},
    }
    resources = {"mlflow": MlflowResource(tracking_uri=uri)}
    dg.materialize([delay], resources=resources, run_config={"ops": {"delay": {"config": given}}})
    recipe = find_recipe("delay/1", at=uri)
    assert recipe.step["config"] == {
        "loss": "SQUARED",
        "losses": ["HUBER"],
        "by_day": {"Mo": "HUBER", "Tu": None},
        "other": "postgresql://***@db/x",
        "where": "s3://bucket@v1",
        "more": {"a b": ["s3://x", "https://h/?sig=***"]},
    }, "the secret default is left to the code"
    lost = [(found.name, found.bucket) for found in recipe.missing if found.kind == "config"]
    assert lost == [("other", "inaccessible"), ("more.a b.1", "inaccessible")]
    again = {**recipe.step["config"], **given}
    assert dg.validate_run_config(
        dg.Definitions([delay], resources=resources).resolve_implicit_global_asset_job_def(),
        {"ops": {"delay": {"config": again}}},
    )


class Store:
    def log_artifacts(self, folder: str, path: str) -> None:
        self.files = {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def test_a_secret_in_what_is_kept_leaves_the_file_whole():
    store = Store()
    step = {"config": {"url": "https://h/x.csv?api_key=abc", "n": 1}}
    log_capture(store, code=CodeState(), lock=None, step=step, system={})  # type: ignore[arg-type]
    assert json.loads(store.files["step.json"]) == {"config": {"url": "https://h/x.csv?api_key=***", "n": 1}}
