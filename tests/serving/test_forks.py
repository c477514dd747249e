"""Replicas that are forked from one process: killed ones come back from it, and it may be killed itself."""

import os
import sys
import threading
from pathlib import Path

import httpx
import pytest

from dagster_mlops.core.processes import identity
from dagster_mlops.core.waits import wait_while
from dagster_mlops.errors import DeploymentError
from dagster_mlops.serving import repair, rollback, status, stop
from dagster_mlops.serving.local import envoy, forks, processes, supervision
from dagster_mlops.serving.local.program import PARENT
from dagster_mlops.serving.local.state import load_all
from dagster_mlops.serving.packager import Server
from tests.support.small_packages import Deployment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="replicas are not forked elsewhere")
ROOT = Path(__file__).parents[2]
PRELOAD = ("http.server", "uuid:getnode", "not_installed_here")


def server(port: int, version: str, **environment: str) -> Server:
    command = [sys.executable, "-P", "-m", "tests.support.small_server", str(port), version]
    return Server(command=command, environment={"PYTHONPATH": str(ROOT), **environment}, preload=PRELOAD)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory):
    deployment = Deployment(tmp_path_factory.mktemp("serving"), server=lambda port: server(port, "2"))
    deployment.roll_out("2")
    yield deployment
    stop(deployment.state_dir)


def until(condition, seconds: float = 60) -> None:
    wait_while(lambda: not condition(), timeout=seconds, error=lambda _: AssertionError("waited in vain"))


def role(deployment: Deployment) -> str:
    return [state for state in load_all(deployment.state_dir) if state.phase == "live"][-1].role


def replicas(deployment: Deployment) -> dict[str, int]:
    """The process of each replica that answers as itself; 0 for others."""
    pids = supervision.pids(deployment.state_dir, role(deployment))
    answers = {}
    for name, url in zip(sorted(pids), load_all(deployment.state_dir)[-1].urls, strict=True):
        try:
            answer = httpx.post(f"{url}/predict", json={"rows": [{"x": 1.0}]}, timeout=5, trust_env=False)
            answers[name] = pids[name] if answer.json()["pid"] == pids[name] else 0
        except httpx.HTTPError:
            answers[name] = 0
    return answers


def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, 9)
    until(lambda: not any(identity(pid) for pid in pids))


def parent(deployment: Deployment) -> int:
    """The process that forks; 0 when it does not run."""
    return supervision._pids(deployment.state_dir, role(deployment))[PARENT]


def children(pid: int) -> list[int]:
    return [child.pid for child in processes.psutil.Process(pid).children()] if pid else []


def test_killed_replicas_are_forked_again_by_the_same_process(deployment):
    until(lambda: all(replicas(deployment).values()))
    before, source = replicas(deployment), parent(deployment)
    assert {processes.psutil.Process(pid).ppid() for pid in before.values()} == {source}
    for victims in (["replica-0"], ["replica-0", "replica-1"]):
        former = replicas(deployment)
        kill(*(former[name] for name in victims))
        until(lambda: all(replicas(deployment).values()))
        after = replicas(deployment)
        assert {name for name in after if after[name] != former[name]} == set(victims)
    assert parent(deployment) == source
    assert deployment.ask(3.0).json()["predictions"] == [6.0]
    assert status(deployment.state_dir)[0]["supervised"]


def test_replicas_outlive_the_process_that_forked_them_and_the_next_one_takes_them_over(deployment):
    until(lambda: all(replicas(deployment).values()))
    before = replicas(deployment)
    for _ in range(2):
        former = parent(deployment)
        kill(former)
        until(lambda former=former: parent(deployment) not in (0, former))
        until(lambda: len(children(parent(deployment))) == 2)  # which wait for the locks
        assert replicas(deployment) == before
        assert deployment.ask().status_code == 200
    group = lambda: {process.pid for process in processes.marked(deployment.state_dir)[role(deployment)]}  # noqa: E731
    # And the supervisor: copies of a process that was killed wait no more.
    until(lambda: len(group() - {*before.values(), parent(deployment), *children(parent(deployment))}) == 1)

    kill(before["replica-0"])
    until(lambda: all(replicas(deployment).values()))
    after = replicas(deployment)
    assert after["replica-1"] == before["replica-1"]
    assert after["replica-0"] in children(parent(deployment))


