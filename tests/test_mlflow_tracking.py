"""What a tracking server sees of a training step: few requests, one run in its place, all that made the model."""

import json
import multiprocessing
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import dagster as dg
import mlflow
import mlflow.sklearn as sklearn_flavor
import pandas as pd
import pytest
from dagster._core.definitions.reconstruct import ReconstructableRepository  # no public way to run one job of a file
from mlflow.models import infer_signature
from pydantic import Field
from sklearn.linear_model import LogisticRegression

from dagster_mlops.code_state import CodeState
from dagster_mlops.mlflow import MlflowResource, close_orphan_runs_sensor, runs, training_asset
from dagster_mlops.mlflow import facts as training_facts
from dagster_mlops.mlflow.config_params import config_params
from dagster_mlops.provenance import Dataset
from tests.mlflow_servers import Proxy, mlflow_server, proxy_to

pytestmark = [
    # MLflow's own queries, under SQLAlchemy 2.1.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning"),
    # MLflow's own type hints, when mlflow.pyfunc is imported.
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    # Dagster's own backfills.
    pytest.mark.filterwarnings("ignore::dagster.BetaWarning"),
]

DAYS = dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-02-01")
ROWS = pd.DataFrame({"hour": [0.0, 1.0, 22.0, 23.0] * 5, "late": [0, 0, 1, 1] * 5})


class Settings(dg.Config):
    rate: float = 0.1
    layers: list[int] = Field(default=[64, 32])
    deep: dict[str, Any] = Field(default={"er": {"still": None}})
    token: str = ""
    fail: bool = False


@dg.asset
def training_set() -> dg.MaterializeResult:
    dataset = Dataset(path="training/set.parquet", md5="d" * 32, repo="/data", rev="abc")
    return dg.MaterializeResult(metadata=dataset.to_metadata())


def fit_and_log() -> None:
    classifier = LogisticRegression().fit(ROWS[["hour"]], ROWS["late"])
    sklearn_flavor.log_model(
        classifier,
        name="model",
        signature=infer_signature(ROWS[["hour"]], ROWS[["late"]]),
        input_example=ROWS[["hour"]].head(2),
        pip_requirements=["scikit-learn"],
    )


def trainer(name: str, body=lambda: None, **options) -> dg.AssetsDefinition:
    @training_asset(registered_model_name=name, name=name, deps=[training_set], **options)
    def train(context: dg.AssetExecutionContext, config: Settings) -> None:
        body()
        if config.fail:
            raise ConnectionError("gone")
        fit_and_log()

    return train


first, second = trainer("first"), trainer("second")
WORLD = dg.Definitions(
    assets=[training_set, first, second],
    jobs=[dg.define_asset_job("both", executor_def=dg.multiprocess_executor.configured({"max_concurrent": 2}))],
    resources={"mlflow": MlflowResource(tracking_uri=dg.EnvVar("TEST_MLFLOW_URI"), experiment="e")},
)


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowResource(tracking_uri=f"sqlite:///{file}").client()
    return file


@pytest.fixture(scope="module")
def proxy(tmp_path_factory, empty_database, free_port):
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, folder / "server.db")
    target = free_port()
    with mlflow_server(folder, target, f"sqlite:///{folder / 'server.db'}"), proxy_to(free_port(), target) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def _code(monkeypatch):
    # Somebody who edits this checkout while tests run would change the state of the code.
    monkeypatch.setattr(training_facts, "code_state", lambda path: CodeState("c0ffee", "main", "f00", "+dirty\n"))


