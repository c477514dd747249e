"""Registered models behind MLflow's own scoring server, rolled out as a bento is."""

import dataclasses
import json
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from dagster_mlops.core.model_digest import model_digest
from dagster_mlops.core.model_judgement import judge_model
from dagster_mlops.errors import DeploymentError
from dagster_mlops.lineage import trace
from dagster_mlops.mlflow_serving import MlflowServingResource, scoring_package_asset
from dagster_mlops.mlflow_serving.scoring_app import scoring_app
from dagster_mlops.mlflow_serving.tool import MlflowServingTool
from dagster_mlops.provenance import Accessible, Deleted, Deployment, Faulty, Inaccessible, ModelVersion, Package, Ref
from dagster_mlops.serving import PredictionLog, ServerSettings, deployment_asset, deployment_health_check, status, stop
from dagster_mlops.serving.local.processes import free_port
from dagster_mlops.serving.runtime import records_of
from dagster_mlops.testing import check_packager
from tests.support import known_warnings
from tests.support.modes import readable_by_others
from tests.support.worker_secrets import SECRETS, environments

pytestmark = [
    pytest.mark.usefixtures("warm_tools"),
    *known_warnings.DEPRECATED,
    *known_warnings.MLFLOW_HINTS,
    *known_warnings.DAGSTER_BETA,
]


