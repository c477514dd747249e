"""Models, sweeps and evaluations where MLflow is a server that keeps the artifacts and hands them out itself."""

import concurrent.futures
import shutil
import tempfile

import dagster as dg
import mlflow
import optuna
import pandas as pd
import pytest
from mlflow.models import infer_signature
from sklearn.linear_model import LogisticRegression

from dagster_mlops.core.model_loading import DIGEST, FORMAT
from dagster_mlops.mlflow import MlflowResource, evaluation_asset, load_reference, reference_asset, training_asset
from dagster_mlops.mlflow.io_manager import mlflow_model_io_manager
from dagster_mlops.mlflow.models.log import FittedModel, log_model
from dagster_mlops.mlflow.registry.models import find_version, load_version
from dagster_mlops.mlflow.registry.versions import logged_model_id, register
from dagster_mlops.mlflow.sweep import sweep_asset
from dagster_mlops.provenance import ModelVersion, TrainingRun
from tests.support import known_warnings
from tests.support.mlflow_servers import mlflow_server

pytestmark = [pytest.mark.usefixtures("warm_tools"), *known_warnings.MLFLOW]

ROWS = pd.DataFrame({"hour": [float(n % 24) for n in range(200)], "late": [int(n % 24 > 15) for n in range(200)]})


@pytest.fixture(scope="module")
def server(tmp_path_factory, empty_database, free_port):
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, folder / "server.db")
    with mlflow_server(folder, free_port(), f"sqlite:///{folder / 'server.db'}") as url:
        yield MlflowResource(tracking_uri=url, experiment="delay", connect_timeout=60)


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """The only place for temporary files, of this process and of MLflow in it."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@dg.asset
def rows() -> pd.DataFrame:
    return ROWS


@dg.asset(io_manager_key="models")
def returned(rows: pd.DataFrame) -> FittedModel:
    model = LogisticRegression(max_iter=500).fit(rows[["hour"]], rows["late"])
    return FittedModel(model, rows[["hour"]], metrics={"auc": 1.0}, options={"pyfunc_predict_fn": "predict_proba"})


@sweep_asset(registered_model_name="swept", name="swept", metric="auc", direction="maximize", n_trials=3, n_jobs=2)
def swept(trial: optuna.Trial, rows: pd.DataFrame) -> float:
    power = trial.suggest_float("C", 0.1, 10)
    log_model(LogisticRegression(C=power, max_iter=500).fit(rows[["hour"]], rows["late"]), rows[["hour"]])
    return power


@training_asset(registered_model_name="raw")
def raw(rows: pd.DataFrame) -> None:
    model, features = LogisticRegression(max_iter=500).fit(rows[["hour"]], rows["late"]), rows[["hour"]]
    described = {"signature": infer_signature(features, model.predict(features)), "input_example": features.head(2)}
    types = ["sklearn.linear_model._logistic.LogisticRegression"]
    mlflow.sklearn.log_model(  # pyright: ignore[reportPrivateImportUsage]
        model, name="model", pip_requirements=[], serialization_format="skops", skops_trusted_types=types, **described
    )


@dg.asset(ins={"swept": dg.AssetIn(input_manager_key="models")})
def read(returned: LogisticRegression, swept: LogisticRegression) -> float:
    return swept.C


evaluation = evaluation_asset(name="evaluation", model=returned, rows=rows, label="late", resamples=50)
reference = reference_asset(name="reference", model=returned, rows=rows, label="late")


def test_everything_about_a_model_goes_through_the_server_and_nothing_is_left_on_the_machine(server, scratch, tmp_path):
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        result = dg.materialize(
            [rows, returned, swept, raw, read, evaluation, reference],
            instance=instance,
            resources={"mlflow": server, "models": mlflow_model_io_manager},
        )
    client = server.client()
    metadata = {name: result.asset_materializations_for_node(name)[0].metadata for name in ("swept", "evaluation")}
    best = metadata["swept"]["optuna/best_params"].value
    assert isinstance(best, dict) and result.output_for_node("read") == best["C"]
    record = find_version(server, "swept")
    model = client.get_logged_model(logged_model_id(client.get_model_version("swept", record.version)))
    assert (model.tags[FORMAT], len(model.tags[DIGEST])) == ("skops", 64)
    assert load_version(server, record, pyfunc=True).sha256 == model.tags[DIGEST]
    # The hash of a model that MLflow's own function logged is that of what the server holds.
    sealed = ModelVersion.from_metadata(result.asset_materializations_for_node("raw")[0].metadata)
    assert sealed and len(sealed.sha256) == 64 and load_version(server, sealed).sha256 == sealed.sha256
    assert metadata["evaluation"]["mlflow/evaluation/metric/auc"].value == 1.0
    assert load_reference("returned/1", mlflow=server).equals(result.asset_value("reference"))
    assert [file for file in scratch.rglob("*") if file.is_file()] == [], "every download was for a moment"


def test_many_steps_may_register_versions_of_one_model_at_the_same_time(server):
    client = server.client()
    experiment = server.experiment_id(client)

    def version_of(number: int) -> str:
        run = client.create_run(experiment, run_name=f"partition {number}")
        model = client.create_logged_model(experiment, name="model", source_run_id=run.info.run_id)
        record = TrainingRun(run_id=run.info.run_id, tracking_uri=server.uri)
        return register(client, "shared", model, run, record, {}, sha256="", is_retry=False).version

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        made = list(pool.map(version_of, range(12)))
    assert sorted(map(int, made)) == list(range(1, 13))
