"""What a tracking server sees of a training step: few requests, one run in its place, all that made the model."""

import importlib
import json
import multiprocessing
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from importlib import metadata as distributions
from pathlib import Path
from typing import Any

import dagster as dg
import mlflow
import mlflow.sklearn as sklearn_flavor
import numpy as np
import pandas as pd
import pytest
from dagster._core.definitions.reconstruct import ReconstructableRepository  # no public way to run one job of a file
from mlflow.models import infer_signature
from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from pydantic import Field
from sklearn.linear_model import LogisticRegression

from dagster_mlops.core.code_state import CodeState
from dagster_mlops.mlflow import MlflowResource, close_orphan_runs_sensor, training_asset
from dagster_mlops.mlflow.runs import lookup as runs
from dagster_mlops.mlflow.training import run_facts as training_facts
from dagster_mlops.mlflow.training import system_metrics
from dagster_mlops.mlflow.training.config_params import config_params
from dagster_mlops.provenance import Dataset
from tests.support import known_warnings
from tests.support.http_servers import serving
from tests.support.mlflow_processes import PRELOADED
from tests.support.mlflow_servers import Proxy, mlflow_server
from tests.support.modes import readable_by_others

pytestmark = [pytest.mark.usefixtures("warm_tools"), *known_warnings.MLFLOW, *known_warnings.DAGSTER_BETA]

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
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
        input_example=pd.DataFrame({"hour": [0.0, 1.0]}),
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
    jobs=[
        dg.define_asset_job(
            "both",
            executor_def=dg.multiprocess_executor.configured(
                {"max_concurrent": 2, "start_method": {"forkserver": {"preload_modules": PRELOADED}}}
            ),
        )
    ],
    resources={"mlflow": MlflowResource(tracking_uri=dg.EnvVar("TEST_MLFLOW_URI"), experiment="e")},
)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory, empty_database, free_port):
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, folder / "server.db")
    target = free_port()
    with (
        mlflow_server(folder, target, f"sqlite:///{folder / 'server.db'}"),
        serving(Proxy(free_port(), target)) as proxy,
    ):
        yield proxy


@pytest.fixture(autouse=True)
def _code(monkeypatch):
    # Somebody who edits this checkout while tests run would change the state of the code.
    monkeypatch.setattr(training_facts, "code_state", lambda path, **_: CodeState("c0ffee", "main", "f00", b"+dirty\n"))


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


def behind(proxy: Proxy, experiment: str) -> MlflowResource:
    """A server that shares its processors with other tests."""
    return MlflowResource(tracking_uri=proxy.url, experiment=experiment, connect_timeout=60)


def metadata_of(result, name: str) -> dict[str, Any]:
    [event] = [e for e in result.get_asset_materialization_events() if e.asset_key == dg.AssetKey(name)]
    return {key: value.value for key, value in event.materialization.metadata.items()}


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

    resource = behind(proxy, "requests")
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
    assert (
        tracking
        == [
            [
                "GET experiments/get-by-name",  # in place of set_experiment, and says whether the server is there
                "GET /version",  # once in a Dagster run; no database is asked
                "POST runs/search",  # ours: which run does this step continue, which ones are orphans
                "POST runs/create",  # in place of start_run
                "POST runs/log-batch",  # in place of log_params
                "POST runs/log-inputs",  # in place of log_input
            ],
            [
                "POST logged-models/search",  # ours: exactly one model
                "POST runs/log-batch",  # ours: the hash of code/, and when the training ended
                *[call for call in after if " logged-models/m-" in call][:2],  # ours: the hash of the model's files
                "GET runs/get",  # ours: the metrics for Dagster
                "POST model-versions/create",  # this and the next two in place of register_model, which takes six
                next(call for call in after if call.startswith("GET logged-models/m-")),
                next(call for call in after if call.startswith("PATCH logged-models/m-")),
                "POST runs/update",  # in place of end_run
            ],
        ]
    )
    stored = [call for call in (*asked, *after) if "mlflow-artifacts" in call]
    assert len([call for call in stored if call.startswith("PUT")]) == 6  # code/: six files
    # The MLmodel, where figures may be, and for their hash a list of the model's files and each of them.
    assert len([call for call in stored if call.startswith("GET")]) == 12


@pytest.mark.thorough
def test_a_database_that_we_create_is_its_owners(empty_database):
    assert readable_by_others(empty_database) == []


