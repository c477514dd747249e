"""Requests whose replica was killed: sent again to another one, and scored and logged once at most."""

import os
import signal
import sys
import threading
import time
from collections import Counter

import httpx
import pytest

from dagster_mlops.core.waits import wait_while
from dagster_mlops.serving import PredictionLog, stop
from dagster_mlops.serving.local import envoy, supervision
from dagster_mlops.serving.local.state import load_all
from dagster_mlops.serving.packager import Server
from dagster_mlops.serving.runtime import Attempts
from dagster_mlops.serving.runtime.attempts import NUMBER, TOKEN
from tests.support.small_packages import SERVER, Deployment


def until(condition) -> None:
    wait_while(lambda: not condition(), timeout=60, error=lambda _: AssertionError("waited in vain"), pause=0.01)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory):
    server = lambda port: Server(  # noqa: E731
        command=[sys.executable, str(SERVER), str(port), "2"], environment={}, refuses_repeats=True
    )
    deployment = Deployment(tmp_path_factory.mktemp("serving"), server=server)
    deployment.roll_out("2")
    yield deployment
    stop(deployment.state_dir)


class Requests:
    """Requests that are sent at once, and their answers by id."""

    def __init__(self, deployment: Deployment, name: str, number: int, seconds: float) -> None:
        self.answers: dict[str, httpx.Response] = {}

        def ask(request_id: str) -> None:
            self.answers[request_id] = deployment.ask(seconds=seconds, headers={"x-request-id": request_id})

        self._threads = [threading.Thread(target=ask, args=(f"{name}-{n}",)) for n in range(number)]
        for thread in self._threads:
            thread.start()

    def codes(self) -> Counter[int]:
        """The codes of all answers, which are waited for."""
        for thread in self._threads:
            thread.join()
        return Counter(answer.status_code for answer in self.answers.values())


def replica(deployment: Deployment) -> int:
    """The process of a replica, once Envoy sends requests to both."""
    state = load_all(deployment.state_dir)[-1]
    until(lambda: all(supervision.pids(deployment.state_dir, state.role).values()))
    pids = set(supervision.pids(deployment.state_dir, state.role).values())
    until(lambda: {_pid(url) for url in state.urls} == pids)
    answers = lambda: [deployment.ask() for _ in range(20)]  # noqa: E731
    until(lambda: {answer.json()["pid"] for answer in answers() if answer.status_code == 200} == pids)
    return supervision.pids(deployment.state_dir, state.role)["replica-0"]


def _pid(url: str) -> int:
    try:
        answer = httpx.post(f"{url}/predict", json={"rows": [{"x": 1.0}]}, timeout=5, trust_env=False)
        return answer.json()["pid"]
    except httpx.HTTPError:
        return 0


def logged(deployment: Deployment, name: str) -> Counter[str]:
    rows = PredictionLog.read(load_all(deployment.state_dir)[-1].record.prediction_log)
    return Counter(rows.request_id[rows.request_id.str.startswith(f"{name}-")])


def test_requests_that_a_killed_replica_has_not_read_are_answered_by_the_other_one(deployment):
    pid, state = replica(deployment), load_all(deployment.state_dir)[-1]
    os.kill(pid, signal.SIGSTOP)  # the system takes requests for it, as it does while it takes a killed one apart
    requests = Requests(deployment, "unread", 8, 0)
    until(lambda: len(requests.answers) + envoy.open_requests(deployment.state_dir, state.id) == 8)
    assert envoy.open_requests(deployment.state_dir, state.id) > 0
    os.kill(pid, signal.SIGKILL)
    assert requests.codes() == {200: 8}
    assert logged(deployment, "unread") == dict.fromkeys(requests.answers, 1)


def test_requests_that_a_killed_replica_has_begun_are_not_scored_again(deployment):
    pid, state = replica(deployment), load_all(deployment.state_dir)[-1]
    notes = supervision._folder(deployment.state_dir, state.role) / "replica-0.begun"
    before = notes.read_bytes()
    requests = Requests(deployment, "begun", 6, 2)
    until(lambda: envoy.open_requests(deployment.state_dir, state.id) == 6)
    until(lambda: notes.read_bytes() != before)
    time.sleep(0.5)  # it has half of them
    os.kill(pid, signal.SIGKILL)
    assert set(requests.codes()) == {200, 503}
    refused = [answer for answer in requests.answers.values() if answer.status_code == 503]
    assert {answer.json()["error"] for answer in refused} == {"another process may have scored this request"}
    good = [request_id for request_id, answer in requests.answers.items() if answer.status_code == 200]
    assert logged(deployment, "begun") == dict.fromkeys(good, 1)


def test_a_request_goes_to_the_replica_that_has_none(deployment):
    replica(deployment)
    state = load_all(deployment.state_dir)[-1]
    slow = Requests(deployment, "slow", 1, 4)
    until(lambda: envoy.open_requests(deployment.state_dir, state.id) == 1)
    with httpx.Client(base_url=deployment.url, timeout=60, trust_env=False) as client:
        pids = {client.post("/predict", json={"rows": [{"x": 1.0}]}).json()["pid"] for _ in range(20)}
    assert slow.codes() == {200: 1}
    assert len(pids) == 1 and slow.answers["slow-0"].json()["pid"] not in pids


def test_what_any_process_has_begun_is_not_begun_again(tmp_path, monkeypatch):
    first = lambda token: {TOKEN: token, NUMBER: b"1"}  # noqa: E731
    second = lambda token: {TOKEN: token, NUMBER: b"2"}  # noqa: E731
    attempts = Attempts(tmp_path, "replica-0")
    assert (tmp_path / "replica-0.begun").stat().st_mode & 0o777 == 0o600
    assert attempts.begin(first(b"a")) and attempts.begin({}) and attempts.begin(second(b"never read"))
    next_one, other = Attempts(tmp_path, "replica-0"), Attempts(tmp_path, "replica-1")
    assert not next_one.begin(second(b"a")) and not other.begin(second(b"a"))
    assert next_one.begin(first(b"b")) and other.begin(second(b"c"))
    assert not attempts.begin(second(b"c"))
    for number in range(2**14):
        other.begin(first(b"%d" % number))
    assert not attempts.begin(second(b"9")) and other.begin(second(b"c")), "the oldest are forgotten"

    assert Attempts.from_environment() is None
    monkeypatch.setenv("DAGSTER_MLOPS_GROUP_DIR", str(tmp_path))
    monkeypatch.setenv("DAGSTER_MLOPS_PROGRAM", "replica-2")
    from_environment = Attempts.from_environment()
    assert from_environment and not from_environment.begin(second(b"9"))
