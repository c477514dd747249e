"""Processes of their own for tests of Feast, forked from a server that has imported it: each would take seconds to."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from dagster_mlops.core import child

# Not plain forks: the threads of Arrow and DuckDB would not survive them.
processes = multiprocessing.get_context("forkserver")
# Only what is installed: the server does not know the path of the tests, and says nothing of what it cannot import.
processes.set_forkserver_preload(
    ["feast.cli.cli", "feast.infra.compute_engines.local.compute", "dagster_mlops.feast.offline_store"]
)
ROOT = str(Path(__file__).resolve().parents[2])
start = child.start


@pytest.fixture(scope="module")
def quick_feast():
    """Feast is imported already in the processes in which the library runs it. (Not so in feast/test_feast.py.)"""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(child, "start", quick_start)
        yield


def quick_start(command: Sequence[str], *, keep: Sequence[int] = (), **how: Any) -> Any:
    """A process that does what ``python -c CODE ARGUMENTS DESCRIPTOR`` does; of other programs, the plain one."""
    if command[0] != sys.executable or "-c" not in command:
        return start(command, keep=keep, **how)
    at = command.index("-c") + 1
    return Forked(command[at], command[at + 1 :], how["cwd"], how["env"] or os.environ, keep[0])


class Forked:
    """A process of the fork server, as far as it looks like a `subprocess.Popen`."""

    def __init__(self, code: str, arguments: Sequence[str], cwd: Path, env: Mapping[str, str], answers: int) -> None:
        self.args = ["python", "-c", code, *arguments]
        requests, stdin = os.pipe()
        stdout, printed = os.pipe()
        inherited = [
            Connection(requests, writable=False),
            Connection(printed, readable=False),
            Connection(os.dup(answers), readable=False),
        ]
        self._process = processes.Process(target=_python, args=(code, arguments[:-1], cwd, dict(env), inherited))
        self._process.start()
        for connection in inherited:
            connection.close()
        self.pid = self._process.pid
        self.stdin, self.stdout = os.fdopen(stdin, "wb", buffering=0), os.fdopen(stdout, "rb", buffering=0)

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self._process.exitcode

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, *error: object) -> None:
        self.stdin.close()
        self.stdout.close()
        self._process.kill()  # where it had no group of its own yet
        self._process.join()


def _python(code: str, arguments: list[str], cwd: Path, env: dict[str, str], inherited: list[Connection]) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    requests, printed, answers = (connection.fileno() for connection in inherited)
    os.dup2(requests, 0)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    for connection in inherited[:2]:  # the parent sees the end of a pipe that nobody else holds open
        connection.close()
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.dont_write_bytecode = True
    sys.argv = ["-c", *arguments, str(answers)]
    sys.path[:] = ["", *(place for place in sys.path if place != ROOT)]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
