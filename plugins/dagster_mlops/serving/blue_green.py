"""Blue/green rollout of a bento on this machine: serve, verify, switch, drain; safe to kill anywhere and re-run."""

import dataclasses
import hashlib
import json
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from logging import Logger
from pathlib import Path
from typing import Any

from dagster_mlops.core.extras import extra
from dagster_mlops.core.files import write_atomically
from dagster_mlops.core.processes import identity
from dagster_mlops.errors import DeploymentError
from dagster_mlops.provenance import Deployment, Package
from dagster_mlops.serving import envoy as proxy
from dagster_mlops.serving import processes
from dagster_mlops.serving.golden_set import Golden
from dagster_mlops.serving.state import ENDED, DeploymentState, load_all, lock, utc_now


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to serve where. Two plans with the same fingerprint need one server."""

    name: str
    bento: Package
    state_dir: Path
    port: int
    environment: Mapping[str, str]
    prediction_log: str
    golden_hash: str
    golden: Callable[[], Golden]
    extra_environment: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)  # fields of the Deployment record, from the Dagster run
    route: str = "/predict"
    tolerance: float = 1e-9
    ready_timeout: float = 120
    drain_seconds: float = 5
    request_timeout: float = 30

    @property
    def fingerprint(self) -> str:
        asked = [self.name, self.bento.tag, self.bento.home, self.port, self.prediction_log, self.route]
        text = json.dumps([*asked, sorted(self.extra_environment.items())])
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def rollout(plan: Plan, log: Logger) -> tuple[DeploymentState, bool]:
    """Bring the plan's bento live and stop the one before; say whether a new server was needed.

    The steps are written to the state folder before they are taken, and every process carries a mark in its
    environment. A rollout that starts after another was killed first takes stock: it finishes a switch that had
    happened, and stops every server that is not live.

    Raises:
        DeploymentError: the server does not come up, its predictions differ, or it does not answer through the public
            port. What was live before then still is.
    """
    with lock(plan.state_dir, timeout=plan.ready_timeout):
        current = _take_stock(plan.state_dir, log)
        proxy.ensure(plan.state_dir, plan.port)
        if current and current.fingerprint == plan.fingerprint and ready(current):
            proxy.route(plan.state_dir, current.id, {current.id: current.port}, request_timeout=plan.request_timeout)
            if current.golden_hash != plan.golden_hash:
                current = _verified(plan, current, plan.golden())
            _await_public(plan, current, {})
            return current.save(phase="live"), False
        start = time.monotonic()
        new = _start(plan, log)
        try:
            golden = plan.golden()
            new = _await_ready(plan, new, start, log).save(phase="verifying")
            new = _verified(plan, new, golden)
            log.info(f"{len(golden.rows)} golden predictions agree to {new.record.golden_max_difference:g}; switching.")
            new = _switch(plan, new, current)
        except BaseException as error:
            _withdraw(plan, new, current, error)
            raise
        new = new.save(phase="live", record=dataclasses.replace(new.record, traffic=1.0))
        if current:
            _retire(plan, current, new, log)
        return new, True


def _take_stock(state_dir: Path, log: Logger) -> DeploymentState | None:
    """Finish or undo what a killed rollout left, and return the deployment that traffic goes to, dead or alive."""
    states = [state for state in load_all(state_dir) if state.phase not in ENDED]
    target = proxy.routed(state_dir)
    serving = [s for s in states if s.id == target and s.phase in ("switching", "live")]
    serving += [s for s in states if s.phase == "live" and s.id != target]
    current = next((s for s in serving if s.alive()), serving[0] if serving else None)
    for role, found in processes.marked(state_dir).items():
        if role.startswith("bento:") and (current is None or role != current.role):
            log.info(f"Stopping {role.removeprefix('bento:')}, which an interrupted rollout left behind.")
            processes.stop(found)
    for state in states:
        if current is None or state.id != current.id:
            state.end("stopped", "interrupted")
    if current and current.phase == "switching":
        current = current.save(phase="live", record=dataclasses.replace(current.record, traffic=1.0))
    return current


def _start(plan: Plan, log: Logger) -> DeploymentState:
    version = plan.bento.tag.partition(":")[2]
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    record = Deployment(
        name=plan.name,
        id=f"{version}-{stamp}-{secrets.token_hex(2)}",
        package=plan.bento.tag,
        model_name=plan.bento.model_name,
        model_version=plan.bento.model_version,
        url=f"http://127.0.0.1:{plan.port}",
        state_dir=str(plan.state_dir),
        prediction_log=plan.prediction_log,
        traffic=0.0,
        started=utc_now(),
        upstream=(plan.bento.ref,),
    )
    record = dataclasses.replace(record, **plan.facts)
    state = DeploymentState(
        record=record,
        phase="starting",
        port=processes.free_port(),
        fingerprint=plan.fingerprint,
        golden_hash=plan.golden_hash,
        probe=secrets.token_hex(16),
        route=plan.route,
    ).save()
    server = [
        sys.executable,
        "-m",
        "bentoml",
        "serve",
        record.package,
        "--host",
        "127.0.0.1",
        "--port",
        str(state.port),
    ]
    environment = {
        **plan.environment,
        "DAGSTER_MLOPS_DEPLOYMENT": f"{record.name}/{record.id}",
        "DAGSTER_MLOPS_PREDICTION_LOG": record.prediction_log,
        "DAGSTER_MLOPS_PROBE": state.probe,
        **plan.extra_environment,
    }
    log.info(f"Serving {record.package} on {state.url} as {record.id}; its output is in {_log_file(plan, state)}.")
    pid = processes.spawn(
        server, state_dir=plan.state_dir, role=state.role, environment=environment, log=_log_file(plan, state)
    )
    return state.save(pid=pid, process=identity(pid))


def _await_ready(plan: Plan, state: DeploymentState, start: float, log: Logger) -> DeploymentState:
    begin = time.monotonic()
    told = 0.0
    while not ready(state):
        waited = time.monotonic() - begin
        if not state.alive() or waited > plan.ready_timeout:
            why = f"was not ready within {plan.ready_timeout:g} s" if state.alive() else "ended before it was ready"
            raise DeploymentError(
                f"the server of {state.record.package} {why}. The end of {_log_file(plan, state)}:\n"
                f"{processes.tail(_log_file(plan, state))}"
            )
        if waited - told >= 5:
            told = waited
            log.info(f"{state.id} is not ready after {waited:.0f} s.")
        time.sleep(0.1)
    return state.save(ready_seconds=round(time.monotonic() - start, 3))


def _verified(plan: Plan, state: DeploymentState, golden: Golden) -> DeploymentState:
    headers = {"x-probe": state.probe}
    difference = golden.compare(
        state.url, route=plan.route, headers=headers, tolerance=plan.tolerance, timeout=plan.request_timeout
    )
    kept = {"rows": golden.rows[:50], "expected": golden.expected[:50]}
    golden_file = plan.state_dir / "golden" / f"{state.id}.json"
    write_atomically(golden_file, json.dumps(kept), mode=0o600, durable=True)
    record = dataclasses.replace(state.record, golden_rows=len(golden.rows), golden_max_difference=difference)
    return state.save(record=record, golden_hash=plan.golden_hash)


def _switch(plan: Plan, new: DeploymentState, current: DeploymentState | None) -> DeploymentState:
    """Through the proxy by header first; only when that answers, for everybody."""
    backends = {s.id: s.port for s in (new, current) if s}
    old = current.id if current else None
    proxy.route(plan.state_dir, old, backends, request_timeout=plan.request_timeout)
    _await_public(plan, new, {proxy.SELECT_HEADER: new.id})
    new = new.save(phase="switching")
    start = time.monotonic()
    proxy.route(plan.state_dir, new.id, backends, request_timeout=plan.request_timeout)
    _await_public(plan, new, {})
    return new.save(switch_seconds=round(time.monotonic() - start, 3))


def _withdraw(plan: Plan, new: DeploymentState, current: DeploymentState | None, error: BaseException) -> None:
    proxy.route(
        plan.state_dir,
        current.id if current else None,
        {current.id: current.port} if current else {},
        request_timeout=plan.request_timeout,
    )
    processes.stop(processes.marked(plan.state_dir).get(new.role, []))
    new.end("failed", str(error)[:2000])


def _retire(plan: Plan, old: DeploymentState, new: DeploymentState, log: Logger) -> None:
    old.save(phase="draining")
    if old.alive():
        log.info(f"Draining {old.id} for {plan.drain_seconds:g} s.")
        time.sleep(plan.drain_seconds)
    proxy.route(plan.state_dir, new.id, {new.id: new.port}, request_timeout=plan.request_timeout)
    processes.stop(processes.marked(plan.state_dir).get(old.role, []))
    old.end("stopped")


def _await_public(plan: Plan, state: DeploymentState, headers: Mapping[str, str], *, timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout
    while problem := probe(f"http://127.0.0.1:{plan.port}", state.id, headers):
        if time.monotonic() > deadline:
            raise DeploymentError(
                f"{state.id} is ready, but does not answer through port {plan.port} after {timeout:g} s: {problem}. "
                f"The end of the Envoy log:\n{processes.tail(plan.state_dir / 'logs' / 'envoy.log')}"
            )
        time.sleep(0.05)


def probe(url: str, deployment_id: str, headers: Mapping[str, str] | None = None) -> str:
    """What keeps the deployment from answering at `url`; empty when it does."""
    httpx = extra("httpx", extra="bentoml")
    try:
        with processes.http_client(url, timeout=5) as client:
            answer = client.get("/readyz", headers=headers)
    except httpx.HTTPError as error:
        return f"{url} does not answer ({type(error).__name__})"
    if answer.status_code != 200:
        return f"{url}/readyz answers {answer.status_code}"
    by = answer.headers.get(proxy.DEPLOYMENT_HEADER)
    return "" if by == deployment_id else f"{url} is answered by {by}"


def ready(state: DeploymentState) -> bool:
    httpx = extra("httpx", extra="bentoml")
    try:
        with processes.http_client(state.url, timeout=5) as client:
            return state.alive() and client.get("/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def _log_file(plan: Plan, state: DeploymentState) -> Path:
    return plan.state_dir / "logs" / f"{state.id}.log"
