"""The whole lifecycle on the real flights, with its worker killed on the way, and its lineage after losses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.usefixtures("warm_tools"), pytest.mark.slow, pytest.mark.timeout(1200)]


class Lifecycle:
    """The demo's worker in a state folder of its own, started and killed as a real process."""

    def __init__(self, state: Path, port: int, first_month: int) -> None:
        self.state, self.whole = state, first_month == 1
        self.months = [f"2013-{month:02}-01" for month in range(first_month, 7)]
        self.environment = {
            **os.environ,
            "DAGSTER_MLOPS_STATE": str(state),
            "DAGSTER_HOME": str(state / "dagster"),
            "DAGSTER_MLOPS_PORT": str(port),
            "DAGSTER_MLOPS_FIRST_MONTH": self.months[0],
        }
        (state / "dagster").mkdir(parents=True)
        shutil.copy(ROOT / "resources" / "dagster.yaml", state / "dagster")

    def events(self, process: subprocess.Popen, reading: int) -> Iterator[dict]:
        with os.fdopen(reading) as lines:
            yield from map(json.loads, lines)
        process.wait()

    def start(self) -> tuple[subprocess.Popen, Iterator[dict]]:
        reading, writing = os.pipe()
        with (self.state / "worker.log").open("a") as log:
            command = [sys.executable, "-m", "assets.demo", str(writing)]
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=log,
                pass_fds=[writing],
                start_new_session=True,
            )
        os.close(writing)
        return process, self.events(process, reading)

    def kill_in(self, step: str, *, stage: str = "", after: float = 0.0) -> None:
        """Run until `step` starts, give it `after` seconds, and kill -9 the worker with all its threads."""
        process, events = self.start()
        current = ""
        for event in events:
            current = event.get("stage", current) + (event.get("partition") or "" if "stage" in event else "")
            assert "failure" not in event, event
            if event.get("step") == step and stage in current:
                time.sleep(after)
                os.killpg(process.pid, signal.SIGKILL)
                break
        else:
            pytest.fail(f"{step} was never started")
        process.wait()

    def run(self) -> list[dict]:
        """Run to the end."""
        process, events = self.start()
        told = list(events)
        failures = [event for event in told if "failure" in event]
        assert not failures and process.returncode == 0, (failures, (self.state / "worker.log").read_text()[-3000:])
        return told

    def python(self, code: str) -> str:
        """What `code` prints in a fresh process of the same environment."""
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.strip().splitlines()[-1]

    def trace(self, request_id: str) -> tuple[int, dict]:
        command = [sys.executable, "-m", "dagster_mlops.cli", "trace", request_id, "--json"]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=240)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)


@pytest.fixture(scope="module", params=[5, pytest.param(1, marks=pytest.mark.thorough)], ids=["from May", "all"])
def lifecycle(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]
) -> Iterator[Lifecycle]:
    world = Lifecycle(tmp_path_factory.mktemp("lifecycle"), free_port(), request.param)
    yield world
    world.python(f"from dagster_mlops.serving import stop; print(stop({str(world.state / 'serving')!r}))")


def kinds(chain: dict) -> dict[str, set[str]]:
    """The buckets found for each kind of link, nearest to the prediction first."""
    found: dict[str, set[str]] = {}
    for link in chain["links"]:
        found.setdefault(link["ref"]["role"], set()).add(link["bucket"])
    return found


def test_it_ends_green_after_its_worker_was_killed(lifecycle):
    if lifecycle.whole:
        lifecycle.kill_in("source__route_punctuality", stage=lifecycle.months[1], after=0.3)
        lifecycle.kill_in("arrival_delay_model", after=2)
    lifecycle.kill_in("deployment", after=2)
    lifecycle.run()


def test_a_dataset_was_committed_once_although_its_worker_was_killed(lifecycle):
    data = lifecycle.state / "data"
    for pointer in sorted(data.rglob("*.dvc")):
        if pointer.is_file():
            log = subprocess.run(
                ["git", "log", "--format=%h", "--", str(pointer)], cwd=data, capture_output=True, text=True, check=True
            )
            assert len(log.stdout.split()) == 1, pointer
    status = subprocess.run(["git", "status", "--porcelain"], cwd=data, capture_output=True, text=True, check=True)
    assert status.stdout == ""


