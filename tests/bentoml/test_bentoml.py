"""From a promoted model version to a live, verified, logged deployment that survives kills."""

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import numpy as np
import pandas as pd
import psutil
import pytest
from dagster.components.testing import create_defs_folder_sandbox

from dagster_mlops import bentoml as layer
from dagster_mlops import serving
from dagster_mlops.bentoml import BentomlResource, PredictionLog, bento_asset, deployment_asset
from dagster_mlops.bentoml.tool import BentomlTool
from dagster_mlops.core.model_digest import model_digest
from dagster_mlops.core.processes import identity
from dagster_mlops.errors import DeploymentError
from dagster_mlops.provenance import (
    Accessible,
    Deleted,
    Deployment,
    Faulty,
    Inaccessible,
    ModelVersion,
    Package,
    Prediction,
    Record,
    Ref,
)
from dagster_mlops.serving import status, stop
from dagster_mlops.serving.local import supervision
from dagster_mlops.serving.local.processes import free_port, marked
from dagster_mlops.serving.local.state import load, load_all, lock, state_file
from dagster_mlops.serving.runtime import RowTooLarge, records_of
from dagster_mlops.testing import check_packager
from tests.support import known_warnings
from tests.support.certificates import certificate
from tests.support.modes import readable_by_others
from tests.support.worker_secrets import SECRETS, environments

pytestmark = [
    pytest.mark.usefixtures("warm_tools"),
    *known_warnings.DEPRECATED,
    *known_warnings.MLFLOW_HINTS,
    *known_warnings.DAGSTER_BETA,
]

COLUMNS = ["hour", "wind", "carrier"]


def frame(rows: int, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "hour": random.integers(0, 24, rows).astype(float),
            "wind": random.normal(10, 3, rows),
            "carrier": random.choice(["AA", "UA"], rows),
        }
    )


class World:
    """A registry with two versions of ``delay``, and the assets that lead from one of them to a deployment.

    `champion` promotes the version that the file ``champion`` names, as a promotion in another layer would.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state_dir = root / "serving"
        self.home = root / "bentoml"
        self.uri = f"sqlite:///{root}/mlflow.db"
        self.port = int((root / "port").read_text()) if (root / "port").exists() else free_port()
        (root / "port").write_text(str(self.port))
        self.url = f"http://127.0.0.1:{self.port}"
        self.sha256 = ""  # of the promoted model, as its record has it
        (root / "dagster").mkdir(exist_ok=True)
        self.instance = dg.DagsterInstance.local_temp(str(root / "dagster"))
        self.resource = BentomlResource(home=str(self.home), tracking_uri=self.uri, allow_pickle=True)

    def train(self, seed: int, *, signature: bool = True) -> str:
        import mlflow
        from mlflow.models import infer_signature
        from mlflow.sklearn import log_model
        from sklearn.compose import make_column_transformer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import OneHotEncoder

        features = frame(200, seed)
        late = (features.wind + np.random.default_rng(seed).normal(0, 2, 200) > 10).astype(int)
        encode = make_column_transformer((OneHotEncoder(), ["carrier"]), remainder="passthrough")
        model = make_pipeline(encode, LogisticRegression(max_iter=1000)).fit(features, late)
        with self.resource.registry():
            if mlflow.get_experiment_by_name("delay") is None:
                mlflow.create_experiment("delay", artifact_location=f"file://{self.root}/artifacts")
            experiment = mlflow.get_experiment_by_name("delay")
            assert experiment is not None
            with mlflow.start_run(experiment_id=experiment.experiment_id) as run:
                described: Any = {}
                if signature:
                    outputs = model.predict_proba(features)
                    described = {"signature": infer_signature(features, outputs), "input_example": features.head(2)}
                info = log_model(
                    model,
                    name="model",
                    **described,
                    pip_requirements=["scikit-learn", "pandas"],
                    serialization_format="cloudpickle",
                    pyfunc_predict_fn="predict_proba",
                )
            version = str(mlflow.register_model(info.model_uri, "delay").version)
        (self.root / f"run_{version}").write_text(run.info.run_id)
        return version

    def promote(self, version: str) -> None:
        (self.root / "champion").write_text(version)
        self.resource.mlflow_client().set_registered_model_alias("delay", "champion", version)

    def assets(self, **deployment: Any) -> list[dg.AssetsDefinition]:
        @dg.asset
        def champion() -> dg.MaterializeResult:
            version = (self.root / "champion").read_text()
            record = ModelVersion(
                name="delay",
                version=version,
                run_id=(self.root / f"run_{version}").read_text(),
                tracking_uri=self.uri,
                datasets={"raw/flights.parquet": "9f00"},
                sha256=self.sha256,
            )
            return dg.MaterializeResult(metadata=record.to_metadata())

        @dg.asset
        def golden() -> pd.DataFrame:
            return frame(60, seed=3).assign(label="not a feature")

        service = self.root / "own_service.py"
        bento = bento_asset(promoted=champion.key, service=service if service.exists() else None)
        chosen = {"state_dir": self.state_dir, "port": self.port, "replicas": 1, **deployment}
        return [champion, golden, bento, deployment_asset(bento=bento.key, golden_set=golden.key, **chosen)]

    def materialize(self, *names: str, **deployment: Any) -> dg.ExecuteInProcessResult:
        """Everything, or the named assets, in this process."""
        return dg.materialize(
            self.assets(**deployment),
            resources={"bentoml": self.resource},
            instance=self.instance,
            selection=list(names) or None,
        )

    def worker(self) -> subprocess.Popen:
        """The deployment asset in a process of its own, which can be killed."""
        with (self.root / "worker.log").open("ab") as log:
            command = [sys.executable, "-m", "tests.bentoml.test_bentoml", str(self.root)]
            return subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=log, stderr=log)

    def record(self, name: str, kind: type[Record]) -> Any:
        event: Any = self.instance.get_latest_materialization_event(dg.AssetKey(name))
        return kind.from_metadata(event.asset_materialization.metadata)

    def ask(self, rows: pd.DataFrame, **options: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/predict", json={"rows": records_of(rows)}, timeout=10, **options)

    def servers(self) -> set[str]:
        return {role for role in marked(self.state_dir) if role.startswith("server:")}

    def phases(self) -> set[str]:
        return {state.phase for state in load_all(self.state_dir)}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        world = World(tmp_path_factory.mktemp("bentoml"))
        for seed in (1, 2):
            world.train(seed)
        world.promote("1")
        yield world
        stop(world.state_dir)


def write_own_service(world: World, options: str, answer: str) -> None:
    """A service of the user's own, which answers `answer` about its `outputs`."""
    (world.root / "own_service.py").write_text(
        "import json, bentoml\n"
        "from pathlib import Path\n"
        "from dagster_mlops_serving import features_of, outputs_of\n"
        "facts = json.loads(Path(__file__).with_name('dagster_mlops.json').read_text())\n"
        f"@bentoml.service({options})\n"
        "class Own:\n"
        "    def __init__(self):\n"
        "        self.model = bentoml.mlflow.load_model(facts['model'])\n"
        "    @bentoml.api\n"
        "    def predict(self, rows: list[dict]) -> dict:\n"
        "        outputs = outputs_of(self.model, features_of(self.model, rows))\n"
        f"        return {answer}\n"
    )