def frame(rows: int, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    return pd.DataFrame({"hour": random.integers(0, 24, rows).astype(float), "wind": random.normal(10, 3, rows)})


class World:
    """A registry with two versions of ``delay``, and the assets that lead from one of them to a deployment."""

    def __init__(self, root: Path) -> None:
        self.uri, self.state_dir, self.port = f"sqlite:///{root}/mlflow.db", root / "serving", free_port()
        self.resource = MlflowServingResource(home=str(root / "packages"), tracking_uri=self.uri, allow_pickle=True)
        (root / "dagster").mkdir()
        self.instance = dg.DagsterInstance.local_temp(str(root / "dagster"))
        self.url, self.champion = f"http://127.0.0.1:{self.port}", "1"
        self.runs = [self._train(root, seed) for seed in (1, 2)]

    def _train(self, root: Path, seed: int) -> str:
        import mlflow
        from mlflow.models import infer_signature
        from mlflow.sklearn import log_model
        from sklearn.linear_model import LogisticRegression

        features = frame(200, seed)
        model = LogisticRegression().fit(features, features.wind > 10)
        mlflow.set_tracking_uri(self.uri)
        if mlflow.get_experiment_by_name("delay") is None:
            mlflow.create_experiment("delay", artifact_location=f"file://{root}/artifacts")
        experiment = mlflow.get_experiment_by_name("delay")
        assert experiment is not None
        with mlflow.start_run(experiment_id=experiment.experiment_id) as run:
            info = log_model(
                model, name="model", signature=infer_signature(features, model.predict_proba(features)),
                input_example=features.head(2), pip_requirements=["scikit-learn", "pandas"],
                serialization_format="cloudpickle", pyfunc_predict_fn="predict_proba",
            )  # fmt: skip
        mlflow.register_model(info.model_uri, "delay")
        mlflow.set_tracking_uri(None)  # pyright: ignore[reportArgumentType] - an address would stay in the environment
        return run.info.run_id

    def assets(self) -> list[Any]:
        @dg.asset
        def champion() -> dg.MaterializeResult:
            run = self.runs[int(self.champion) - 1]
            record = ModelVersion(name="delay", version=self.champion, run_id=run, tracking_uri=self.uri)
            return dg.MaterializeResult(metadata=record.to_metadata())

        @dg.asset
        def golden() -> pd.DataFrame:
            return frame(60, seed=3)

        deployment = deployment_asset(
            package="scoring_package", golden_set=golden, state_dir=self.state_dir, port=self.port, replicas=1,
            resource_key="mlflow_serving",
        )  # fmt: skip
        check = deployment_health_check(asset=deployment, resource_key="mlflow_serving", calls=5)
        return [champion, golden, scoring_package_asset(promoted=champion), deployment, check]

    def materialize(self) -> dg.ExecuteInProcessResult:
        """The champion, its package and its deployment, with the health check."""
        return dg.materialize(self.assets(), resources={"mlflow_serving": self.resource}, instance=self.instance)

    def record(self, asset: str, record_type: Any) -> Any:
        event: Any = self.instance.get_latest_materialization_event(dg.AssetKey(asset))
        return record_type.from_metadata(event.asset_materialization.metadata)

    def ask(self, rows: pd.DataFrame, **headers: str) -> httpx.Response:
        body = {"dataframe_records": records_of(rows)}
        return httpx.post(f"{self.url}/invocations", json=body, headers=headers, timeout=10)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        world = World(tmp_path_factory.mktemp("mlflow_serving"))
        try:
            assert world.materialize().success
            yield world
        finally:
            stop(world.state_dir)


def test_a_version_is_served_as_the_registry_holds_it_and_every_prediction_is_kept(world):
    import mlflow

    record = world.record("deployment", Deployment)
    assert (record.tool, record.golden_rows) == ("mlflow_serving", 60) and record.golden_max_difference <= 1e-9
    [only] = status(world.state_dir)
    assert only["healthy"] and only["model_version"] == "1"
    rows = frame(3, seed=9)
    answer = world.ask(rows, **{"X-Request-ID": "many"})
    assert answer.headers["x-request-id"] == "many" and answer.headers["x-deployment"] == record.id
    folder = world.resource.home_dir / world.record("scoring_package", Package).tag.replace(":", "/") / "model"
    expected = mlflow.pyfunc.load_model(str(folder)).predict(rows)
    np.testing.assert_allclose(answer.json()["predictions"], expected, rtol=0, atol=1e-12)
    logged = PredictionLog.read(record.prediction_log).set_index("request_id")
    assert list(logged.index) == ["many/0", "many/1", "many/2"]  # and no golden row
    pd.testing.assert_frame_equal(logged[["hour", "wind"]].reset_index(drop=True), rows)
    csv = httpx.post(f"{world.url}/invocations", content="hour,wind\n1,2\n", headers={"content-type": "text/csv"})
    assert csv.status_code == 415


def test_a_client_decides_neither_the_names_nor_the_ids_nor_the_size_of_what_is_logged(world):
    log = world.record("deployment", Deployment).prediction_log
    more = frame(1).assign(dagster_asset="forged", **{"x" * 5000: 2.0})
    trace = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
    assert world.ask(more, **{"X-Request-ID": "narrow"}, **trace).status_code == 200
    logged = PredictionLog.find(log, "narrow")
    assert logged and set(logged["inputs"]) == {"hour", "wind"}
    assert logged["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736" and 0 < logged["seconds"] < 60
    before = len(PredictionLog.read(log))
    for request_id in ("a b", "x" * 201, "\x01", "caf\xe9"):
        refused = httpx.post(
            f"{world.url}/invocations", json={"dataframe_records": records_of(frame(1))},
            headers=[(b"X-Request-ID", request_id.encode("latin-1"))],
        )  # fmt: skip
        assert refused.status_code == 400, request_id
    assert world.ask(frame(0)).status_code == 400
    assert len(PredictionLog.read(log)) == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_neither_the_server_nor_envoy_get_the_workers_secrets(world):
    by_role = environments(world.state_dir)
    assert {role.partition(":")[0] for role in by_role} == {"server", "envoy"}
    leaks = {
        name for group in by_role.values() for found in group for name in SECRETS if SECRETS[name].encode() in found
    }
    assert leaks == set()


def test_what_a_deployment_writes_is_its_owners(world):
    world.ask(frame(1), **{"X-Request-ID": "personal"})
    assert readable_by_others(world.state_dir, world.resource.home_dir) == []
    record = world.record("deployment", Deployment)
    logs = [Path(record.state_dir, "logs"), *Path(record.prediction_log).iterdir()]
    assert len(logs) > 1 and readable_by_others(*logs) == []


def test_a_prediction_is_traced_to_the_model_version(world):
    world.ask(frame(1), **{"X-Request-ID": "traced"})
    deployment, package = world.record("deployment", Deployment), world.record("scoring_package", Package)
    chain = trace(Ref("bentoml", "prediction", "traced", at=deployment.prediction_log), instance=world.instance)
    refs = {link.ref for link in chain.walk()}
    assert {deployment.ref, package.ref, Ref("mlflow", "model_version", "delay/1", at=world.uri)} <= refs


@pytest.mark.thorough  # BentoML's tests kill it under traffic, too, and both deploy in the same way
def test_a_switch_under_traffic_loses_no_request(world):
    world.champion = "2"
    codes: list[int] = []
    over = threading.Event()

    def traffic() -> None:
        while not over.is_set():
            codes.append(world.ask(frame(1)).status_code)
            time.sleep(0.02)

    thread = threading.Thread(target=traffic)
    thread.start()
    try:
        result = world.materialize()
    finally:
        over.set()
        thread.join()
    assert result.success and set(codes) == {200} and len(codes) > 3
    [only] = status(world.state_dir)
    assert only["healthy"] and only["model_version"] == "2"
    [health] = result.get_asset_check_evaluations()
    assert health.passed


def test_workers_and_the_timeout_are_those_of_uvicorn_and_mlflow_and_threads_are_refused(world):
    package = world.record("scoring_package", Package)
    server = world.resource.tuned_server(package, 8000, ServerSettings(workers=2, timeout=17))
    assert server.command[server.command.index("--workers") + 1] == "2"
    assert server.environment["MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT"] == "17"
    with pytest.raises(DeploymentError, match=r"MlflowServingResource does not take threads= .* use replicas="):
        world.resource.tuned_server(package, 8000, ServerSettings(threads=3))


def test_an_unchanged_package_is_not_built_again(world):
    before = world.record("scoring_package", Package)
    result = world.materialize()
    [package] = [e for e in result.get_asset_materialization_events() if e.asset_key == dg.AssetKey("scoring_package")]
    assert package.materialization.metadata["mlflow_serving/built"].value is False
    assert world.record("scoring_package", Package) == before


def test_the_contract_of_a_packager_holds(world):
    check_packager(world.resource, world.record("scoring_package", Package), frame(60, seed=3))


def test_lineage_says_deleted_faulty_and_inaccessible(world, tmp_path):
    package, resolve = world.record("scoring_package", Package), MlflowServingTool().resolve
    assert isinstance(resolve(package.ref), Accessible)
    assert isinstance(resolve(Ref("mlflow_serving", "package", "delay:gone", at=package.home)), Deleted)
    assert isinstance(resolve(Ref("mlflow_serving", "package", "delay:gone", at=str(tmp_path / "none"))), Inaccessible)
    assert isinstance(resolve(Ref("mlflow_serving", "poem", "x", at=str(tmp_path))), Faulty)
    (tmp_path / "delay" / "torn").mkdir(parents=True)
    assert isinstance(resolve(Ref("mlflow_serving", "package", "delay:torn", at=str(tmp_path))), Faulty)


def test_a_pickle_is_packed_and_answers_golden_rows_only_where_the_resource_allows_it(world, tmp_path):
    careful = MlflowServingResource(home=str(tmp_path), tracking_uri=world.uri)
    with pytest.raises(DeploymentError, match=r"delay/\d is stored as cloudpickle.*set allow_pickle on the resource"):
        dg.materialize(world.assets()[:3], resources={"mlflow_serving": careful})
    with pytest.raises(DeploymentError, match=r"is stored as cloudpickle"):
        careful.golden(world.record("scoring_package", Package), frame(20, seed=3), 10)


def test_a_server_loads_no_pickle_unless_its_package_was_built_with_one(world, tmp_path, monkeypatch):
    """A graph of PyTorch is data by its files, and only MLflow looks for pickles inside as it loads it."""
    package = world.record("scoring_package", Package)
    folder = shutil.copytree(Path(package.home) / package.tag.replace(":", "/"), tmp_path / "package")
    facts = json.loads((folder / "dagster_mlops.json").read_text())
    assert facts["environment"] == {}, "pickles are allowed"
    booster = tmp_path / "booster"
    booster.mkdir()
    flavor = {"data": "model.ubj", "model_class": "xgboost.core.Booster"}
    (booster / "MLmodel").write_text(json.dumps({"flavors": {"xgboost": flavor}}))
    facts["environment"] = judge_model("delay/1", booster, expected=(), allow_pickle=False).environment
    assert judge_model("delay/1", booster, expected=(), allow_pickle=True).environment == {}
    (folder / "dagster_mlops.json").write_text(json.dumps(facts))
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")  # and whatever it is set to, put back
    with pytest.raises(MlflowException, match="model is disallowed"):
        scoring_app(folder)


def test_a_model_that_someone_changed_is_neither_served_nor_taken_for_the_registrys(world, tmp_path):
    package = world.record("scoring_package", Package)
    folder = shutil.copytree(Path(package.home) / package.tag.replace(":", "/"), tmp_path / "package")
    facts = json.loads((folder / "dagster_mlops.json").read_text())
    facts["record"]["sha256"] = model_digest(folder / "model")
    (folder / "dagster_mlops.json").write_text(json.dumps(facts))
    described = folder / "model" / "MLmodel"
    described.write_text(described.read_text().replace("predict_fn: predict_proba", "predict_fn: predict"))
    with pytest.raises(RuntimeError, match=r"someone changed them\..* Nothing is served"):
        scoring_app(folder)
    registered = dataclasses.replace(package, sha256="0" * 64)
    with pytest.raises(DeploymentError, match=r"0000.* is on record: someone changed them"):
        world.resource.golden(registered, frame(20, seed=3), 10)
