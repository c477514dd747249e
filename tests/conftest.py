"""What every test needs: no telemetry, no user's own Dagster home, a git identity."""

import atexit
import contextlib
import gc
import itertools
import os
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.support import quick_databases
from tests.support.warm_python import cold_python, start_workers_warm, warm_dvc, warm_tools  # noqa: F401 - fixtures

# The same examples each time, so that a failure belongs to the change at hand. DAGSTER_MLOPS_EXPLORE=1 tries others.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("default" if os.environ.get("DAGSTER_MLOPS_EXPLORE") else "repeatable")

QUIET = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "FEAST_USAGE": "False",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "BENTOML_DO_NOT_TRACK": "True",
    "DAGSTER_DISABLE_TELEMETRY": "yes",
    # The workers of the tests fill the cores: more OpenMP threads than cores spin while they wait for each other.
    "OMP_NUM_THREADS": "1",
    "GIT_AUTHOR_NAME": "test",
    "GIT_AUTHOR_EMAIL": "test@example.com",
    "GIT_COMMITTER_NAME": "test",
    "GIT_COMMITTER_EMAIL": "test@example.com",
}
# Tools read these when they are imported, which may be before the first fixture runs.
os.environ.update(QUIET)
for name in ("DAGSTER_HOME", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "BENTOML_HOME"):
    os.environ.pop(name, None)

quick_databases.install()
gc.disable()  # while the tests and their tools are imported, all of which stays

# The files that take longest, in about the seconds that one worker spends. They start first, so that no worker gets
# one when the others are done: by itself, xdist begins with the files of most tests.
SLOWEST = {
    "product/test_lifecycle": 140, "dvc/test_pipeline": 95, "mlflow/test_sweeps": 80, "mlflow/test_training": 78,
    "bentoml/test_bentoml": 74, "feast/test_stores": 65, "mlflow/test_tracking": 62, "evaluation/test_evaluation": 30,
    "dvc/test_datasets": 52, "dvc/test_remotes": 52, "feast/test_training": 44, "feast/test_feast": 42,
    "dvc/test_assets": 35, "product/test_reference_location": 35, "mlflow/test_model_io": 35, "dvc/test_faults": 30,
    "feast/test_parity": 28, "gto/test_gto": 27, "lineage/test_reproduce": 27, "product/test_packaging": 26,
    "feast/test_online_faults": 24, "lineage/test_reproduce_shapes": 23,
    "mlflow_serving/test_mlflow_serving": 22, "feast/test_offline_store": 21, "feast/test_postgres": 20,
    "feast/test_offline_faults": 18, "evidently/test_evidently": 15,
    "serving/test_supervision": 15, "serving/test_prediction_log": 15,
    "promotion/test_real_daemon": 80, "dvc/test_written_by_hand": 25,
    "dvc/test_stage_commits": 15, "dvc/test_refused_projects": 15,
    "feast/test_stored_views": 13,
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: -SLOWEST.get(f"{item.path.parent.name}/{item.path.stem}", 0))


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    """All tests need all tools: they are imported once, not in each worker and once more for its children."""
    if config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        start_workers_warm()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


_exit_status: list[int] = []


def pytest_sessionfinish(exitstatus: int) -> None:
    _exit_status.append(int(exitstatus))


@atexit.register
def _end_quietly() -> None:
    """End before the interpreter takes itself apart: DuckDB's extension then prints pages of what it calls leaks."""
    if _exit_status:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_exit_status[-1])


@pytest.fixture
def own_forkserver() -> Iterator[None]:
    """Python forks from one server, with the environment and modules of its start: this test gets one of its own."""
    forkserver._forkserver._stop()  # pyright: ignore[reportAttributeAccessIssue]
    yield
    forkserver._forkserver._stop()  # pyright: ignore[reportAttributeAccessIssue]


def pytest_runtest_setup() -> None:
    quick_databases.install_mlflow()  # the first test that needs MLflow's database has imported it


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """What a tool leaves open is collected with the file that says so: later, it would fail a test of another file."""
    result = yield
    last = nextitem is None or nextitem.path != item.path
    if last and any("ResourceWarning" in mark.args[0] for mark in item.iter_markers("filterwarnings")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
    return result


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: os.PathLike, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tools that write into the working directory shall not write into the checkout."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _figures_without_pixels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matplotlib spends half of an evaluation's time on pixels, which only the tests marked `pixels` look at."""
    from dagster_mlops.core import pictures

    if not request.node.get_closest_marker("pixels"):
        monkeypatch.setattr(pictures, "_png", lambda figure: b"\x89PNG of " + str(figure).encode())


@pytest.fixture(autouse=True)
def _active_experiment_as_before() -> Iterator[None]:
    """MLflow's active experiment is one for the whole process: one that stays would be used by the tests after it."""

    def active() -> str | None:
        fluent: Any = sys.modules.get("mlflow.tracking.fluent")
        return fluent and fluent._active_experiment_id

    before = active()
    yield
    assert active() == before, "another experiment is active: give `start_run` its id, in place of `set_experiment`"


# A default that is set "as before", such as MLflow's tracking URI, stays in the environment for another file's tests.
_PLACES = ("MLFLOW_", "DAGSTER_", "BENTOML_", "DVC_", "FEAST_", "GIT_", "AWS_", "PYTHON")


@pytest.fixture(scope="module", autouse=True)
def _environment_as_before() -> Iterator[None]:
    """The variables that say where tools work are the same after a file's tests as before them."""

    def places() -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name.startswith(_PLACES)}

    before = places()
    yield
    changed = before.items() ^ places().items()
    for name in {name for name, _ in changed}:
        os.environ.pop(name, None)
    os.environ.update(before)
    assert not changed, f"these tests left variables changed: {sorted(changed)}"


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs, to be copied: MLflow needs seconds to create its tables."""
    from dagster_mlops.mlflow import MlflowResource  # not for tests without it

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowResource(tracking_uri=f"sqlite:///{file}").client()
    return file


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Gives loopback ports that nobody listens on: none twice, and none that the system hands out by itself."""
    # Linux hands out ports from 32768. Workers, whose process ids are neighbours, start a hundred ports apart.
    ports = itertools.count(10_000 + os.getpid() * 101 % 20_000)

    def pick() -> int:
        for port in ports:
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
        raise AssertionError("there are always more")

    return pick