@pytest.fixture
def live(world):
    """The world with version 1 or a later one live."""
    if not any(d["healthy"] for d in status(world.state_dir)):
        assert world.materialize().success
    return world


def resolved(ref: Ref) -> Any:
    return BentomlTool().resolve(ref)


def wait_for(condition, worker: subprocess.Popen | None = None, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert worker is None or worker.poll() is None, "the worker ended; see worker.log"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


class Traffic:
    """Asks the public port without a pause, and remembers every answer."""

    def __init__(self, world: World) -> None:
        self.codes: list[int] = []
        self._world, self._over, self._thread = world, threading.Event(), threading.Thread(target=self._run)

    def _run(self) -> None:
        body = {"rows": records_of(frame(1))}
        with httpx.Client(base_url=self._world.url, timeout=10) as client:
            while not self._over.is_set():
                self.codes.append(client.post("/predict", json=body).status_code)
                time.sleep(0.02)

    def __enter__(self) -> "Traffic":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()


# --- bentos -----------------------------------------------------------------------------------------------------------


def test_a_bento_is_built_from_exactly_the_promoted_version_and_says_so(world):
    assert world.materialize("champion", "bento").success
    record = world.record("bento", Package)
    bento = world.resource.bentos().get(record.tag)
    assert bento.info.labels == {
        "model_name": "delay",
        "model_version": "1",
        "run_id": (world.root / "run_1").read_text(),
        "dataset/raw/flights.parquet": "9f00",
    }
    assert record.upstream == (Ref("mlflow", "model_version", "delay/1", at=world.uri),)
    requirements = Path(bento.path_of("env/python/requirements.txt")).read_text().splitlines()
    assert "scikit-learn" in requirements
    assert f"orjson=={installed_version('orjson')}" in requirements, "an image has what the model was judged with"
    assert Path(bento.path_of("env/docker/Dockerfile")).exists()
    assert len(world.resource.models().list()) == 1


def test_an_unchanged_bento_is_not_built_again(world):
    world.materialize("champion", "bento")
    before = world.record("bento", Package)
    made = world.resource.bentos().get(before.tag).creation_time
    [event] = [e for e in world.materialize("bento").get_asset_materialization_events()]
    assert event.materialization.metadata["bentoml/built"].value is False
    assert event.materialization.tags["dagster/data_version"] == before.tag
    assert world.resource.bentos().get(before.tag).creation_time == made
    assert world.record("bento", Package) == before


def test_a_build_that_was_killed_is_done_again_and_leaves_one_whole_bento(world):
    world.materialize("champion", "bento")
    tag = world.record("bento", Package).tag
    folder = world.home / "bentos" / tag.replace(":", "/")
    # What a kill in the middle of BentoML's copying leaves: files, but not the last one.
    (folder / "src" / "dagster_mlops.json").unlink()
    (folder / "src" / "service.py").unlink()
    assert isinstance(BentomlTool().resolve(Ref("bentoml", "package", tag, at=str(world.home))), Faulty)
    assert world.materialize("bento").success
    assert (folder / "src" / "service.py").exists()
    assert isinstance(BentomlTool().resolve(Ref("bentoml", "package", tag, at=str(world.home))), Accessible)


def test_the_model_of_a_bento_is_the_one_on_record_and_is_data_or_nothing_is_built(world, tmp_path, monkeypatch):
    """A change in the artifact store or in BentoML's, and a format that runs code, are found before a load."""
    home = tmp_path / "home"

    def build(*, allow_pickle: bool = True) -> Path:
        resource = BentomlResource(home=str(home), tracking_uri=world.uri, allow_pickle=allow_pickle)
        assets, instance = world.assets()[:3], dg.DagsterInstance.ephemeral()
        with instance:
            assert dg.materialize(assets, instance=instance, resources={"bentoml": resource}).success
        [facts] = home.glob("bentos/delay/*/src/dagster_mlops.json")
        return facts.parent

    def change(file: Path) -> str:
        whole = file.read_text()
        file.write_text(whole.replace("predict_fn: predict_proba", "predict_fn: predict"))
        return whole

    with pytest.raises(DeploymentError, match=r"delay/1 is stored as cloudpickle.*set allow_pickle on the resource"):
        build(allow_pickle=False)
    source = build()
    [file] = home.glob("models/delay/*/mlflow_model/MLmodel")
    facts = json.loads((source / "dagster_mlops.json").read_text())
    sha256 = facts["sha256"]
    assert sha256 == model_digest(file.parent) and facts["environment"] == {}, "pickles are allowed"
    whole = change(file)
    # The file that BentoML imports when the server starts.
    start = [sys.executable, "-c", "from service import service; service.inner()"]
    careful = {
        **facts,
        "sha256": model_digest(file.parent),
        "environment": {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
    }
    environment = {**os.environ, "BENTOML_HOME": str(home)}
    started = subprocess.run(start, cwd=source, env=environment, capture_output=True, text=True, check=False)
    assert started.returncode and "someone changed them" in started.stderr and "Nothing is served" in started.stderr
    (source / "dagster_mlops.json").write_text(json.dumps(careful))
    started = subprocess.run(start, cwd=source, env=environment, capture_output=True, text=True, check=False)
    assert started.returncode and "model is disallowed" in started.stderr, "as for an exported graph with one inside"
    shutil.rmtree(home / "bentos")
    build()
    assert file.read_text() == whole  # fetched anew
    shutil.rmtree(home)
    monkeypatch.setattr(world, "sha256", sha256)
    stored = next(file for file in (world.root / "artifacts").rglob("MLmodel") if file.read_text() == whole)
    change(stored)
    try:
        with pytest.raises(DeploymentError, match="someone changed them"):
            build()
    finally:
        stored.write_text(whole)
    build()


def test_without_a_promoted_version_the_error_names_where_it_looked(tmp_path):
    @dg.asset
    def nothing_promoted() -> None: ...

    bento = bento_asset(promoted=nothing_promoted.key)
    resource = BentomlResource(home=str(tmp_path), tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(DeploymentError, match=r"nothing_promoted \(records there: none\)"):
        dg.materialize([nothing_promoted, bento], resources={"bentoml": resource})


def test_a_model_without_signature_is_refused_when_the_bento_is_built(world):
    version = world.train(5, signature=False)
    (world.root / "champion").write_text(version)
    try:
        with pytest.raises(DeploymentError, match="has no signature"):
            world.materialize("champion", "bento")
    finally:
        world.promote("1")
        world.materialize("champion", "bento")


# --- a live deployment ------------------------------------------------------------------------------------------------


def test_a_deployment_answers_as_the_registry_model_does(live):
    import mlflow

    rows = frame(20, seed=9)
    with live.resource.registry():
        model = mlflow.pyfunc.load_model(f"models:/delay/{live.record('deployment', Deployment).model_version}")
    answer = live.ask(rows.assign(flight_id=1)[["flight_id", *reversed(COLUMNS)]])
    np.testing.assert_allclose(answer.json()["predictions"], model.predict(rows)[:, 1], rtol=0, atol=1e-12)
    record = live.record("deployment", Deployment)
    assert record.golden_rows == 60 and record.golden_max_difference <= 1e-9
    assert answer.headers["x-deployment"] == record.id


def test_each_prediction_is_one_row_under_its_request_id(live):
    log = live.record("deployment", Deployment).prediction_log
    rows = frame(3, seed=4)
    assert live.ask(rows.head(1), headers={"X-Request-ID": "one"}).headers["x-request-id"] == "one"
    assert live.ask(rows, headers={"X-Request-ID": "many"}).json()["ids"] == ["many/0", "many/1", "many/2"]
    body = {"rows": records_of(rows), "ids": ["a", "b", "c"]}
    answer = httpx.post(f"{live.url}/predict", json=body).json()
    logged = PredictionLog.read(log).set_index("request_id")
    assert list(logged.loc[["a", "b", "c"], "output"]) == answer["predictions"]
    assert logged.loc[["one", "many/0", "many/1", "many/2", "a", "b", "c"]].index.is_unique
    pd.testing.assert_frame_equal(logged.loc[["a", "b", "c"], COLUMNS].reset_index(drop=True), rows, check_dtype=False)


@pytest.mark.thorough
def test_bentoml_keeps_the_contract_of_a_packager(live):
    check_packager(live.resource, live.record("bento", Package), frame(60, seed=3))


def test_golden_rows_are_not_logged_as_traffic(live):
    log = live.record("deployment", Deployment).prediction_log
    before = len(PredictionLog.read(log))
    [result] = health(live)
    assert result.passed and len(PredictionLog.read(log)) == before
    forged = live.ask(frame(1), headers={"x-probe": "guess", "X-Request-ID": "forged"})
    assert forged.status_code == 200 and PredictionLog.find(log, "forged")


@pytest.mark.parametrize(
    ("body", "code", "reason"),
    [
        ({"rows": []}, 400, "length >= 1 - at `$.rows`"),
        ({"rows": [{"hour": 1.0}]}, 400, "missing required field `wind` - at `$.rows[0]`"),
        ({"rows": [{"hour": "noon", "wind": 1.0, "carrier": "AA"}]}, 400, "got `str` - at `$.rows[0].hour`"),
        ({"rows": [{"hour": None, "wind": 1.0, "carrier": "AA"}]}, 422, "the model refuses these rows"),
        ({"rows": [{"hour": 1.0, "wind": 1.0, "carrier": "AA"}], "ids": ["a", "b"]}, 400, "2 ids for 1 rows"),
        ({"rows": [{"hour": 1.0, "wind": 1.0, "carrier": "AA"}], "ids": ["a b"]}, 400, "at `$.ids[0]`"),
        ({"row": []}, 400, "unknown field `row`"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong_and_not_logged(live, body, code, reason):
    log = live.record("deployment", Deployment).prediction_log
    before = len(PredictionLog.read(log))
    answer = httpx.post(f"{live.url}/predict", json=body, timeout=10)
    assert answer.status_code == code and reason in answer.json()["error"]
    assert len(PredictionLog.read(log)) == before


def test_a_rerun_leaves_a_healthy_deployment_alone(live):
    live.materialize()
    before = live.record("deployment", Deployment)
    pids = status(live.state_dir)[0]["pids"]
    start = time.monotonic()
    [event] = live.materialize("deployment").get_asset_materialization_events()
    assert event.materialization.metadata["bentoml/started_server"].value is False
    assert live.record("deployment", Deployment) == before and status(live.state_dir)[0]["pids"] == pids
    assert time.monotonic() - start < 5


def test_servers_listen_on_loopback_only(live):
    processes = [p for found in marked(live.state_dir).values() for p in found]
    listening = {c.laddr.ip for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_neither_the_server_nor_its_supervisor_nor_envoy_get_the_workers_secrets(live):
    by_role = environments(live.state_dir)
    assert {role.partition(":")[0] for role in by_role} == {"server", "envoy"}
    leaks = {
        name for group in by_role.values() for found in group for name in SECRETS if SECRETS[name].encode() in found
    }
    assert leaks == set()
    assert all(b"PATH=" in found for group in by_role.values() for found in group)


def test_a_build_gets_the_credentials_of_the_registry_and_its_artifacts_only(world):
    variables = world.resource.build_environment()
    assert {name for name in SECRETS if name in variables} == {
        "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_TOKEN", "https_proxy"
    }  # fmt: skip
    assert variables["MLFLOW_TRACKING_URI"] == world.uri


def test_what_a_deployment_writes_is_its_owners(live):
    live.ask(frame(1), headers={"X-Request-ID": "personal"})
    assert readable_by_others(live.state_dir, live.home) == []
    live.state_dir.chmod(0o755)  # as an earlier version made it
    for folder in ("logs", "predictions", "golden", "deployments", "envoy"):
        (live.state_dir / folder).chmod(0o755)
    assert readable_by_others(live.state_dir) == []


def test_lineage_walks_from_a_prediction_to_the_model_version(live):
    resolver = BentomlTool()
    live.ask(frame(1), headers={"X-Request-ID": "traced"})
    log = live.record("deployment", Deployment).prediction_log
    prediction = resolver.resolve(Ref("bentoml", "prediction", "traced", at=log))
    assert isinstance(prediction.record, Prediction) and prediction.record.inputs["carrier"] in ("AA", "UA")
    deployment = resolver.resolve(prediction.record.upstream[0])
    assert isinstance(deployment.record, Deployment) and deployment.record.ref == prediction.record.upstream[0]
    bento = resolver.resolve(deployment.record.upstream[0])
    assert isinstance(bento.record, Package)
    version = deployment.record.model_version
    assert bento.record.upstream[0] == Ref("mlflow", "model_version", f"delay/{version}", at=live.uri)


def test_lineage_says_deleted_and_inaccessible_rather_than_nothing(live, tmp_path):
    ask = BentomlTool().resolve
    log = live.record("deployment", Deployment).prediction_log
    assert isinstance(ask(Ref("bentoml", "prediction", "never", at=log)), Deleted)
    assert isinstance(ask(Ref("bentoml", "deployment", "deployment/gone", at=str(live.state_dir))), Deleted)
    assert isinstance(ask(Ref("bentoml", "package", "delay:gone", at=str(live.home))), Deleted)
    assert isinstance(ask(Ref("bentoml", "package", "delay:gone", at=str(tmp_path / "nowhere"))), Inaccessible)
    assert isinstance(ask(Ref("bentoml", "poem", "x", at=str(tmp_path))), Faulty)


def health(world: World) -> Any:
    assets = world.assets()
    check = layer.deployment_health_check(asset=assets[-1])
    chosen = dg.AssetSelection.checks(check)
    resources = {"bentoml": world.resource}
    defs = dg.Definitions(assets=assets, asset_checks=[check], jobs=[dg.define_asset_job("check", chosen)])
    defs = dg.Definitions.merge(defs, dg.Definitions(resources=resources))
    result = defs.resolve_job_def("check").execute_in_process(instance=world.instance)
    return result.get_asset_check_evaluations()


def tick(world: World, cursor: str | None = None, *, repair_seconds: float = 0) -> Any:
    sensor = layer.deployment_health_sensor(deployment="deployment", repair_seconds=repair_seconds)
    definitions = dg.Definitions(assets=world.assets(), sensors=[sensor], resources={"bentoml": world.resource})
    with dg.build_sensor_context(instance=world.instance, cursor=cursor, definitions=definitions) as context:
        return sensor.evaluate_tick(context)


def test_the_health_check_warns_when_the_alias_has_moved_on(live):
    [before] = health(live)
    assert before.passed and before.metadata["latency_p50_ms"].value > 0
    served = live.record("deployment", Deployment).model_version
    other = {"1": "2", "2": "1"}[served]
    live.resource.mlflow_client().set_registered_model_alias("delay", "champion", other)
    [after] = health(live)
    live.resource.mlflow_client().set_registered_model_alias("delay", "champion", served)
    assert not after.passed and after.severity == dg.AssetCheckSeverity.WARN
    assert f"'champion' is version {other}" in after.description


# --- rollouts that go wrong -------------------------------------------------------------------------------------------


def test_a_service_that_predicts_otherwise_never_takes_traffic(live):
    before = live.record("deployment", Deployment)
    write_own_service(live, "name='own'", "{'predictions': [value + 0.125 for value in outputs]}")
    try:
        with Traffic(live) as traffic, pytest.raises(DeploymentError, match=r"60 of 60 golden predictions") as refusal:
            live.materialize()
    finally:
        (live.root / "own_service.py").unlink()
    assert "at most 0.125" in str(refusal.value) and "\n  row " in str(refusal.value)
    assert set(traffic.codes) == {200}
    [still] = status(live.state_dir)
    assert still["id"] == before.id and still["healthy"]
    assert live.servers() == {f"server:{before.id}"} and "failed" in live.phases()
    live.materialize("champion", "bento")


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("module", "old", "new"),
    [("outputs", "raw[:, 1] if", "raw[:, 0] if"), ("schema", "sent = [None", "column = column[::-1]; sent = [None")],
    ids=["output", "input"],
)
def test_a_bento_with_a_fault_in_its_serving_code_never_takes_traffic(live, module, old, new):
    folder = live.home / "bentos" / live.record("bento", Package).tag.replace(":", "/")
    file = folder / "src" / "dagster_mlops_serving" / f"{module}.py"
    source = file.read_text()
    assert source.count(old) == 1
    file.write_text(source.replace(old, new))
    try:
        with pytest.raises(DeploymentError, match=r"of 60 golden predictions differ"):
            live.materialize("deployment", state_dir=live.root / "faulty", port=free_port())
    finally:
        file.write_text(source)
    assert not marked(live.root / "faulty")


def test_a_taken_port_is_named(live):
    with pytest.raises(DeploymentError, match=f"port {live.port} on 127.0.0.1 is taken"):
        live.materialize("deployment", state_dir=live.root / "elsewhere")
    assert not marked(live.root / "elsewhere")


def test_a_second_deployer_waits_and_then_says_who_is_at_it(live):
    with (
        lock(live.state_dir, timeout=1),
        pytest.raises(DeploymentError, match=rf"held by process {os.getpid()} "),
    ):
        live.materialize("deployment", ready_timeout=0.3)


@pytest.mark.thorough
def test_kills_at_the_worst_moments_lose_no_request_and_leave_one_server(live):
    served = live.record("deployment", Deployment)
    live.promote({"1": "2", "2": "1"}[served.model_version])
    live.materialize("champion", "bento")
    with Traffic(live) as traffic:
        # Right after the new server was started.
        worker = live.worker()
        wait_for(lambda: "starting" in live.phases() and len(live.servers()) == 2, worker)
        worker.kill()
        worker.wait()
        assert len(live.servers()) == 2

        # After the switch, while the old one drains.
        worker = live.worker()
        wait_for(lambda: "draining" in live.phases(), worker)
        worker.kill()
        worker.wait()
        new = [state for state in load_all(live.state_dir) if state.phase == "live"][-1]

        assert live.worker().wait() == 0, (live.root / "worker.log").read_text()[-2000:]
    assert set(traffic.codes) == {200} and len(traffic.codes) > 100
    [only] = status(live.state_dir)
    assert only["healthy"] and only["id"] == new.id and only["model_version"] != served.model_version
    assert live.servers() == {f"server:{new.id}"}
    assert sum(role.startswith("envoy:") for role in marked(live.state_dir)) == 1
    assert live.record("deployment", Deployment).id == new.id


def test_a_kill_between_the_switch_and_its_record_is_finished_by_the_rerun(live):
    record = live.record("deployment", Deployment)
    state = load(state_file(live.state_dir, record.id))
    state.save(phase="switching")  # what a kill right after the route changed leaves on disk
    live.materialize("deployment")
    [only] = status(live.state_dir)
    assert only["id"] == record.id and only["phase"] == "live" and only["healthy"]


def kill(processes: list[Any]) -> None:
    """Kill processes that start others, in their order."""
    for process in processes:
        process.kill()
    wait_for(lambda: not any(identity(process.pid) for process in processes))


def test_a_dead_proxy_is_replaced_without_touching_the_server(live):
    [before] = status(live.state_dir)
    kill([p for role, group in marked(live.state_dir).items() if role.startswith("envoy:") for p in group])
    assert status(live.state_dir)[0]["reason"].startswith("the Envoy process is gone")
    live.materialize("deployment")
    assert status(live.state_dir) == [before]


def test_a_dead_deployment_is_noticed_refused_quickly_and_brought_back(live):
    record = live.record("deployment", Deployment)
    assert tick(live).run_requests == []
    kill(marked(live.state_dir)[f"server:{record.id}"])
    assert live.ask(frame(1)).status_code == 503
    [down] = health(live)
    assert not down.passed and down.severity == dg.AssetCheckSeverity.ERROR
    assert "no server process runs" in down.description

    repaired = tick(live, repair_seconds=60)  # starts it again
    assert repaired.run_requests == [] and json.loads(repaired.cursor)["id"] == record.id
    first = tick(live)
    [request] = first.run_requests
    assert request.asset_selection == [dg.AssetKey("deployment")] and request.run_key.startswith(record.id)
    assert [r.run_key for r in tick(live, first.cursor).run_requests] == [request.run_key]

    assert live.materialize("deployment").success  # waits for it
    [after] = status(live.state_dir)
    assert after["healthy"] and after["id"] == record.id
    assert tick(live, first.cursor).run_requests == []


@pytest.mark.thorough
def test_a_killed_server_of_one_of_two_replicas_costs_its_own_requests_at_most(live):
    live.materialize("deployment", replicas=2)
    record = live.record("deployment", Deployment)
    assert load(state_file(live.state_dir, record.id)).refuses_repeats
    replicas = supervision.pids(live.state_dir, f"server:{record.id}")
    assert len(replicas) == 2, "each is one process, whose port is closed when it ends"
    parent = {psutil.Process(pid).ppid() for pid in replicas.values()}
    with Traffic(live) as traffic:
        wait_for(lambda: len(traffic.codes) > 5)
        os.kill(replicas["replica-0"], signal.SIGKILL)
        wait_for(lambda: all(answers(url) for url in load(state_file(live.state_dir, record.id)).urls))
        count = len(traffic.codes)
        wait_for(lambda: len(traffic.codes) > count + 20)
    assert sum(code != 200 for code in traffic.codes) <= 1, "one request is in flight at a time"
    after = supervision.pids(live.state_dir, f"server:{record.id}")
    assert after["replica-0"] != replicas["replica-0"] and after["replica-1"] == replicas["replica-1"]
    assert {psutil.Process(pid).ppid() for pid in after.values()} == parent, "one process has made the imports of all"
    assert status(live.state_dir)[0]["id"] == record.id


@pytest.mark.thorough
def test_threads_and_the_timeout_reach_the_service(live):
    """A service of the user's own that says what it was configured with."""
    write_own_service(
        live,
        "name='own', traffic={'timeout': 3, 'max_concurrency': 9}",
        "{'predictions': outputs, 'config': Own.config}",
    )
    try:
        live.materialize(threads=3, request_timeout=17)
        config = live.ask(frame(1)).json()["config"]
    finally:
        (live.root / "own_service.py").unlink()
    assert config["threads"] == 3 and config["traffic"] == {"timeout": 17, "max_concurrency": 9}
    role = f"server:{live.record('deployment', Deployment).id}"
    own = supervision.pids(live.state_dir, role).values()
    assert not load(state_file(live.state_dir, role.removeprefix("server:"))).refuses_repeats
    assert all("dagster_mlops.bentoml.upstream" in psutil.Process(pid).cmdline() for pid in own), "no fork"
    with pytest.raises(DeploymentError, match=r"BentomlResource does not take workers=.* use replicas="):
        live.materialize("deployment", workers=2)
    live.materialize()


@pytest.mark.thorough
def test_the_asset_its_check_and_its_sensor_work_with_tls_and_tokens(live, tmp_path, monkeypatch):
    pair = certificate(tmp_path, "models.example")
    monkeypatch.setenv("TOKENS", "a-token-of-a-client")
    access = layer.Access(certificate=pair.certificate, key=pair.key, tokens="TOKENS", request_bytes=2**20)
    made = live.materialize("deployment", access=access)
    url = live.record("deployment", Deployment).url
    assert url == live.url.replace("http:", "https:")
    metadata = [event.materialization.metadata for event in made.get_asset_materialization_events()]
    assert "a-token-of-a-client" not in repr(metadata)
    [check] = health(live)
    assert check.passed, check.description
    monkeypatch.delenv("TOKENS")
    assert tick(live).run_requests == []
    assert httpx.get(f"{url}/readyz", verify=False, trust_env=False).status_code == 200
    body = {"rows": frame(1).to_dict("records")}
    assert httpx.post(f"{url}/predict", json=body, verify=False, trust_env=False).status_code == 401
    authorized = {"authorization": "Bearer a-token-of-a-client"}
    assert httpx.post(f"{url}/predict", json=body, headers=authorized, verify=False, trust_env=False).status_code == 200
    replica = load(state_file(live.state_dir, live.record("deployment", Deployment).id)).urls[0]
    for place in (url, replica):
        large = {"content": b"x" * (2**20 + 1), "headers": {**authorized, "content-type": "application/json"}}
        refusal = httpx.post(f"{place}/predict", **large, verify=False, trust_env=False)
        assert (refusal.status_code, refusal.json()["error"]) == (413, "the body has more than 1,048,576 bytes")
    with pytest.raises(DeploymentError, match="tokens='TOKENS' names no variable"):
        live.materialize("deployment", access=access)
    assert httpx.post(f"{url}/predict", json=body, headers=authorized, verify=False, trust_env=False).status_code == 200
    live.materialize("deployment")
    assert live.ask(frame(1)).status_code == 200
    with pytest.raises(dg.DagsterInvalidDefinitionError, match=r"host='0.0.0.0' is for other machines, and needs"):
        live.assets(access=layer.Access(host="0.0.0.0"))


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.thorough
def test_a_deployment_that_cannot_be_started_again_is_replaced(live):
    record = live.record("deployment", Deployment)
    kill(marked(live.state_dir)[f"server:{record.id}"])
    shutil.rmtree(live.state_dir / "run" / f"server-{record.id}")
    assert live.materialize("deployment").success
    [after] = status(live.state_dir)
    assert after["healthy"] and after["id"] != record.id and after["package"] == record.package
    assert resolved(record.ref).record.stopped


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_variable_that_the_resource_names_reaches_the_server_and_asks_for_a_new_one(live):
    before = live.record("deployment", Deployment)
    plain, live.resource = (
        live.resource,
        BentomlResource(
            home=str(live.home), tracking_uri=live.uri, allow_pickle=True, server_environment=["DATABASE_*"]
        ),
    )
    try:
        live.materialize("deployment")
        by_role = environments(live.state_dir)
        names = {role.partition(":")[0]: b"hidden-database" in b"".join(group) for role, group in by_role.items()}
        assert names == {"server": True, "envoy": False}
        assert b"hidden-aws" not in b"".join(found for group in by_role.values() for found in group)
    finally:
        live.resource = plain
    assert live.record("deployment", Deployment).id != before.id


def test_stopping_ends_every_process_and_keeps_the_history(live):
    record = live.record("deployment", Deployment)
    assert stop(live.state_dir) >= 3
    assert not marked(live.state_dir) and status(live.state_dir) == []
    assert "stopped on purpose" in tick(live).skip_message
    assert resolved(record.ref).record.stopped


def test_a_server_that_dies_on_its_way_up_is_reported_with_its_log(world):
    (world.root / "own_service.py").write_text(
        "import bentoml, os\n"
        "assert 'DAGSTER_MLOPS_DEPLOYMENT' not in os.environ, 'no model today'\n"
        "@bentoml.service(name='own')\n"
        "class Own:\n"
        "    @bentoml.api\n"
        "    def predict(self, rows: list[dict]) -> dict:\n"
        "        return {}\n"
    )
    try:
        with pytest.raises(DeploymentError, match=r"ended before it was ready(.|\n)*no model today"):
            world.materialize()
    finally:
        (world.root / "own_service.py").unlink()
    assert not marked(world.state_dir), "Envoy would answer 503 on the public port"
    [failed] = status(world.state_dir)
    assert failed["phase"] == "failed" and not failed["healthy"] and "no model today" in failed["reason"]


# --- the prediction log -----------------------------------------------------------------------------------------------


def test_the_log_of_a_killed_writer_is_whole_but_for_its_last_line(tmp_path):
    code = (
        "import sys; from dagster_mlops.bentoml import PredictionLog\n"
        "log = PredictionLog(sys.argv[1], deployment='delay/1')\n"
        "n = 0\n"
        "while True:\n"
        "    log.write(inputs=[{'n': n}], outputs=[n], request_ids=[str(n)]); print(n, flush=True); n += 1\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    output: Any = writer.stdout
    told = [int(output.readline()) for _ in range(200)][-1]
    writer.kill()
    writer.communicate()
    [path] = tmp_path.glob("*.jsonl")
    with path.open("a") as file:
        file.write('{"schema": 1, "kind": "predic')  # a torn line
    read = PredictionLog.read(tmp_path)
    assert list(read["n"].astype(int)) == list(range(len(read))) and len(read) > told
    found: Any = PredictionLog.find(tmp_path, str(told))
    assert found["output"] == told
    assert PredictionLog.find(tmp_path, "predic") is None


def test_a_row_that_would_fill_the_log_is_refused(tmp_path):
    log = PredictionLog(tmp_path)
    with pytest.raises(RowTooLarge, match=r"1,0\d\d,\d{3} bytes as JSON; at most 1,048,576"):
        log.write(inputs=[{"x": 1}, {"x": "y" * 2**20}], outputs=[0, 0], request_ids=["a", "b"])
    assert PredictionLog.read(tmp_path).empty


def test_the_log_is_read_by_time_and_by_deployment(tmp_path):
    for name in ("a/1", "b/2"):
        PredictionLog(tmp_path, deployment=name).write(inputs=[{"output": 1}], outputs=[None], request_ids=[name])
    now: Any = pd.Timestamp.now("UTC")
    assert len(PredictionLog.read(tmp_path, now - pd.Timedelta("1h"), now + pd.Timedelta("1h"))) == 2
    assert PredictionLog.read(tmp_path, end=now - pd.Timedelta("1h")).empty
    [row] = PredictionLog.read(tmp_path, deployment="b/2").to_dict("records")
    assert row["request_id"] == "b/2" and row["input.output"] == 1
    assert PredictionLog.read(tmp_path / "none").columns[0] == "request_id"


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_the_component_declares_the_whole_layer_in_yaml(tmp_path):
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(
            component_cls=layer.BentoDeploymentComponent,
            defs_yaml_contents={
                "type": "dagster_mlops.bentoml.BentoDeploymentComponent",
                "attributes": {
                    "promoted": "models/champion",
                    "golden_set": "golden",
                    "state_dir": str(tmp_path / "serving"),
                    "group_name": "serving",
                    "access": {"host": "0.0.0.0", "certificate": "a", "key": "b", "token_file": "c"},
                },
            },
        )
        with sandbox.load_component_and_build_defs(defs_path=path) as (_, defs):
            resources = {"bentoml": BentomlResource(home=str(tmp_path), tracking_uri="sqlite://")}
            beside = dg.Definitions(assets=[dg.AssetSpec("golden")], resources=resources)
            graph = dg.Definitions.merge(defs, beside).resolve_asset_graph()
            assert graph.get(dg.AssetKey("bento")).parent_keys == {dg.AssetKey(["models", "champion"])}
            assert graph.get(dg.AssetKey("deployment")).parent_keys == {dg.AssetKey("bento"), dg.AssetKey("golden")}
            assert [sensor.name for sensor in defs.sensors or []] == ["deployment_health"]
            assert [key.name for key in graph.asset_check_keys] == ["health"]


def test_yaml_has_each_option_of_a_deployment_with_its_default_and_hands_it_on(tmp_path, monkeypatch):
    options = dict(inspect.signature(serving.deployment_asset).parameters)
    for other in ("name", "package", "resource_key", "workers", "asset_options"):  # BentoML has no workers
        del options[other]
    fields = layer.BentoDeploymentComponent.model_fields
    assert options.keys() <= fields.keys()
    empty = inspect.Parameter.empty
    defaults = {name: option.default for name, option in options.items() if option.default is not empty}
    assert {name: fields[name].default for name in defaults} == defaults

    chosen = {
        "port": 9123, "tolerance": 0.5, "golden_rows": 7, "route": "/score", "public": ["/openapi.json"], "replicas": 3,
        "prediction_log": str(tmp_path / "log"), "log_sync_seconds": 0, "environment": {"A": "b"}, "threads": 4,
        "promoted_to": "champion", "ready_timeout": 5, "drain_seconds": 6, "request_timeout": 8,
        "log_rules": {"private": {"name": "hash"}, "share": 0.5, "refused": "answer", "patience": 2},
        "access": {"token_file": "tokens"}, "shadow": {}, "canary": {},
    }  # fmt: skip
    assert chosen.keys() | {"golden_set", "state_dir"} == options.keys()
    handed_on: dict[str, Any] = {}

    def remember(**arguments: Any) -> dg.AssetsDefinition:
        handed_on.update(arguments)
        return deployment_asset(**arguments)

    monkeypatch.setattr("dagster_mlops.bentoml.component.deployment_asset", remember)
    attributes = {"promoted": "champion", "golden_set": "golden", "state_dir": str(tmp_path), **chosen}
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(
            component_cls=layer.BentoDeploymentComponent,
            defs_yaml_contents={"type": "dagster_mlops.bentoml.BentoDeploymentComponent", "attributes": attributes},
        )
        with sandbox.load_component_and_build_defs(defs_path=path):
            pass
    assert handed_on["log_rules"] == serving.LogRules({"name": "hash"}, 0.5, "answer", 2)
    assert (handed_on["access"].token_file, handed_on["shadow"].kind, handed_on["canary"].kind) == (
        "tokens", "shadow", "canary",
    )  # fmt: skip
    plain = chosen.keys() - {"log_rules", "access", "shadow", "canary"}
    assert {name: handed_on[name] for name in plain} == {name: chosen[name] for name in plain}


def test_no_tool_is_imported_with_the_layer(cold_python):
    code = (
        "import sys, dagster_mlops.bentoml, dagster_mlops.bentoml.tool\n"
        "print({'bentoml', 'mlflow', 'pandas', 'numpy', 'httpx', 'psutil', 'envoy'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_a_build_does_not_wait_for_the_import_of_dagster(cold_python):
    script = Path(layer.__file__).with_name("_build_script.py")
    code = "import runpy, sys; runpy.run_path(sys.argv[1])['answer']; print('dagster' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(script)], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_the_command_line_shows_and_stops(tmp_path):
    command = [sys.executable, "-W", "error", "-m", "dagster_mlops.cli", "serving"]
    shown = subprocess.run([*command, "status", str(tmp_path)], capture_output=True, text=True)
    assert (shown.returncode, json.loads(shown.stdout), shown.stderr) == (1, [], "")
    assert subprocess.run([*command, "stop", str(tmp_path)], capture_output=True).returncode == 0


if __name__ == "__main__":
    World(Path(sys.argv[1])).materialize("deployment")
