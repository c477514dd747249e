"""Blue/green rollout of a package on this machine: serve, verify, switch, drain; safe to kill anywhere and re-run."""

import dataclasses
import hashlib
import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from logging import Logger
from pathlib import Path
from typing import Any

from dagster_mlops.core.files import write_atomically
from dagster_mlops.core.waits import wait_while
from dagster_mlops.errors import DeploymentError
from dagster_mlops.provenance import Deployment, Package, mask_credentials
from dagster_mlops.serving.golden.golden_set import Golden
from dagster_mlops.serving.local import processes, supervision
from dagster_mlops.serving.local.access import LOOPBACK
from dagster_mlops.serving.local.reconcile import take_stock
from dagster_mlops.serving.local.state import DeploymentState, load, load_all, lock, state_file, utc_now
from dagster_mlops.serving.local.target import LocalTarget, golden_difference, probe
from dagster_mlops.serving.local.trial import run_trial
from dagster_mlops.serving.packager import Server
from dagster_mlops.serving.rollout_verdict.options import Canary, Shadow
from dagster_mlops.serving.rollout_verdict.rollout import BACK, Rollout


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
    public: Sequence[str] = ()
    tolerance: float = 1e-9
    replicas: int = 2
    ready_timeout: float = 120
    drain_seconds: float = 30
    trials: Sequence[Canary | Shadow] = ()  # before the switch, in this order
    report: Callable[[str, Rollout | str], object] = lambda *_: None  # of each trial, or why there was none

    @property
    def fingerprint(self) -> str:
        """A hash of everything that asks for a server of its own when it changes."""
        package = self.package
        # The URL is in the record. On loopback without TLS, the port says the same, as in fingerprints on record.
        place = self.target.port if self.target.access == LOOPBACK else self.target.url
        facts = [self.name, package.tool, package.tag, package.home, place, self.prediction_log, self.route]
        server = self.server(0)  # whatever its port
        environment = sorted({**server.environment, **self.environment}.items())
        text = json.dumps(
            [*facts, self.log_sync_seconds, self.replicas, list(server.command), environment, list(self.public)]
        )
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def refusal(self, trial: Canary | Shadow, baseline: DeploymentState) -> str:
        """A hash of the deployment, the trial and the live package: what it did not stand, it is not put to again."""
        text = f"{self.fingerprint} {trial!r} {baseline.record.package}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def without_trials(self, reason: str) -> None:
        """Report that there was none."""
        for trial in self.trials:
            self.report(trial.kind, reason)


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
        current = take_stock(target, log.info)
        try:
            return _roll_out(plan, current, log)
        except BaseException:
            if current is None:  # a port that answers nothing but 503 would look like a deployment
                target.close()
            raise


def _roll_out(plan: Plan, current: DeploymentState | None, log: Logger) -> tuple[DeploymentState, bool]:
    target = plan.target.renewed(log.info)
    former = LocalTarget.stored(target.state_dir)
    if current and target != former:
        target.shift(current)  # or an Envoy that asks for tokens would start without any, and refuse everyone
    try:
        target.open()
    except DeploymentError:
        if current and former:
            former.shift(current)
            former.open()
        raise
    if current and current.fingerprint == plan.fingerprint and _is_back(current, log):
        target.shift(current)
        if current.golden_hash != plan.golden_hash:
            stricter = dataclasses.replace(current, tolerance=plan.tolerance)
            current = _verified(stricter, target, plan.golden()).save(golden_hash=plan.golden_hash)
        target.await_public(current)
        plan.without_trials(f"{current.id} is live already.")
        return current.save(phase="live", ready_timeout=plan.ready_timeout, drain_seconds=plan.drain_seconds), False
    if current and plan.package.tag == current.undone_package:
        # Whoever rolled back did so for a reason: a schedule does not undo it.
        log.warning(
            f"{plan.package.tag} was rolled back and stays so; {current.id} serves {current.record.package}. Build "
            f"another package, or run `dagster-mlops serving rollback {target.state_dir}` to return to it."
        )
        if not _is_back(current, log):
            raise DeploymentError(f"{current.id}, to which {plan.package.tag} was rolled back, does not answer.")
        plan.without_trials(f"{plan.package.tag} was rolled back and stays so.")
        return current, False
    tried = _beside(current, plan, log)
    if tried and (refused := _refused(plan, tried)):
        reason = f"{plan.package.tag} was refused in {refused.id} and stays so: {refused.error}"
        file = state_file(target.state_dir, refused.id)
        log.warning(f"{reason}. Build another package, or change a trial; or remove {file}.")
        plan.without_trials(reason)
        return tried, False
    start = time.monotonic()
    new = _start(plan, current, log)
    trial = partial(_stand_trials, plan, current=tried, log=log) if tried else lambda new: new
    return bring_live(new, current, target, plan.golden, start, log, trial), True


