"""Blue/green rollout of a package on this machine: serve, verify, switch, drain; safe to kill anywhere and re-run."""

import dataclasses
import hashlib
import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from logging import Logger
from typing import Any

from dagster_mlops.core.files import write_atomically
from dagster_mlops.core.waits import wait_while
from dagster_mlops.errors import DeploymentError
from dagster_mlops.provenance import Deployment, Package, mask_credentials
from dagster_mlops.serving import envoy, processes
from dagster_mlops.serving.golden_set import Golden
from dagster_mlops.serving.packager import Server
from dagster_mlops.serving.state import ENDED, SERVER, DeploymentState, load_all, lock, utc_now
from dagster_mlops.serving.target import LocalTarget, probe


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A package and how it is to be served. Two plans with the same fingerprint need one server."""

    name: str
    package: Package
    server: Callable[[int], Server]  # by port
    target: LocalTarget
    prediction_log: str
    golden_hash: str
    golden: Callable[[], Golden]
    environment: Mapping[str, str] = field(default_factory=dict)  # what the user adds to the server's own
    facts: Mapping[str, Any] = field(default_factory=dict)  # fields of the Deployment record, from the Dagster run
    log_sync_seconds: float = 1
    route: str = ""  # the server's own unless given
    tolerance: float = 1e-9
    ready_timeout: float = 120
    drain_seconds: float = 5

    @property
    def fingerprint(self) -> str:
        """A hash of everything that asks for a server of its own when it changes."""
        package = self.package
        facts = [self.name, package.tool, package.tag, package.home, self.target.port, self.prediction_log, self.route]
        environment = {**self.server(0).environment, **self.environment}  # whatever its port
        text = json.dumps([*facts, self.log_sync_seconds, sorted(environment.items())])
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def rollout(plan: Plan, log: Logger) -> tuple[DeploymentState, bool]:
    """Bring the plan's package live and stop the one before; also return whether a new server was needed.

    The steps are written to the state folder before they are taken, and every process carries a mark in its
    environment. A rollout that starts after another was killed first takes stock: it finishes a switch that had
    happened, and stops every server that is not live.

    Raises:
        DeploymentError: the server does not come up, its predictions differ, or it does not answer through the public
            port. What was live before then still is.
    """
    target = plan.target
    with lock(target.state_dir, timeout=plan.ready_timeout):
        current = _take_stock(target, log)
        envoy.ensure(target.state_dir, target.port)
        if current and current.fingerprint == plan.fingerprint and current.alive() and not probe(current.url, current):
            target.shift(current)
            if current.golden_hash != plan.golden_hash:
                current = _verified(plan, current, plan.golden())
            target.await_public(current)
            return current.save(phase="live"), False
        start = time.monotonic()
        new = _start(plan, log)
        try:
            golden = plan.golden()
            new = _await_ready(plan, new, start, log).save(phase="verifying")
            new = _verified(plan, new, golden)
            log.info(f"{len(golden.rows)} golden predictions agree to {new.record.golden_max_difference:g}; switching.")
            new = _switch(target, new, current)
        except BaseException as error:
            target.shift(current)
            target.stop(new)
            new.end("failed", mask_credentials(str(error))[:2000])
            if current is None:  # a port that answers nothing but 503 would look like a deployment
                envoy.stop(target.state_dir)
            raise
        new = new.save(phase="live", record=dataclasses.replace(new.record, traffic=1.0))
        if current:
            _retire(plan, current, new, log)
        return new, True


def _take_stock(target: LocalTarget, log: Logger) -> DeploymentState | None:
    """Finish or undo what a killed rollout left, and return the deployment that traffic goes to, dead or alive."""
    states = [state for state in load_all(target.state_dir) if state.phase not in ENDED]
    routed = envoy.routed(target.state_dir)
    serving = [s for s in states if s.id == routed and s.phase in ("switching", "live")]
    serving += [s for s in states if s.phase == "live" and s.id != routed]
    current = next((s for s in serving if s.alive()), serving[0] if serving else None)
    for role, group in processes.marked(target.state_dir).items():
        if role.startswith(SERVER) and not (current and role == current.role):
            processes.stop(group)
            log.info(f"Stopped {role.removeprefix(SERVER)}, which an interrupted rollout left behind.")
    for state in states:
        if current is None or state.id != current.id:
            state.end("stopped", "interrupted")
    if current and current.phase == "switching":
        current = current.save(phase="live", record=dataclasses.replace(current.record, traffic=1.0))
    return current


def _start(plan: Plan, log: Logger) -> DeploymentState:
    package, target = plan.package, plan.target
    version = package.tag.partition(":")[2]
    record = Deployment(
        tool=package.tool,
        name=plan.name,
        id=f"{version}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(2)}",
        package=package.tag,
        model_name=package.model_name,
        model_version=package.model_version,
        url=target.url,
        state_dir=str(target.state_dir),
        prediction_log=plan.prediction_log,
        traffic=0.0,
        started=utc_now(),
        upstream=(package.ref,),
        **plan.facts,
    )
    port = processes.free_port()
    server = plan.server(port)
    state = DeploymentState(
        record=record,
        phase="starting",
        port=port,
        fingerprint=plan.fingerprint,
        golden_hash=plan.golden_hash,
        probe=secrets.token_hex(16),
        readiness=server.readiness,
        route=plan.route or server.route,
        rows_field=server.rows_field,
    ).save()
    environment = {
        "DAGSTER_MLOPS_DEPLOYMENT": f"{record.name}/{record.id}",
        "DAGSTER_MLOPS_PREDICTION_LOG": record.prediction_log,
        "DAGSTER_MLOPS_PREDICTION_LOG_SYNC": f"{plan.log_sync_seconds:g}",
        "DAGSTER_MLOPS_PROBE": state.probe,
        **plan.environment,
    }
    log.info(f"Serving {package.tag} on {state.url} as {state.id}; its output is in {target.log_file(state)}.")
    return target.start(state, server, environment)


def _await_ready(plan: Plan, state: DeploymentState, start: float, log: Logger) -> DeploymentState:
    log_file = plan.target.log_file(state)
    begin = reported = time.monotonic()

    def failure(reason: str) -> DeploymentError:
        return DeploymentError(
            f"the server of {state.record.package} {reason}. The end of {log_file}:\n{processes.tail(log_file)}"
        )

    def problem() -> str:
        nonlocal reported
        reason = probe(state.url, state)
        if reason and not state.alive():
            raise failure("ended before it was ready")
        if reason and time.monotonic() - reported >= 5:
            reported = time.monotonic()
            log.info(f"{state.id} is not ready after {reported - begin:.0f} s.")
        return reason

    late = f"was not ready within {plan.ready_timeout:g} s"
    wait_while(problem, timeout=plan.ready_timeout, error=lambda _: failure(late), pause=0.1)
    return state.save(ready_seconds=round(time.monotonic() - start, 3))


def _verified(plan: Plan, state: DeploymentState, golden: Golden) -> DeploymentState:
    difference = golden.compare(state.url, state, tolerance=plan.tolerance, timeout=plan.target.request_timeout)
    sample = {"rows": golden.rows[:50], "expected": golden.expected[:50]}
    golden_file = plan.target.state_dir / "golden" / f"{state.id}.json"
    write_atomically(golden_file, json.dumps(sample), private=True, durable=True)
    record = dataclasses.replace(state.record, golden_rows=len(golden.rows), golden_max_difference=difference)
    return state.save(record=record, golden_hash=plan.golden_hash)


def _switch(target: LocalTarget, new: DeploymentState, current: DeploymentState | None) -> DeploymentState:
    """Through the proxy by header first; only when that answers, for everyone."""
    target.shift(current, new)
    target.await_public(new, selected=True)
    new = new.save(phase="switching")
    start = time.monotonic()
    target.shift(new, current)
    target.await_public(new)
    return new.save(switch_seconds=round(time.monotonic() - start, 3))


def _retire(plan: Plan, old: DeploymentState, new: DeploymentState, log: Logger) -> None:
    old.save(phase="draining")
    if old.alive():
        log.info(f"Draining {old.id} for {plan.drain_seconds:g} s.")
        time.sleep(plan.drain_seconds)
    plan.target.shift(new)
    plan.target.stop(old)
    old.end("stopped")