@pytest.mark.thorough
def test_a_request_imports_no_other_tool(proxy: Proxy, cold_python):
    pytest.importorskip("feast")
    code = f"""
import sys
from dagster_mlops.mlflow import MlflowResource
client = MlflowResource(tracking_uri={proxy.url!r}).client()
assert "feast" not in sys.modules
import feast.infra.data_sources.mlflow.auth as auth
from mlflow.tracking.request_header.registry import resolve_request_headers
auth._current_mlflow_token.set("from-feast")
assert "from-feast" in resolve_request_headers()["Authorization"]
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_server_that_is_busy_or_restarted_is_asked_again(instance, proxy: Proxy, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")  # MLflow's own waits are minutes together

    def body() -> None:
        proxy.busy, proxy.gone = 3, 4

    proxy.busy = 3
    busy = trainer("busy", body)
    assert materialize(instance, behind(proxy, "busy"), training_set, busy, run_config=config_of("busy")).success
    assert (proxy.busy, proxy.gone) == (0, 0)


def test_how_patient_requests_are_is_left_to_mlflow_and_its_variables(instance, resource, monkeypatch):
    names = ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    seen: list[tuple[str | None, ...]] = []
    model = trainer("model", lambda: seen.append(tuple(os.environ.get(name) for name in names)))
    materialize(instance, resource, training_set, model)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")
    materialize(instance, resource, training_set, model)
    hasty = MlflowResource(tracking_uri=resource.uri, experiment="e", request_timeout=9, request_retries=2)
    materialize(instance, hasty, training_set, model)
    assert seen == [(None, None), ("600", None), ("9", "2")]


@pytest.mark.filterwarnings("ignore:.* holds a credential as text:UserWarning")
def test_no_error_of_a_step_shows_the_password_of_the_server(instance, proxy: Proxy, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setattr(proxy, "password", "ml:hunter2")
    uri = proxy.url.replace("//", "//ml:hunter2@")
    resource = MlflowResource(tracking_uri=uri, experiment="secret", connect_timeout=60, request_retries=0)
    seen: list[str | None] = []

    def body() -> None:
        seen.append(mlflow.get_tracking_uri())
        proxy.gone = 1
        mlflow.log_metric("auc", 1.0)

    result = materialize(instance, resource, training_set, trainer("model", body))
    assert seen == [proxy.url] and "MLFLOW_TRACKING_PASSWORD" not in os.environ
    gone = MlflowResource(tracking_uri="http://ml:hunter2@127.0.0.1:1", experiment="secret", connect_timeout=1)
    for failed in (result, materialize(instance, gone, training_set, first)):
        [failure] = failed.get_step_failure_events()
        assert failure.step_failure_data.error is not None
        told = failure.step_failure_data.error.to_string()
        assert "failed with exception" in told and "hunter2" not in told
    client = resource.client()
    [run] = client.search_runs([resource.experiment_id(client)])
    assert run.info.status == "FAILED" and "hunter2" not in str(run.to_dictionary())


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


@pytest.mark.thorough
@pytest.mark.usefixtures("own_forkserver")
def test_steps_of_two_processes_have_one_parent_which_ends_as_they_did(instance, resource, client):
    world = ReconstructableRepository.for_file(__file__, "WORLD", str(Path(__file__).parents[2]))
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


def test_a_dataset_that_another_process_logs_at_once_is_logged_all_the_same(client, monkeypatch):
    run = client.create_run(client.create_experiment("raced")).info.run_id
    answers, log = [mlflow.MlflowException("UNIQUE constraint failed: datasets.name")], client.log_inputs
    monkeypatch.setattr(client, "log_inputs", lambda *given: log(*given) if not answers else _raise(answers.pop()))
    runs.log_inputs(client, run, [runs.dataset_input("raw", "9f00", "dvc", {}, "training")])
    assert [each.dataset.name for each in client.get_run(run).inputs.dataset_inputs] == ["raw"]


def _raise(error: Exception) -> None:
    raise error


def test_a_parent_that_somebody_has_deleted_stops_nobody(instance, resource, client):
    def delete_parent() -> None:
        [parent] = [run for run in runs_of(client).values() if runs.TARGET not in run.data.tags]
        client.delete_run(parent.info.run_id)

    result = materialize(instance, resource, training_set, trainer("first", delete_parent), second)
    assert result.success and runs_of(client)["second"].info.status == "FINISHED"
    delete_parent()  # the one that the second step has made
    context = dg.build_sensor_context(instance=instance, resources={"mlflow": resource})
    close_orphan_runs_sensor()(context)
    assert context.cursor, "the sensor goes on"


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


def test_an_asset_without_partitions_has_none_in_a_run_of_one(instance, resource, client):
    @dg.asset(partitions_def=DAYS)
    def rows() -> None: ...

    @training_asset(registered_model_name="model", deps=[rows])
    def model() -> None:
        fit_and_log()

    assert materialize(instance, resource, rows, model, partition_key="2024-01-02").success
    run = runs_of(client)["model"]
    assert run.data.tags[runs.TARGET] == "model:" and "dagster_mlops.dagster_partition" not in run.data.tags


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


# The machine


def test_what_a_training_takes_is_shown(instance, resource, client, monkeypatch):
    for name, seconds in (("_SAMPLE_S", 0.02), ("_POINT_S", 0.1), ("_SEND_S", 0.3)):
        monkeypatch.setattr(system_metrics, name, seconds)

    def body() -> None:
        block = bytearray(300_000_000)
        deadline = time.process_time() + 0.8
        while time.process_time() < deadline:
            block[0] ^= 1

    result = materialize(instance, resource, training_set, trainer("model", body))
    seen = metadata_of(result, "model")
    assert seen["mlflow/peak_memory_mb"] > 300 and 0 < seen["mlflow/cpu_percent"] <= 100
    assert seen["mlflow/training_seconds"] >= 0.8
    run = runs_of(client)["model"]
    history = client.get_metric_history(run.info.run_id, "system/cpu_utilization_percentage")
    assert len(history) >= 3 and [point.step for point in history] == list(range(len(history)))
    assert not [name for name in seen if name.startswith("mlflow/metric/system")]
    quiet = trainer("quiet", system_metrics=False)
    assert "mlflow/cpu_percent" not in metadata_of(materialize(instance, resource, training_set, quiet), "quiet")
    assert not [name for name in runs_of(client)["quiet"].data.metrics if name.startswith("system/")]


class GpuOf(BaseMetricsMonitor):
    """One GPU that is always the same."""

    def collect_metrics(self) -> None:
        self._metrics["gpu_0_memory_usage_megabytes"].append(7.0)

    def aggregate_metrics(self) -> dict[str, float]:  # pyright: ignore[reportIncompatibleMethodOverride] (MLflow says None)
        return {}


def test_the_gpu_of_a_short_training_is_shown_and_a_broken_driver_stops_nothing(instance, resource, monkeypatch):
    def broken() -> list[Any]:
        raise AttributeError("'NoneType' object has no attribute 'bytes_recv'")

    monkeypatch.setattr(system_metrics, "_SAMPLE_S", 0.01)
    monkeypatch.setattr(system_metrics, "_monitors", lambda: [GpuOf()])
    short = trainer("short", lambda: time.sleep(0.1))
    assert (
        metadata_of(materialize(instance, resource, training_set, short), "short")["mlflow/gpu_0_peak_memory_mb"] == 7
    )
    monkeypatch.setattr(system_metrics, "_monitors", broken)
    assert materialize(instance, resource, training_set, first).success


def test_pictures_that_cannot_be_read_cost_no_training(instance, resource, monkeypatch):
    def refuse(*_) -> None:
        raise PermissionError("s3:ListBucket")

    monkeypatch.setattr("mlflow.store.artifact.local_artifact_repo.LocalArtifactRepository.list_artifacts", refuse)
    assert materialize(instance, resource, training_set, first).success


def test_licences_of_what_is_installed_are_kept(instance, resource, client):
    assert materialize(instance, resource, training_set, first).success
    file = client.download_artifacts(runs_of(client)["first"].info.run_id, "code/licences.json")
    licences = json.loads(Path(file).read_text())
    assert licences["mlflow"].startswith("Apache") and licences["scikit-learn"].startswith("BSD")
    assert set(licences) == {found.name for found in distributions.distributions()}


FAKE_TORCH = """
seeds, switches = [], [False]
manual_seed = seeds.append
def are_deterministic_algorithms_enabled(): return switches[-1]
use_deterministic_algorithms = switches.append
def get_float32_matmul_precision(): return "highest"
class cudnn: deterministic = False; benchmark = True; is_available = staticmethod(lambda: False)
class backends: cudnn = cudnn
class version: cuda = None
__version__ = "0"
"""


def test_pytorch_is_seeded_when_the_training_imports_it(instance, resource, client, tmp_path, monkeypatch):
    """A module in PyTorch's place, for the order of events: PyTorch itself can be imported once per process only."""
    (tmp_path / "torch.py").write_text(FAKE_TORCH)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    inside: list[Any] = []

    def body() -> None:
        torch = importlib.import_module("torch")
        inside.append((list(torch.seeds), torch.switches[-1], torch.cudnn.deterministic, os.environ.get(CUBLAS)))

    strict = trainer("model", body, seed=7, deterministic=True)
    assert materialize(instance, resource, training_set, strict).success
    torch: Any = sys.modules.pop("torch")
    assert inside == [([7], True, True, ":4096:8")]
    assert torch.switches[-1] is False and torch.cudnn.benchmark and CUBLAS not in os.environ, "all is as it was"
    run = runs_of(client)["model"]
    system = json.loads(Path(client.download_artifacts(run.info.run_id, "code/system.json")).read_text())
    assert system["torch"]["deterministic_algorithms"] and system["environment"][CUBLAS] == ":4096:8"
    assert run.data.tags["dagster_mlops.deterministic"] == "true"


