"""Trainings of every shape are run again: backfills, models that are returned, sweeps, projects without a lock file."""

import json
from pathlib import Path

import pytest

from dagster_mlops.errors import ReproductionError
from dagster_mlops.lineage.environment import install, packages
from dagster_mlops.lineage.rerun import rerun
from dagster_mlops.lineage.verdict import Verdict
from dagster_mlops.mlflow import MlflowResource
from dagster_mlops.mlflow.licences import requirements
from tests.training_project import Project

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    # MLflow's own queries, under SQLAlchemy 2.1.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning"),
    # MLflow's own type hints, when mlflow.pyfunc is imported.
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

PIPELINE = """
import os
from pathlib import Path
import dagster as dg
import pandas as pd
from dagster_mlops.dvc import DvcResource, dvc_io_manager
from dagster_mlops.mlflow import MlflowResource, training_asset
from dagster_mlops.mlflow.io_manager import mlflow_model_io_manager
from dagster_mlops.mlflow.models import FittedModel, log_model
from dagster_mlops.mlflow.sweep import sweep_asset, sweep_trials

HOME = Path(os.environ["TEST_HOME"])
HUBS = dg.StaticPartitionsDefinition(["EWR", "JFK", "LGA"])

@dg.asset(io_manager_key="dvc_io_manager")
def rows() -> pd.DataFrame:
    hours = [float(hour) for hour in range(24)] * 6
    return pd.DataFrame({"hour": hours, "hub": HUBS.get_partition_keys() * 48, "late": [int(h > 12) for h in hours]})

def fitted(rows, **options):
    from sklearn.tree import DecisionTreeClassifier
    return DecisionTreeClassifier(random_state=0, **options).fit(rows[["hour"]], rows["late"])

@training_asset(
    registered_model_name="ranged", partitions_def=HUBS, backfill_policy=dg.BackfillPolicy.single_run(),
)
def ranged(context: dg.AssetExecutionContext, rows: pd.DataFrame) -> None:
    import mlflow
    rows = rows[rows["hub"].isin(context.partition_keys)]
    mlflow.log_metric("rows", len(rows))
    log_model(fitted(rows), rows[["hour"]])

@dg.asset(io_manager_key="models")
def returned(rows: pd.DataFrame) -> FittedModel:
    return FittedModel(fitted(rows, max_depth=1), rows[["hour"]], metrics={"depth": 1.0}, params={"max_depth": 1})

def search(trial, rows: pd.DataFrame) -> float:
    import mlflow
    with (HOME / "trials").open("a") as trials:
        trials.write(f"{trial.number}\\n")
    depth, by = trial.suggest_int("depth", 1, 3), trial.suggest_categorical("by", ["gini"])
    model = fitted(rows, max_depth=depth, criterion=by)
    mlflow.log_metric("beside", trial.params["depth"])
    log_model(model, rows[["hour"]])
    return model.score(rows[["hour"]], rows["late"]) + trial.params["depth"] / 100

OPTIONS = {"metric": "score", "direction": "maximize", "storage": f"sqlite:///{HOME}/studies.db"}
searched = sweep_asset(registered_model_name="searched", n_trials=4, n_jobs=2, name="searched", **OPTIONS)(search)
stepped = sweep_trials(name="stepped", registered_model_name="stepped", n_trials=1, **OPTIONS)(search)

@dg.definitions
def defs() -> dg.Definitions:
    return dg.Definitions(
        assets=[rows, ranged, returned, searched, *stepped.assets],
        resources={
            "dvc": DvcResource(repo=str(HOME / "data"), remote_url=str(HOME / "remote")),
            "dvc_io_manager": dvc_io_manager,
            "models": mlflow_model_io_manager,
            "mlflow": MlflowResource(tracking_uri=f"sqlite:///{HOME}/mlflow.db", experiment="delays"),
        },
    )
"""


# All in one process: each takes seconds to start.
TRAIN = """
import dagster as dg
from dagster._core.definitions.reconstruct import ReconstructableRepository  # no public way to run a job of a file

def make(*assets, **tags):
    keys = [dg.AssetKey(asset) for asset in assets]
    config = {"execution": {"config": {"in_process": {}}}}
    with dg.execute_job(job, instance, asset_selection=keys, tags=tags, run_config=config) as done:
        assert done.success

with dg.DagsterInstance.get() as instance:
    job = ReconstructableRepository.for_file("pipeline.py", "defs").get_reconstructable_job("__ASSET_JOB")
    make("rows", "returned", "searched", "stepped_study")
    make("ranged", **{"dagster/asset_partition_range_start": "EWR", "dagster/asset_partition_range_end": "JFK"})
    [trial] = instance.get_dynamic_partitions("stepped_trials")
    make("stepped_trials", **{"dagster/partition": trial})
    make("stepped")
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Everything trained once, in a repository without a lock file."""
    project = Project(tmp_path_factory.mktemp("project"), PIPELINE, lock="")
    project.python("-c", TRAIN)
    return project


def again(project: Project, name: str, folder: Path) -> Verdict:
    return rerun(project.recipe(f"{name}/1"), folder, environment="current")


def outcomes(verdict: Verdict) -> dict[str, str]:
    return {f"{finding.kind} {finding.name}": finding.outcome for finding in verdict.findings}


@pytest.mark.parametrize("name", ["ranged", "returned", "searched", "stepped"])
def test_a_training_of_this_shape_comes_out_the_same(project, name, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_HOME", str(project.home))
    studies, trials = project.home / "studies.db", project.home / "trials"
    before = studies.read_bytes(), trials.read_text()
    verdict = again(project, name, tmp_path)
    assert verdict.reproduced, verdict.different
    metrics = {"ranged": {"rows"}, "returned": {"depth"}}.get(name, {"score", "beside"})
    assert {f"metric {metric}" for metric in metrics} | {"data rows.parquet"} <= outcomes(verdict).keys()
    assert "model predictions for 5 rows" in outcomes(verdict), outcomes(verdict)
    assert before[0] == studies.read_bytes(), "no study is begun or changed"
    tried = trials.read_text().removeprefix(before[1])
    assert len(tried.split()) == (1 if name in ("searched", "stepped") else 0), "only the best trial is run again"
    client = MlflowResource(tracking_uri=project.uri).client()
    assert len(client.search_model_versions(f"name='{name}'")) == 1, "the registry is as it was"


def test_the_versions_that_were_installed_stand_in_for_a_lock_file(project, tmp_path):
    recipe = project.recipe("returned/1")
    [environment] = [ingredient for ingredient in recipe.ingredients if ingredient.kind == "environment"]
    assert environment.bucket == "accessible" and environment.name.startswith("environment.txt, Python 3")
    listed = packages(recipe.files["environment.txt"])
    assert listed == packages(requirements()) and listed["mlflow"]
    # What this machine alone has is not asked of an index.
    python = install(
        "environment.txt", b"# own==0.1 from file:///srv/own\n", python="3", folder=tmp_path / "new", code=tmp_path
    )
    assert python.is_file()
    with pytest.raises(ReproductionError, match=r"cannot be installed from environment\.txt: .*no-such-package"):
        wanted = b"no-such-package @ file:///no-such-package.whl\n"
        install("environment.txt", wanted, python="3", folder=tmp_path / "other", code=tmp_path)


def test_the_best_trial_is_kept_with_what_it_tried(project):
    kept = json.loads(project.recipe("searched/1").files["trial.json"])
    assert kept["params"]["depth"] in (1, 2, 3) and kept["params"]["by"] == "gini" and kept["number"] in range(4)