def _beside(current: DeploymentState | None, plan: Plan, log: Logger) -> DeploymentState | None:
    """The live deployment that a new one is compared with.

    Raises:
        DeploymentError: it takes requests at another path.
    """
    if not plan.trials:
        return None
    if current is None:
        plan.without_trials("It is the first deployment, and has nothing to be compared with.")
        return None
    if not _is_back(current, log):
        reason = f"{current.id} was live and did not answer; it was replaced at once."
        log.warning(reason)
        plan.without_trials(reason)
        return None
    route = plan.route or plan.server(0).route
    if route != current.route:
        raise DeploymentError(
            f"{plan.name} is to take requests at {route}, and {current.id} takes them at {current.route}: a trial "
            "needs one path. Deploy the new one without a trial once."
        )
    return current


def _refused(plan: Plan, current: DeploymentState) -> DeploymentState | None:
    refusals = {plan.refusal(trial, current) for trial in plan.trials}
    return next((state for state in load_all(plan.target.state_dir) if state.refusal in refusals), None)


def _stand_trials(plan: Plan, new: DeploymentState, *, current: DeploymentState, log: Logger) -> DeploymentState:
    """Put a deployment to its trials.

    Raises:
        DeploymentError: it did not stand one.
    """
    for number, trial in enumerate(plan.trials):
        new = new.save(phase="trial")
        log.info(f"{new.id} is on trial beside {current.id}: {trial}")
        rollout = run_trial(new, current, plan.target, trial, log)
        plan.report(trial.kind, rollout)
        new = _as_written(new)
        verdict = rollout.verdict
        assert verdict  # there was a look, or an error
        if verdict.value == BACK:
            # One that was not decided may be tried again.
            refusal = plan.refusal(trial, current) if verdict.against >= 1 / trial.error_rate else ""
            new.save(refusal=refusal)
            for later in plan.trials[number + 1 :]:
                plan.report(later.kind, f"the {trial.kind} went back.")
            raise DeploymentError(f"its {trial.kind} went back: {verdict.reason}.")
    return new


def bring_live(
    new: DeploymentState,
    current: DeploymentState | None,
    target: LocalTarget,
    golden: Callable[[], Golden],
    start: float,
    log: Logger,
    trial: Callable[[DeploymentState], DeploymentState] = lambda new: new,
) -> DeploymentState:
    """Verify a deployment that was started, send the traffic to it, and stop the one before.

    Args:
        golden: Makes the golden set while the servers start.
        start: Time of the start, on the monotonic clock.
        trial: Called with the verified deployment, whose programs are started again when they end from here on.
    """
    try:
        rows = golden()
        new = _await_ready(new, target, start, log).save(phase="verifying")
        new = _verified(new, target, rows)
        log.info(f"{len(rows.rows)} golden predictions agree to {new.record.golden_max_difference:g}.")
        supervision.accept(target.state_dir, new.role)
        new = trial(new)
        new = _switch(target, new, current)
    except BaseException as error:
        target.withdraw(new, current)
        _as_written(new).end("failed", mask_credentials(str(error))[:2000])
        raise
    new = new.save(phase="live", record=dataclasses.replace(new.record, traffic=1.0))
    if current:
        _retire(current, new, target, log)
    target.forget({new.id, current.id if current else ""})
    return new


def _is_back(state: DeploymentState, log: Logger) -> bool:
    """True when each replica answers, also one whose supervisor has to start it again first."""

    def problem() -> str:
        return next(filter(None, (probe(url, state) for url in state.urls)), "")

    if not problem():
        return True
    if not supervision.exists(Path(state.record.state_dir), state.role):
        return False
    log.info(f"{state.id} does not answer on each of its ports; waiting for its supervisor to start it again.")
    try:
        wait_while(problem, timeout=state.ready_timeout, error=TimeoutError, pause=0.1)
    except TimeoutError as error:
        log.warning(f"{state.id} is replaced: {error} after {state.ready_timeout:g} s.")
        return False
    return True