def test_the_same_seed_gives_the_same_numbers(instance, resource):
    drawn: list[tuple[float, float]] = []
    model = trainer("model", lambda: drawn.append((random.random(), float(np.random.random()))), seed=2**40 + 1)
    for _ in range(2):
        assert materialize(instance, resource, training_set, model).success
    assert drawn[0] == drawn[1]


# Before the training starts


def refused(instance, resource) -> str:
    called: list[int] = []
    result = materialize(instance, resource, training_set, trainer("early", lambda: called.append(1)))
    assert not result.success and not called, "the training has not started"
    [failure] = [event for event in result.get_step_failure_events() if event.step_key == "early"]
    assert failure.step_failure_data.error is not None
    return failure.step_failure_data.error.to_string()


@pytest.mark.parametrize(
    ("version", "advice"),
    [("0584bdc529eb", "mlflow db upgrade sqlite:"), ("ffffffffffff", "Install the newer version")],
)
def test_tables_of_another_version_are_named_with_the_fix(instance, resource, tmp_path, version, advice):
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("update alembic_version set version_num = ?", (version,))
    database.close()
    # A process that has used the database does not look again.
    (tmp_path / "mlflow.db").rename(tmp_path / f"{version}.db")
    moved = MlflowResource(tracking_uri=f"sqlite:///{tmp_path / version}.db", experiment="e")
    assert advice in refused(instance, moved)


