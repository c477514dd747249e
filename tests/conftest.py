"""What every test needs: no telemetry, no user's own Dagster home, a git identity."""

import contextlib
import gc
import itertools
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest
from hypothesis import settings

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
    "GIT_AUTHOR_NAME": "test",
    "GIT_AUTHOR_EMAIL": "test@example.com",
    "GIT_COMMITTER_NAME": "test",
    "GIT_COMMITTER_EMAIL": "test@example.com",
}
# Tools read these when they are imported, which may be before the first fixture runs.
os.environ.update(QUIET)
for name in ("DAGSTER_HOME", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "BENTOML_HOME"):
    os.environ.pop(name, None)

# The files that take longest, with seconds on two cores. They start first, so that no worker gets one when the others
# are done: of itself xdist begins with the files of most tests.
SLOWEST = {
    "product/test_lifecycle": 185, "lineage/test_reproduce": 75, "dvc/test_pipeline": 71, "mlflow/test_training": 66,
    "bentoml/test_bentoml": 56, "mlflow/test_sweeps": 52, "mlflow/test_tracking": 50, "feast/test_stores": 50,
    "feast/test_training": 50, "mlflow/test_evaluation": 45, "lineage/test_reproduce_shapes": 45, "mlflow/test_k8s": 35,
    "feast/test_repository": 40, "feast/test_push": 40,
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: -SLOWEST.get(f"{item.path.parent.name}/{item.path.stem}", 0))


@pytest.fixture
def own_forkserver() -> Iterator[None]:
    """Python forks from one server, with the environment and modules of its start: this test gets one of its own."""
    forkserver._forkserver._stop()  # pyright: ignore[reportAttributeAccessIssue]
    yield
    forkserver._forkserver._stop()  # pyright: ignore[reportAttributeAccessIssue]


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