def test_one_champion_and_no_run_left_running(lifecycle):
    found = lifecycle.python(
        "import json, mlflow\n"
        "from mlflow import MlflowClient\n"
        "from resources.local import TRACKING_URI\n"
        "client = MlflowClient(TRACKING_URI)\n"
        "[experiment] = [e.experiment_id for e in client.search_experiments() if e.name == 'arrival_delay']\n"
        "found = client.search_runs([experiment])\n"
        "runs = {tag: [run.info.status for run in found if f'dagster_mlops.{tag}' in run.data.tags]\n"
        "    for tag in ('key', 'evaluated')}\n"
        "model = client.get_registered_model('arrival_delay')\n"
        "versions = client.search_model_versions(\"name='arrival_delay'\")\n"
        "print(json.dumps([runs, {k: str(v) for k, v in model.aliases.items()}, len(versions)]))"
    )
    runs, aliases, versions = json.loads(found)
    assert "RUNNING" not in runs["key"] and runs["key"].count("FINISHED") == 1
    assert runs["evaluated"] == ["FINISHED"]
    assert aliases == {"champion": "1"}
    assert versions == 1


def test_one_deployment_serves_and_no_other_server_is_left(lifecycle):
    found = lifecycle.python(
        "import json\n"
        "from dagster_mlops.serving.local import overview, processes\n"
        f"folder = {str(lifecycle.state / 'serving')!r}\n"
        "from pathlib import Path\n"
        "print(json.dumps([[d['healthy'] for d in overview.status(folder)], sorted(processes.marked(Path(folder)))]))"
    )
    healthy, roles = json.loads(found)
    assert healthy == [True]
    assert len(roles) == 2, roles  # the proxy and one server


def test_run_again_it_executes_nothing(lifecycle):
    told = lifecycle.run()
    assert not [event for event in told if "step" in event]
    assert {event["ran"] for event in told if "stage_done" in event} == {0}


@pytest.fixture(scope="module")
def request_id(lifecycle) -> str:
    return lifecycle.python(
        "import dagster as dg\n"
        "wanted = dg.AssetRecordsFilter(dg.AssetKey('predictions'), asset_partitions=['2013-07-01'])\n"
        "[record] = dg.DagsterInstance.get().fetch_materializations(wanted, limit=1).records\n"
        "print(record.asset_materialization.metadata['example_request_id'].value)"
    )


def test_every_flight_of_the_month_was_predicted_once_as_the_registry_model_predicts_it(lifecycle):
    found = lifecycle.python(
        "import json, mlflow\n"
        "from dagster_mlops.bentoml import PredictionLog\n"
        "from assets.training import model_inputs\n"
        "from resources import STATE\n"
        "from resources.local import TRACKING_URI\n"
        "logged = PredictionLog.read(STATE / 'serving' / 'predictions')\n"
        "mlflow.set_tracking_uri(TRACKING_URI)\n"
        "model = mlflow.pyfunc.load_model('models:/arrival_delay@champion')\n"
        "sample = logged.sample(2000, random_state=0)\n"
        "names = model.metadata.get_input_schema().input_names()\n"
        "frame = sample[names].astype({n: 'float64' for n in names if n not in ('carrier', 'origin', 'dest')})\n"
        "difference = abs(model.predict(frame)[:, 1] - sample['output'].to_numpy()).max()\n"
        "print(json.dumps([len(logged), int(logged['request_id'].nunique()), float(difference)]))"
    )
    rows, ids, difference = json.loads(found)
    assert rows == ids == 29_425
    assert difference == 0


def test_a_prediction_is_traced_to_the_raw_files_and_the_commit(lifecycle, request_id):
    code, chain = lifecycle.trace(request_id)
    found = kinds(chain)
    assert list(found)[:5] == ["prediction", "deployment", "package", "model_version", "training_run"]
    assert {"training_set", "feature_view", "dataset", "commit"} <= set(found)
    assert {bucket for buckets in found.values() for bucket in buckets} == {"accessible"}
    assert code == 0
    raw = {link["ref"]["id"].split("@")[0] for link in chain["links"] if link["ref"]["id"].startswith("raw/")}
    assert {f"raw/flights/{month}.parquet" for month in lifecycle.months} <= raw
    # July came after the training set was built: the model cannot have been trained on it.
    assert not [path for path in raw if "2013-07" in path]


def test_what_was_lost_is_said_and_the_chain_goes_on_below(lifecycle, request_id):
    lifecycle.python(
        "from mlflow import MlflowClient\n"
        "from resources.local import TRACKING_URI\n"
        "client = MlflowClient(TRACKING_URI)\n"
        "version = client.get_model_version_by_alias('arrival_delay', 'champion')\n"
        "client.delete_run(version.run_id)\n"
        "print(version.run_id)"
    )
    (lifecycle.state / "dvc-remote").rename(lifecycle.state / "gone")
    code, chain = lifecycle.trace(request_id)
    (lifecycle.state / "gone").rename(lifecycle.state / "dvc-remote")

    found = kinds(chain)
    assert found["training_run"] == {"deleted"}
    assert found["dataset"] == {"inaccessible"}
    assert found["training_set"] == {"accessible"}
    assert found["commit"] == {"accessible"}
    assert code == 1
