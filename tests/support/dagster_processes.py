"""Dagster's webserver and daemon as real processes, on a code location in a file."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dagster_graphql import DagsterGraphQLClient


class DagsterProcesses:
    """The processes of one instance; `home` has a ``dagster.yaml``, and their logs."""

    def __init__(self, home: Path, location: Path, environment: dict[str, str]) -> None:
        self.home, self.location = home, location
        self.environment = {**os.environ, **environment, "DAGSTER_HOME": str(home)}
        self.running: dict[str, subprocess.Popen[Any]] = {}

    def start(self, name: str, *arguments: str) -> None:
        """Start ``dagster-webserver`` or ``dagster-daemon`` in a process group."""
        command = [str(Path(sys.executable).with_name(name)), *arguments, "-f", str(self.location)]
        with (self.home / f"{name}.log").open("ab") as log:
            options: Any = {"env": self.environment, "cwd": self.location.parent, "start_new_session": True}
            self.running[name] = subprocess.Popen(command, stdout=log, stderr=log, **options)

    def kill(self, name: str) -> None:
        """Kill a process and its children at once."""
        process = self.running.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def log(self, name: str) -> str:
        """The end of a log."""
        return (self.home / f"{name}.log").read_text()[-3000:]


@contextmanager
def dagster_processes(
    home: Path, location: Path, port: int, environment: dict[str, str]
) -> Iterator[tuple[DagsterProcesses, DagsterGraphQLClient]]:
    """A webserver that answers on `port`, and a daemon."""
    processes = DagsterProcesses(home, location, environment)
    try:
        processes.start("dagster-webserver", "--host", "127.0.0.1", "--port", str(port))
        processes.start("dagster-daemon", "run")
        wait_until(lambda: _answers(port), lambda: processes.log("dagster-webserver"))
        yield processes, DagsterGraphQLClient("127.0.0.1", port_number=port)
    finally:
        for name in list(processes.running):
            processes.kill(name)


def wait_until(holds: Callable[[], Any], explain: Callable[[], str], seconds: float = 120) -> Any:
    """The value of `holds` when it is true; an error with an explanation if that takes too long."""
    end = time.monotonic() + seconds
    while not (value := holds()):
        if time.monotonic() > end:
            raise TimeoutError(explain())
        time.sleep(0.2)
    return value


def _answers(port: int) -> bool:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/server_info", timeout=5).status == 200
    except OSError:
        return False