def test_a_repair_brings_all_back_after_supervisor_parent_and_replicas_were_killed(deployment):
    kill(*(process.pid for process in processes.marked(deployment.state_dir)[role(deployment)]))
    assert deployment.ask().status_code == 503
    repair(deployment.state_dir)
    until(lambda: all(replicas(deployment).values()))
    until(lambda: status(deployment.state_dir)[0]["healthy"])


def test_a_switch_waits_for_requests_and_leaves_no_process_and_a_rollback_forks_as_before(deployment):
    answers = []
    call = threading.Thread(target=lambda: answers.append(deployment.ask(seconds=2)))
    old = load_all(deployment.state_dir)[-1]
    call.start()
    until(lambda: envoy.open_requests(deployment.state_dir, old.id) == 1)
    new, started = deployment.roll_out("3", server=lambda port: server(port, "3"))
    call.join(30)
    assert started and answers[0].status_code == 200 and answers[0].json()["predictions"] == [2.0]
    assert not processes.marked(deployment.state_dir).get(old.role)
    assert deployment.ask().json()["predictions"] == [3.0]
    rollback(deployment.state_dir)
    assert deployment.ask().json()["predictions"] == [2.0]
    assert parent(deployment) and all(replicas(deployment).values())
    assert not processes.marked(deployment.state_dir).get(new.role)


def test_a_replica_that_ends_before_it_is_ready_fails_the_rollout_with_its_log(tmp_path):
    deployment = Deployment(tmp_path, server=lambda port: server(port, "two"))
    with pytest.raises(DeploymentError, match=r"ended before it was ready(.|\n)*could not convert string to float"):
        deployment.roll_out("2")
    assert not processes.marked(deployment.state_dir)


def test_an_import_that_starts_a_thread_makes_each_replica_a_program_of_its_own(tmp_path):
    (tmp_path / "starts_thread.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    )
    (tmp_path / "sleeper.py").write_text("import time\nprint('serving', flush=True)\ntime.sleep(600)\n")
    command = [sys.executable, "-P", "-m", "sleeper"]
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    program = supervision.Program(command, environment, tmp_path / "log", preload=["starts_thread"])
    supervision.start(tmp_path, "server:one", {"replica-0": program})
    try:
        until(lambda: "serving" in program.log.read_text() if program.log.exists() else False)
        [pid] = supervision.pids(tmp_path, "server:one").values()
        assert processes.psutil.Process(pid).cmdline() == command
        kill_and_wait = supervision.pids(tmp_path, "server:one")["replica-0"]
        os.kill(kill_and_wait, 9)
        until(lambda: supervision.pids(tmp_path, "server:one")["replica-0"] not in (0, kill_and_wait))
    finally:
        supervision.stop(tmp_path, "server:one")
    assert "an import has started a thread" in program.log.read_text()


def test_forks_have_random_numbers_of_their_own_and_what_one_left_behind_is_ended(tmp_path):
    (tmp_path / "leaver.py").write_text(
        "import os, random, time, numpy\n"
        "print(f'drew {random.random()} {numpy.random.random()}\\n', end='', flush=True)\n"
        "if not os.fork():\n    print(f'left {os.getpid()}\\n', end='', flush=True)\n"
        "time.sleep(600)\n"
    )
    program = supervision.Program(
        [sys.executable, "-P", "-m", "leaver"],
        {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])},
        tmp_path / "log",
        preload=["numpy"],
    )

    def lines(word: str) -> list[str]:
        text = program.log.read_text() if program.log.exists() else ""
        return [line for line in text.splitlines() if line.startswith(word)]

    supervision.start(tmp_path, "server:one", {"replica-0": program, "replica-1": program}, grace=1)
    try:
        until(lambda: len(lines("left")) == 2)
        assert len({number for line in lines("drew") for number in line.split()[1:]}) == 4
        victim = supervision.pids(tmp_path, "server:one")["replica-0"]
        left = [int(line.split()[1]) for line in lines("left")]
        [own] = [pid for pid in left if os.getpgid(pid) == victim]
        os.kill(victim, 9)
        until(lambda: len(lines("left")) == 3)
        assert not identity(own), "it may hold a port"
        assert all(identity(pid) for pid in left if pid != own)
    finally:
        supervision.stop(tmp_path, "server:one", grace=1)


def test_a_replica_that_ends_at_once_again_and_again_is_started_after_growing_pauses(tmp_path):
    replica = forks._Replica(tmp_path, start=float("inf"))
    assert [replica.pause() for _ in range(4)] == [0, 1, 2, 3]
    replica.start = float("-inf")
    assert replica.pause() == 0