def test_a_deleted_experiment_is_named_with_the_fix(instance, resource, client):
    client.delete_experiment(client.create_experiment("e"))
    assert "mlflow experiments restore -x 1" in refused(instance, resource)


def test_an_artifact_store_that_cannot_be_written_is_named_before_the_training(instance, resource, client, tmp_path):
    (tmp_path / "full").touch()  # below a file even root cannot write
    client.create_experiment("e", artifact_location=(tmp_path / "full" / "artifacts").as_uri())
    text = refused(instance, resource)
    assert "/full/artifacts" in text and "cannot be written" in text and "another artifact_location" in text
    assert runs_of(client)["early"].info.status == "FAILED"


@pytest.mark.filterwarnings("ignore:.* holds a credential as text:UserWarning")
def test_a_registry_that_is_not_there_is_named_before_the_training(instance, resource):
    wrong = MlflowResource(tracking_uri=resource.uri, experiment="e", registry_uri="http://ml:hunter2@127.0.0.1:1")
    text = refused(instance, wrong)
    assert "The model registry at http://***@127.0.0.1:1 cannot be used" in text and "Correct registry_uri" in text


def test_a_server_that_wants_a_password_says_where_to_put_it(instance, proxy: Proxy, monkeypatch):
    resource = behind(proxy, "secret")
    monkeypatch.setattr(proxy, "password", "ml:hunter2")
    assert "set MLFLOW_TRACKING_USERNAME" in refused(instance, resource)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ml")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    assert materialize(instance, resource, training_set, trainer("let_in")).success


def test_a_server_of_an_older_generation_is_refused(instance, proxy: Proxy, monkeypatch):
    monkeypatch.setattr(proxy, "version", "2.22.1")
    text = refused(instance, behind(proxy, "old"))
    assert "has version 2.22.1" in text and "mlflow db upgrade" in text
