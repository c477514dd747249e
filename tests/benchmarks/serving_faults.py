"""Requests that fail while deployments are switched, rolled back and killed in every way, under constant load.

Each request has an id and an `x` of its own. Those that were sent, answered and logged are compared row by row.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import httpx

from dagster_mlops.core.processes import identity
from dagster_mlops.serving import Access, PredictionLog, repair, rollback, status, stop
from dagster_mlops.serving.local import envoy, processes, supervision
from dagster_mlops.serving.local.state import load_all
from tests.benchmarks.bento_deployment import HANG, BentoDeployment
from tests.benchmarks.measure import ROOT, console, show
from tests.support.small_packages import Deployment

DEPLOYS, BENTO_DEPLOYS, ROLLBACKS, CHANGES, CONCURRENCY, LONG_CALL, PAUSE = 20, 5, 5, 20, 16, 28.0, 0.1
# Of the rollout: a run is killed when the newest deployment is in this phase.
EVERYTHING = ("server supervisor", "envoy supervisor", "server replica-0", "server replica-1", "envoy envoy")
PHASES = ("starting", "verifying", "switching", "draining")


@dataclass(frozen=True)
class Answer:
    """A request and its end; code 0 is a connection that broke."""

    request_id: str
    x: float
    start: float
    end: float
    code: int
    prediction: float | None


@dataclass
class Load:
    """Requests from many clients through the public port, each with an id of its own, and what became of them."""

    deployment: Deployment
    answers: list["Answer"] = field(default_factory=list)
    killed_at: float = 0
    _numbers: Iterator[int] = field(default_factory=count)
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def ask(self, client: httpx.Client, seconds: float = 0) -> int:
        """Send one row."""
        request_id, start, x = uuid.uuid4().hex, time.monotonic(), float(next(self._numbers))
        body, code, prediction = {"rows": [{"x": x, "seconds": seconds}]}, 0, None
        try:
            response = client.post("/predict", json=body, headers={"x-request-id": request_id})
            code = response.status_code
            prediction = response.json()["predictions"][0] if code == 200 else None
        except httpx.HTTPError:
            pass
        self.answers.append(Answer(request_id, x, start, time.monotonic(), code, prediction))
        return code

    def _run(self) -> None:
        with self.client() as client:
            while not self._over.is_set():
                self.ask(client)
                time.sleep(PAUSE)

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.deployment.url, timeout=60, trust_env=False)

    def long_call(self) -> threading.Thread:
        """Start a call that is in flight for most of the request timeout."""
        thread = threading.Thread(target=lambda: self.ask(self.client(), LONG_CALL))
        thread.start()
        self._threads.append(thread)
        return thread

    @contextmanager
    def running(self) -> Iterator[None]:
        """Load until the block ends, and until its long calls have ended."""
        workers = [threading.Thread(target=self._run) for _ in range(CONCURRENCY)]
        for worker in workers:
            worker.start()
        try:
            yield
        finally:
            for call in self._threads:
                call.join()
            self._over.set()
            for worker in workers:
                worker.join()


def run(rounds: int | None = None) -> dict[str, Any]:
    """Switch `rounds` times under load, then kill each part of it, and count what failed."""
    with tempfile.TemporaryDirectory(prefix="serving-faults-") as folder:
        return _run(Deployment(Path(folder) / "state"), rounds or DEPLOYS)


def run_bento(rounds: int | None = None) -> dict[str, Any]:
    """The same with the generic service of a bento, whose model then hangs, too."""
    with tempfile.TemporaryDirectory(prefix="serving-faults-") as folder:
        return _run(BentoDeployment.built(Path(folder)), rounds or BENTO_DEPLOYS)


def _run(deployment: Deployment, deploys: int) -> dict[str, Any]:
    found: dict[str, Any] = {"events": {}}
    load = Load(deployment)
    try:
        deployment.roll_out("1")
        with load.running():
            _measure(load, found["events"], deploys)
    finally:
        stop(deployment.state_dir)
    codes = Counter(answer.code for answer in load.answers)
    log = PredictionLog.read(deployment.state_dir / "predictions", columns=["request_id", "x", "output"])
    rows = dict(zip(log.request_id, zip(log.x, log.output, strict=True), strict=True))
    good = [answer for answer in load.answers if answer.code == 200]
    found |= {
        "sent": len(load.answers),
        "answered": len(good),
        "codes": {str(code): number for code, number in sorted(codes.items())},
        "answered but not logged": sum(answer.request_id not in rows for answer in good),
        "answered otherwise than logged": sum(
            rows.get(answer.request_id, (answer.x, answer.prediction)) != (answer.x, answer.prediction)
            for answer in good
        ),
        "logged twice": len(log) - len(rows),
        "logged but not answered": len(rows.keys() - {answer.request_id for answer in good}),
        "logged but not sent": len(rows.keys() - {answer.request_id for answer in load.answers}),
    }
    show(
        f"{type(deployment).__name__}: {CONCURRENCY} clients, two replicas",
        ["", "requests", "failed in flight", "failed others", "outage, s", "whole after, s"],
        [(name, *event.values()) for name, event in found["events"].items()],
    )
    console.print({name: value for name, value in found.items() if name != "events"})
    return found


def _measure(load: Load, events: dict[str, Any], deploys: int) -> None:
    deployment = load.deployment
    versions = iter(str(number) for number in range(2, 10_000))

    def deploy() -> None:
        deployment.roll_out(next(versions))

    def deploy_under_long_call() -> None:
        call = load.long_call()
        time.sleep(0.5)
        deploy()
        call.join()

    def event(name: str, act: Callable[[], Any]) -> None:
        _event(load, events, name, act)

    def kill(*names: str) -> None:
        _kill(load, names)

    event(f"{deploys} switches", lambda: [deploy() for _ in range(deploys)])
    event(f"switch, a call of {LONG_CALL:g} s in flight", deploy_under_long_call)
    event(f"{CHANGES} changes of limits, a call of {LONG_CALL:g} s in flight", lambda: _change_limits(load))
    event("kill a replica", lambda: kill("server replica-0"))
    event("kill the other replica", lambda: kill("server replica-1"))
    event("kill both replicas", lambda: kill("server replica-0", "server replica-1"))
    event("kill Envoy", lambda: kill("envoy envoy"))
    event("kill both supervisors", lambda: kill("server supervisor", "envoy supervisor"))
    event("repair after that", lambda: repair(deployment.state_dir))
    event("kill an adopted replica", lambda: kill("server replica-0"))
    event("kill the adopted Envoy", lambda: kill("envoy envoy"))
    parent = ("server parent",) if isinstance(deployment, BentoDeployment) else ()
    if parent:
        event("kill the parent of the replicas", lambda: kill(*parent))
    event("kill everything, repair", lambda: (kill(*EVERYTHING, *parent), repair(deployment.state_dir)))
    if parent:
        event("a model that hangs", lambda: _hang(load))
    for phase in PHASES:
        event(f"kill a run while {phase}, run again", lambda p=phase: _killed_run(load, next(versions), p))
    # Last: what was rolled back is not deployed again, and there is one bento only.
    event(f"{ROLLBACKS} rollbacks", lambda: [rollback(deployment.state_dir) for _ in range(ROLLBACKS)])


def _change_limits(load: Load) -> None:
    """Give Envoy other limits again and again, while a call is in flight."""
    call = load.long_call()
    for size in range(CHANGES):
        time.sleep(0.5)
        envoy.ensure(load.deployment.state_dir, load.deployment.port, Access(request_bytes=2**20 + size))
    call.join()


def _hang(load: Load) -> None:
    """Let the model of one replica hang, and wait until its process has ended."""
    before = set(status(load.deployment.state_dir)[-1]["pids"])
    with load.client() as client:
        load.ask(client, HANG)
    while before <= set(status(load.deployment.state_dir)[-1]["pids"]):
        time.sleep(0.1)
    load.killed_at = time.monotonic()


def _event(load: Load, events: dict[str, Any], name: str, act: Callable[[], Any]) -> None:
    """Act under load, wait until all is well again, and count what failed since.

    A request is in flight when it was sent before a process was killed, and ended after that. An outage is the longest
    time in which no request was answered, where any failed.
    """
    _await_health(load.deployment)
    time.sleep(1)
    load.killed_at, first, start = 0, len(load.answers), time.monotonic()
    act()
    _await_health(load.deployment)
    whole = time.monotonic() - start
    time.sleep(2)  # requests that waited show here
    answers = load.answers[first:]
    failures = [answer for answer in answers if answer.code != 200]
    in_flight = sum(answer.start < load.killed_at for answer in failures)
    good = sorted(answer.end for answer in load.answers[max(0, first - CONCURRENCY) :] if answer.code == 200)
    outage = max((b - a for a, b in pairwise(good)), default=0.0) if failures else 0.0
    events[name] = {
        "requests": len(answers),
        "failed in flight": in_flight,
        "failed others": len(failures) - in_flight,
        "outage": outage,
        "whole": whole,
    }


def _await_health(deployment: Deployment) -> None:
    deadline = time.monotonic() + 120
    while True:
        rows = status(deployment.state_dir)
        states = [state for state in load_all(deployment.state_dir) if state.phase == "live"]
        if rows and rows[-1]["healthy"] and states and _answer(states[-1].urls):
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"not healthy: {rows}")
        time.sleep(0.02)


def _answer(urls: list[str]) -> bool:
    try:
        return all(httpx.get(f"{url}/readyz", trust_env=False).status_code == 200 for url in urls)
    except httpx.HTTPError:
        return False


def _kill(load: Load, names: Sequence[str]) -> None:
    """Kill processes named as ``server replica-0``, supervisors first."""
    folder = load.deployment.state_dir
    victims = {
        f"{role.partition(':')[0]} {processes.mark(process, processes.PROGRAM)}": process.pid
        for role, group in processes.marked(folder).items()
        for process in group
    }
    for role in processes.marked(folder):  # forked ones have the mark of their parent
        victims |= {f"{role.partition(':')[0]} {name}": pid for name, pid in supervision._pids(folder, role).items()}
    for name in names:
        os.kill(victims[name], signal.SIGKILL)
    # Until the system has taken a process apart, its port takes requests.
    while any(identity(victims[name]) for name in names):
        time.sleep(0.001)
    load.killed_at = time.monotonic()


def _killed_run(load: Load, version: str, phase: str) -> None:
    """Kill a process that rolls out when a deployment is in a phase, with a long call in flight; roll out again."""
    deployment, call = load.deployment, load.long_call()
    kind = type(deployment).__name__
    target = [kind, str(deployment.state_dir), str(deployment.port), version]
    with subprocess.Popen([sys.executable, "-m", "tests.benchmarks.serving_faults", *target], cwd=ROOT) as child:
        while child.poll() is None and not any(state.phase == phase for state in load_all(deployment.state_dir)):
            time.sleep(0.001)
        os.kill(child.pid, signal.SIGKILL)
    deployment.roll_out(version)
    call.join()


if __name__ == "__main__":
    kinds = {"Deployment": Deployment, "BentoDeployment": BentoDeployment}
    kinds[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3])).roll_out(sys.argv[4])
