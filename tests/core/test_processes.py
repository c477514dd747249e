"""The identity of a process, with real processes; and a clock that is set while one runs."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from dagster_mlops.core.processes import identity
from dagster_mlops.core.waits import wait_while
from dagster_mlops.provenance import Deployment
from dagster_mlops.serving.local import processes, supervision
from dagster_mlops.serving.local.state import DeploymentState, load, state_file

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def server(tmp_path):
    """A process that serves, and the state that a rollout keeps of it."""
    record = Deployment(
        name="m", id="1", package="m:1", model_name="m", model_version="1", url="http://l", state_dir=str(tmp_path),
        traffic=0.0, prediction_log="log", started="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    state = DeploymentState(
        record=record, phase="live", ports=[1], fingerprint="", golden_hash="", probe="", route="/predict"
    )
    program = supervision.Program(SLEEP, {}, tmp_path / "log")
    supervision.start(tmp_path, state.role, {"replica-0": program}, restart=True)
    wait_while(lambda: not state.alive(), timeout=30, error=lambda _: AssertionError("it does not start"))
    yield state.save()
    supervision.stop(tmp_path, state.role)


@pytest.fixture
def clock_set_back(tmp_path, monkeypatch):
    """The system's clock is an hour behind where it was: Linux then gives another time of boot in /proc/stat."""
    proc = tmp_path / "proc"
    proc.mkdir()
    for entry in os.listdir("/proc"):
        if entry != "stat":
            (proc / entry).symlink_to(Path("/proc", entry))
    lines = Path("/proc/stat").read_text().splitlines()
    btime = [f"btime {int(line.split()[1]) - 3600}" if line.startswith("btime ") else line for line in lines]
    (proc / "stat").write_text("\n".join(btime) + "\n")
    before = psutil.Process(os.getpid()).create_time()
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(proc))
    monkeypatch.setattr(psutil._pslinux, "BOOT_TIME", None, raising=False)  # a process that starts after the step
    psutil.boot_time()
    assert psutil.Process(os.getpid()).create_time() == pytest.approx(before - 3600, abs=5)  # the trap is there


@pytest.mark.skipif(sys.platform != "linux", reason="a time of start that moves with the clock is Linux's")
def test_a_healthy_server_stays_alive_when_the_clock_is_set(server, clock_set_back):
    assert load(state_file(Path(server.record.state_dir), "1")).alive()


def test_a_server_without_a_supervisor_is_known_by_its_mark(server, tmp_path):
    older = dataclasses.replace(server, record=dataclasses.replace(server.record, id="0"))
    assert not older.alive()
    pid = processes.spawn(SLEEP, state_dir=tmp_path, role=older.role, environment={}, log=tmp_path / "log")
    assert older.alive()
    processes.stop([psutil.Process(pid)])
    assert not older.alive() and server.alive()


def test_the_dead_and_zombies_have_no_identity():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = identity(child.pid)
    assert name and name == identity(child.pid) != identity(os.getpid())
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # has ended, and stays a zombie
    assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE and identity(child.pid) == ""
    child.communicate()
    assert identity(child.pid) == ""


def test_a_name_with_spaces_and_parentheses_does_not_confuse(tmp_path):
    program = tmp_path / "a ) R 1 (b"
    program.symlink_to("/bin/sleep")
    child = subprocess.Popen([str(program), "60"])
    try:
        ticks = round((psutil.Process(child.pid).create_time() - psutil.boot_time()) * os.sysconf("SC_CLK_TCK"))
        assert int(identity(child.pid).rpartition(":")[2]) == pytest.approx(ticks, abs=1)
    finally:
        child.kill()
        child.wait()
