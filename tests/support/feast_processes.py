"""Processes of their own for tests of Feast, forked from a server that has imported it: each would take seconds to."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from dagster_mlops.core import tool_process as parsing

# Not plain forks: the threads of Arrow and DuckDB would not survive them.
processes = multiprocessing.get_context("forkserver")
# Only what is installed: the server does not know the path of the tests, and says nothing of what it cannot import.
processes.set_forkserver_preload(
    ["feast.cli.cli", "feast.infra.compute_engines.local.compute", "dagster_mlops.feast.offline_store"]
)
ROOT = str(Path(__file__).resolve().parents[2])


@pytest.fixture(scope="module")
def quick_feast():
    """What the plugin runs in a Python of its own finds Feast imported. (In feast/test_feast.py it does not.)"""
    quick = SimpleNamespace(
        run=run, CompletedProcess=subprocess.CompletedProcess, TimeoutExpired=subprocess.TimeoutExpired
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parsing, "subprocess", quick)
        yield


def run(
    command: list[str], *, cwd: Path, env: Mapping[str, str], timeout: float, **how: bool
) -> "subprocess.CompletedProcess[str]":
    """What `subprocess.run` does with ``python -c CODE ARGUMENTS``."""
    assert command[:2] == [sys.executable, "-c"] and how == {"capture_output": True, "text": True}
    with tempfile.TemporaryDirectory() as folder:
        told = [Path(folder, name) for name in ("stdout", "stderr")]
        process = processes.Process(target=_python, args=(command[2], command[3:], cwd, dict(env), told))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, process.exitcode, *(file.read_text() for file in told))


def _python(code: str, arguments: list[str], cwd: Path, env: dict[str, str], told: list[Path]) -> None:
    for stream, file in enumerate(told, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in env
    sys.argv = ["-c", *arguments]
    sys.path[:] = ["", *(place for place in sys.path if place != ROOT)]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
