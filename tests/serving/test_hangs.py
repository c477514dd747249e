"""Servers whose model does not return: they get no more requests, end with the reason in their log, and come back."""

import contextlib
import os
import re
import sys
import threading
import time

import httpx
import pytest

from dagster_mlops.core.waits import wait_while
from dagster_mlops.serving import stop
from dagster_mlops.serving.local.state import load_all
from dagster_mlops.serving.packager import Server
from tests.support.hanging_server import HANG, HANG_WITH_LOCK
from tests.support.small_packages import SERVER, Deployment

pytestmark = pytest.mark.thorough  # a server imports MLflow
TIMEOUT = 2.0  # seconds that a server gives a call


@pytest.fixture(scope="module")
def deployment(tmp_path_factory):
    script = str(SERVER.with_name("hanging_server.py"))
    environment = {"THREADS": "2", "TIMEOUT": f"{TIMEOUT:g}"}
    server = lambda port: Server(command=[sys.executable, script, str(port), "2"], environment=environment)  # noqa: E731
    deployment = Deployment(tmp_path_factory.mktemp("serving"), server=server, request_timeout=TIMEOUT + 1)
    deployment.roll_out("2")
    yield deployment
    stop(deployment.state_dir)


def pids(deployment: Deployment) -> list[int]:
    """The process of each replica; 0 for one that is not ready."""
    found = []
    for url in load_all(deployment.state_dir)[-1].urls:
        try:
            answer = httpx.get(f"{url}/readyz", timeout=0.5, trust_env=False)
            found.append(answer.json()["pid"] if answer.status_code == 200 else 0)
        except httpx.HTTPError:
            found.append(0)
    return found


def until(condition) -> None:
    wait_while(lambda: not condition(), timeout=60, error=lambda _: AssertionError("waited in vain"))


def log_of(deployment: Deployment) -> str:
    return next((deployment.state_dir / "logs").glob("2-*.log")).read_text()


@pytest.mark.parametrize(
    ("seconds", "count", "reason"),
    [
        (HANG, 1, "the model has not returned for 4 s; it was asked for {0}. This server ends"),
        (HANG, 2, "the model has not returned for 4 s; it was asked for {0}. This server ends"),
        (HANG_WITH_LOCK, 1, "Timeout ("),
    ],
    ids=["one of two threads", "all threads", "with Python's lock"],
)
def test_a_server_that_hangs_gets_no_requests_ends_and_comes_back(deployment, seconds, count, reason, request):
    before, logged = pids(deployment), len(log_of(deployment))
    assert 0 not in before
    name = re.sub(r"\W", "-", request.node.callspec.id)
    urls = load_all(deployment.state_dir)[-1].urls
    row = {"rows": [{"x": 1.0, "seconds": seconds}]}

    def hang(number: int) -> None:
        with contextlib.suppress(httpx.HTTPError):
            httpx.post(f"{urls[0]}/predict", json=row, headers={"x-request-id": f"{name}-{number}"}, timeout=60)

    threads = [threading.Thread(target=hang, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    until(lambda: pids(deployment)[0] == 0)
    time.sleep(5 if seconds == HANG_WITH_LOCK else 1)  # two health checks: of a server that says no, or says nothing
    codes = []
    while pids(deployment) != before and len(codes) < 20 and pids(deployment)[0] == 0:
        codes.append(deployment.ask(3.0).status_code)
    assert set(codes) <= {200}
    until(lambda: 0 not in pids(deployment))
    after = pids(deployment)
    assert after[0] != before[0] and after[1] == before[1]
    text = log_of(deployment)[logged:]
    assert reason.format(f"{name}-0") in text or reason.format(f"{name}-1") in text
    assert "in predict" in text, "the stack says where"
    for thread in threads:
        thread.join()
    assert deployment.ask(3.0).json()["predictions"] == [6.0]


def test_a_call_below_the_timeout_ends_nothing_and_one_that_returns_late_makes_its_server_ready_again(deployment):
    before = pids(deployment)
    assert deployment.ask(3.0, seconds=0.8 * TIMEOUT).json()["predictions"] == [6.0]
    assert deployment.ask(3.0, seconds=1.5 * TIMEOUT).status_code == 504
    until(lambda: pids(deployment) == before)
    assert all(map(os.path.exists, (f"/proc/{pid}" for pid in before)))


def test_the_requests_of_other_threads_are_answered_before_a_server_ends(deployment):
    before, url = pids(deployment), load_all(deployment.state_dir)[-1].urls[0]
    rows = lambda seconds: {"rows": [{"x": 1.0, "seconds": seconds}]}  # noqa: E731
    late = httpx.post(f"{url}/predict", json=rows(HANG), timeout=60)
    assert late.status_code == 504
    # The server is not ready now, and has another thread.
    assert httpx.post(f"{url}/predict", json=rows(0.7 * TIMEOUT), timeout=60).status_code == 200
    assert pids(deployment)[0] in (0, before[0])
    until(lambda: pids(deployment)[0] not in (0, before[0]))