@pytest.fixture
def resource(tmp_path, empty_database, monkeypatch) -> MlflowResource:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.setenv("TEST_MLFLOW_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return MlflowResource(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="e")


@pytest.fixture
def client(resource) -> mlflow.MlflowClient:
    return resource.client()


@pytest.fixture
def instance(tmp_path):
    (tmp_path / "home").mkdir()
    with dg.instance_for_test(temp_dir=str(tmp_path / "home")) as instance:
        yield instance


def materialize(instance, resource, *assets, **options):
    return dg.materialize(
        list(assets), instance=instance, resources={"mlflow": resource}, raise_on_error=False, **options
    )


def config_of(name: str, **config) -> dict[str, Any]:
    return {"ops": {name: {"config": config}}}


def runs_of(client, name: str = "e") -> dict[str, Any]:
    """The runs of an experiment by their name."""
    experiment = client.get_experiment_by_name(name)
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


# Requests


def test_a_step_asks_the_server_no_more_than_this(instance, proxy: Proxy):
    asked: list[str] = []

    def body() -> None:
        asked.extend(proxy.seen)
        proxy.seen.clear()

    def end(*_) -> None:
        proxy.seen.append("END")

    resource = MlflowResource(tracking_uri=proxy.url, experiment="requests")
    model = trainer("asked", lambda: (body(), None))
    assert materialize(instance, resource, training_set, model, run_config=config_of("asked")).success
    proxy.seen.clear()
    asked.clear()
    with pytest.MonkeyPatch.context() as patch:
        log_model = sklearn_flavor.log_model
        patch.setattr(sklearn_flavor, "log_model", lambda *a, **o: (log_model(*a, **o), end()))
        assert materialize(instance, resource, training_set, model, run_config=config_of("asked")).success
    after = proxy.seen[proxy.seen.index("END") + 1 :]
    tracking = [[call for call in calls if "mlflow-artifacts" not in call] for calls in (asked, after)]
    assert tracking == [
        [
            "GET experiments/get-by-name",  # in place of set_experiment, and says whether the server is there
            "POST runs/search",  # ours: which run does this step continue, which ones are orphans
            "POST runs/create",  # in place of start_run
            "POST runs/log-batch",  # in place of log_params
            "POST runs/log-inputs",  # in place of log_input
        ],
        [
            "POST logged-models/search",  # ours: exactly one model
            "GET runs/get",  # ours: the metrics for Dagster
            "POST model-versions/create",  # this and the next two in place of register_model, which takes six
            next(call for call in after if call.startswith("GET logged-models/m-")),
            next(call for call in after if call.startswith("PATCH logged-models/m-")),
            "POST runs/update",  # in place of end_run
        ],
    ]
    stored = [call for call in (*asked, *after) if "mlflow-artifacts" in call]
    assert len([call for call in stored if call.startswith("PUT")]) == 4  # code/: step, system, packages, diff
    assert len([call for call in stored if call.startswith("GET")]) == 3  # the MLmodel, and where figures may be


def test_a_busy_server_is_asked_again(instance, proxy: Proxy):
    resource = MlflowResource(tracking_uri=proxy.url, experiment="busy")
    busy = trainer("busy", lambda: setattr(proxy, "busy", 2))
    assert materialize(instance, resource, training_set, busy, run_config=config_of("busy")).success
    assert proxy.busy == 0


# Runs of several assets, threads and processes


def test_what_one_dagster_run_trains_is_held_together(instance, resource, client):
    result = materialize(instance, resource, training_set, first, second)
    parent = runs_of(client).pop(f"assets {result.run_id[:8]}")
    children = [runs_of(client)[name] for name in ("first", "second")]
    assert {run.data.tags[runs.PARENT] for run in children} == {parent.info.run_id}
    assert [run.info.status for run in (parent, *children)] == ["FINISHED"] * 3
    assert client.search_model_versions("name='first'")
    alone = materialize(instance, resource, training_set, first)
    assert alone.success and len(runs_of(client)) == 3, "one asset needs no parent"


def test_steps_of_two_processes_have_one_parent_which_ends_as_they_did(instance, resource, client):
    world = ReconstructableRepository.for_file(__file__, "WORLD", str(Path(__file__).parents[1]))
    job = world.get_reconstructable_job("both")
    config = config_of("second", fail=True)
    with dg.execute_job(job, instance, run_config=config) as failed:
        assert not failed.success
    [parent] = [run for name, run in runs_of(client).items() if name.startswith("both")]
    assert {name: run.info.status for name, run in runs_of(client).items()} == {
        parent.info.run_name: "FAILED",
        "first": "FINISHED",
        "second": "FAILED",
    }
    again = dg.ReexecutionOptions.from_failure(failed.run_id, instance)
    with dg.execute_job(job, instance, run_config=config_of("second"), reexecution_options=again) as done:
        assert done.success
    children = client.search_runs([parent.info.experiment_id], f"tags.`{runs.PARENT}` = '{parent.info.run_id}'")
    assert len(children) == 3 and client.get_run(parent.info.run_id).info.status == "FINISHED"
    # Killed, a run worker leaves what the sensor finds.
    client.update_run(parent.info.run_id, status="RUNNING")
    close_orphan_runs_sensor()(dg.build_sensor_context(instance=instance, resources={"mlflow": resource}))
    assert client.get_run(parent.info.run_id).info.status == "FINISHED"


def _log_from_elsewhere(name: str) -> None:
    mlflow.log_metric(name, 1.0)


def test_threads_and_processes_log_to_the_run_of_their_step(instance, resource, client):
    def body() -> None:
        def nested() -> None:
            with mlflow.start_run(nested=True, run_name="nested"):
                mlflow.log_metric("inner", 1.0)
            mlflow.start_run(run_name="left open")

        threads = [threading.Thread(target=_log_from_elsewhere, args=(f"thread{i}",)) for i in range(4)]
        threads.append(threading.Thread(target=nested))
        fork = multiprocessing.get_context("fork").Process(target=_log_from_elsewhere, args=("fork",))
        spawn = multiprocessing.get_context("spawn").Process(target=_log_from_elsewhere, args=("spawn",))
        for worker in (*threads, fork, spawn):
            worker.start()
            worker.join()

    result = materialize(instance, resource, training_set, trainer("model", body), run_config=config_of("model"))
    assert result.success
    found = runs_of(client)
    run = found.pop("model")
    assert set(run.data.metrics) >= {*(f"thread{i}" for i in range(4)), "fork"}
    # A process that starts anew begins a run: MLflow has no way to hand one down that leaves nested runs as they are.
    assert len(found) == 3 and {"nested", "left open"} < set(found)
    for child in found.values():
        assert child.data.tags[runs.PARENT] == run.info.run_id and child.info.status == "FINISHED"
        assert child.data.tags[runs.DAGSTER_RUN] == result.run_id
    assert "MLFLOW_RUN_CONTEXT" not in os.environ


def test_one_run_on_many_partitions_says_which(instance, resource, client):
    model = trainer("daily", partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run())
    ends = {"dagster/asset_partition_range_start": "2024-01-02", "dagster/asset_partition_range_end": "2024-01-05"}
    result = materialize(instance, resource, training_set, model, tags=ends)
    assert result.success
    [(name, run)] = runs_of(client).items()
    assert name == "daily 2024-01-02...2024-01-05" == f"daily {run.data.tags['dagster_mlops.dagster_partition']}"
    made = [str(e.partition) for e in result.get_asset_materialization_events() if e.asset_key == model.key]
    assert sorted(made) == [f"2024-01-0{day}" for day in range(2, 6)]
    step = json.loads(Path(client.download_artifacts(run.info.run_id, "code/step.json")).read_text())
    assert step["partition_range"] == ["2024-01-02", "2024-01-05"] and step["partition"] == ""


# Links, config


def test_a_run_leads_back_to_dagster(instance, resource, client, monkeypatch):
    known = MlflowResource(tracking_uri=resource.uri, experiment="e", dagster_url="https://dagster.example.com/")
    result = materialize(instance, known, training_set, first)
    run = runs_of(client)["first"]
    url = f"https://dagster.example.com/runs/{result.run_id}"
    assert run.data.tags[runs.DAGSTER_URL] == url and url in run.data.tags[runs.NOTE]
    monkeypatch.setenv("DAGSTER_URL", "http://dagster")
    assert resource.dagster_run_url("1") == "http://dagster/runs/1"


def test_config_is_in_the_params_without_secrets(instance, resource, client, monkeypatch):
    monkeypatch.setenv("TRAINING_TOKEN", "hunter2")

    def own() -> None:
        mlflow.log_params({"rate": 0.7, "token": "mine"})

    settings = {"token": {"env": "TRAINING_TOKEN"}, "layers": [8]}
    result = materialize(
        instance, resource, training_set, trainer("model", own), run_config=config_of("model", **settings)
    )
    assert result.success
    run = runs_of(client)["model"]
    assert run.data.params == {
        "config.rate": "0.1",
        "config.layers": "[8]",
        "config.deep.er.still": "None",
        "config.token": "env:TRAINING_TOKEN",
        "config.fail": "False",
        "rate": "0.7",
        "token": "mine",
    }
    step = Path(client.download_artifacts(run.info.run_id, "code/step.json")).read_text()
    assert "hunter2" not in step and json.loads(step)["config"]["token"] == {"env": "TRAINING_TOKEN"}


def test_large_configs_fit(instance, resource, client):
    deep = {f"weight {i:03}": i for i in range(250)}
    config = config_of("model", deep={**deep, "text": "x" * 10_000, "odd=name": 1})
    assert materialize(instance, resource, training_set, trainer("model"), run_config=config).success
    params = runs_of(client)["model"].data.params
    assert len(params) == 256 and params["config.deep.weight 249"] == "249" and params["config.deep.odd_name"] == "1"
    assert len(params["config.deep.text"]) == 6000 and "10000 characters, sha256" in params["config.deep.text"]
    assert config_params({}, "") == {} and config_params({"a=b": 1, "a b": 2, "a?b": 3}, "").keys() >= {"config.a_b"}