def _start(plan: Plan, current: DeploymentState | None, log: Logger) -> DeploymentState:
    package, target = plan.package, plan.target
    record = Deployment(
        tool=package.tool,
        name=plan.name,
        id=new_id(package.tag),
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
    ports = processes.free_ports(plan.replicas)
    servers = [plan.server(port) for port in ports]
    server = servers[0]
    state = DeploymentState(
        record=record,
        phase="starting",
        ports=ports,
        fingerprint=plan.fingerprint,
        golden_hash=plan.golden_hash,
        probe=secrets.token_hex(16),
        readiness=server.readiness,
        route=plan.route or server.route,
        rows_field=server.rows_field,
        refuses_repeats=server.refuses_repeats,
        public=tuple(plan.public),
        former=current.id if current else "",
        tolerance=plan.tolerance,
        ready_timeout=plan.ready_timeout,
        drain_seconds=plan.drain_seconds,
    ).save()
    environment = {
        "DAGSTER_MLOPS_DEPLOYMENT": f"{record.name}/{record.id}",
        "DAGSTER_MLOPS_PREDICTION_LOG": record.prediction_log,
        "DAGSTER_MLOPS_PREDICTION_LOG_SYNC": f"{plan.log_sync_seconds:g}",
        "DAGSTER_MLOPS_PROBE": state.probe,
        **plan.environment,
    }
    places = ", ".join(state.urls)
    log.info(f"Serving {package.tag} on {places} as {state.id}; its output is in {target.log_file(state)}.")
    try:
        return target.start(state, servers, environment)
    except BaseException as error:
        state.end("failed", mask_credentials(str(error))[:2000])
        raise


def _as_written(state: DeploymentState) -> DeploymentState:
    """The state in its file, which others have written since."""
    return load(state_file(Path(state.record.state_dir), state.id))


def new_id(package: str) -> str:
    """The id of another deployment of a package, by its tag."""
    version, second = package.partition(":")[2], time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    return f"{version}-{second}-{secrets.token_hex(2)}"


def _await_ready(state: DeploymentState, target: LocalTarget, start: float, log: Logger) -> DeploymentState:
    log_file = target.log_file(state)
    begin = reported = time.monotonic()

    def failure(reason: str) -> DeploymentError:
        return DeploymentError(
            f"the server of {state.record.package} {reason}. The end of {log_file}:\n{processes.tail(log_file)}"
        )

    def problem() -> str:
        nonlocal reported
        reason = next(filter(None, (probe(url, state) for url in state.urls)), "")
        if reason and supervision.has_ended(target.state_dir, state.role):
            raise failure("ended before it was ready")
        if reason and time.monotonic() - reported >= 5:
            reported = time.monotonic()
            log.info(f"{state.id} is not ready after {reported - begin:.0f} s.")
        return reason

    late = f"was not ready within {state.ready_timeout:g} s"
    wait_while(problem, timeout=state.ready_timeout, error=lambda _: failure(late), pause=0.1)
    return state.save(ready_seconds=round(time.monotonic() - start, 3))


def _verified(state: DeploymentState, target: LocalTarget, golden: Golden) -> DeploymentState:
    timeout = target.request_timeout
    limits = {"tolerance": state.tolerance, "timeout": timeout}
    difference = max(golden_difference(golden, url, state, **limits) for url in state.urls)
    sample = {"rows": golden.rows[:50], "expected": golden.expected[:50]}
    write_atomically(golden_file(state), json.dumps(sample), private=True, durable=True)
    record = dataclasses.replace(state.record, golden_rows=len(golden.rows), golden_max_difference=difference)
    return state.save(record=record)


def golden_file(state: DeploymentState) -> Path:
    """Golden rows of a deployment, and what the registered model predicted for them when it went live."""
    return Path(state.record.state_dir) / "golden" / f"{state.id}.json"


def _switch(target: LocalTarget, new: DeploymentState, current: DeploymentState | None) -> DeploymentState:
    """Through the proxy by the secret first; only when that answers, for everyone."""
    target.shift(current, new)
    target.await_public(new, selected=True)
    new = new.save(phase="switching")
    start = time.monotonic()
    target.shift(new, current)
    target.await_public(new)
    return new.save(switch_seconds=round(time.monotonic() - start, 3))


def _retire(old: DeploymentState, new: DeploymentState, target: LocalTarget, log: Logger) -> None:
    old.save(phase="draining")
    start = time.monotonic()
    left = target.drain(old, timeout=new.drain_seconds)
    log.info(f"{old.id} was drained for {time.monotonic() - start:.1f} s; {left} requests are cut off.")
    target.shift(new)
    target.stop(old)
    old.end("stopped")
