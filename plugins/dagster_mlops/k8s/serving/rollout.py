"""Blue/green rollout of a package in Kubernetes: plan, start, ready, verify, shift, drain, record.

The cluster holds all state. Traffic goes where the selector of the Service points; every other deployment of the name
is a leftover, which the next rollout removes or goes on with. So a rollout may be killed anywhere.
"""

import base64
import dataclasses
import secrets
import time
from collections.abc import Callable, Mapping
from logging import Logger
from typing import Any

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.waits import wait_while
from dagster_mlops.errors import DeploymentError, UnreachableClusterError
from dagster_mlops.k8s.serving import diagnosis
from dagster_mlops.k8s.serving.cluster import Cluster
from dagster_mlops.k8s.serving.manifests import (
    DEPLOYMENT,
    FINGERPRINT,
    NAME,
    SERVER,
    TOOL,
    Release,
    owner_labels,
)
from dagster_mlops.k8s.serving.switch import Switch
from dagster_mlops.k8s.validation import manifest_problems
from dagster_mlops.provenance import Deployment, Record
from dagster_mlops.serving.golden.golden_set import Golden
from dagster_mlops.serving.local.state import utc_now

_PARTS = ("Deployment", "HorizontalPodAutoscaler", "PodDisruptionBudget", "Secret")  # deleted in this order
_PAUSE, _REPORT = 0.5, 5  # seconds between looks at the cluster, and between lines of the log


@lazy_dataclass(frozen=True, kw_only=True)
class Plan:
    """A package, and how it is to be served and verified."""

    release: Release  # without an id
    route: str  # of predictions
    golden_hash: str
    golden: Callable[[], Golden]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # fields of the record, from the Dagster run
    tolerance: float = 1e-9
    request_timeout: float = 30
    pending_timeout: float = 120


@lazy_dataclass(frozen=True, kw_only=True)
class Live:
    """The deployment that traffic goes to after a rollout."""

    record: Deployment
    started: bool  # false where it was live before
    ready_seconds: float = 0
    switch_seconds: float = 0


@lazy_dataclass(frozen=True)
class Probe:
    """The way in which golden rows are sent."""

    route: str
    rows_field: str
    probe: str


def rollout(plan: Plan, cluster: Cluster, log: Logger) -> Live:
    """Bring the plan's package live and stop the deployment before.

    Raises:
        DeploymentError: The cluster refuses a manifest, the pods do not come up, their predictions differ, or the
            Service does not answer. What was live before then still is.
    """
    return _Rollout(plan, cluster, log).run()


class _Rollout:
    def __init__(self, plan: Plan, cluster: Cluster, log: Logger) -> None:
        self.plan, self.cluster, self.log = plan, cluster, log
        self.name, self.target = plan.release.name, plan.release.target
        self.start = time.monotonic()
        self.switch = Switch(cluster, self.name, plan.release.service, force=self.target.force)
        deployments = {each["metadata"]["name"]: each for each in cluster.find("Deployment", owner_labels(self.name))}
        self.current = deployments.get(self.switch.deployment)
        fingerprint = plan.release.fingerprint
        equals = [
            name
            for name, each in deployments.items()
            if each["metadata"]["labels"].get(FINGERPRINT) == fingerprint
            and not each["metadata"].get("deletionTimestamp")
        ]
        live = self.current_id if self.current_id in equals else ""
        # Another one that is equal was left by a rollout that was killed: its pods have begun to load the model.
        self.release = plan.release.with_id(live or "".join(equals[:1]))

    @property
    def current_id(self) -> str:
        return self.current["metadata"]["name"] if self.current else ""

    def run(self) -> Live:
        probe = self._probe()
        manifests = self.release.manifests(probe)
        self._plan(manifests)
        self.switch.take_turn()
        self._remove_leftovers()
        if self.release.id == self.current_id:
            return self._renew(manifests, probe)
        try:
            self._start(manifests)
            rows = self.plan.golden()
            self._await_pods()
            ready_seconds = time.monotonic() - self.start
            record = self._verify(rows, probe, self._new_record())
            begin = time.monotonic()
            self.switch.move(self.release.selector)
            self.switch.await_answer(self.release.selector, self.release.server.readiness, self.target.service_port)
            switch_seconds = time.monotonic() - begin
        except BaseException:
            self._withdraw()
            raise
        record = dataclasses.replace(record, traffic=1.0)
        self._record(record)
        self.log.info(f"{self.release.id} takes all traffic of Service {self.name}.")
        self._drain()
        return Live(
            record=record,
            started=True,
            ready_seconds=round(ready_seconds, 3),
            switch_seconds=round(switch_seconds, 3),
        )

    def _plan(self, manifests: list[dict[str, Any]]) -> None:
        """Refuse what is invalid, before anything is changed: by the schemas here, and by those of the cluster."""
        every = [*manifests, self.release.service(self.release.selector, "")]
        if problems := [problem for manifest in every for problem in manifest_problems(manifest)]:
            raise DeploymentError(f"The manifests of {self.name!r} are invalid:\n  " + "\n  ".join(problems))
        for manifest in manifests:
            self.cluster.apply(manifest, force=self.target.force, dry_run=True)
        self.switch.check(self.release.selector)

    def _start(self, manifests: list[dict[str, Any]]) -> None:
        package = self.release.package
        image = self.target.image_of(package)
        self.log.info(f"Serving {package.tag} as {self.release.id} in namespace {self.target.namespace}, by {image}.")
        self._record(self._new_record())
        self._apply(manifests)
        count = ((self.current or {}).get("spec") or {}).get("replicas") or 0
        if self.target.max_replicas and count > self.target.replicas:
            # As many as the autoscaler has given the live one: the whole traffic comes at once.
            self.cluster.scale(self.release.id, min(count, self.target.max_replicas))

    def _apply(self, manifests: list[dict[str, Any]]) -> None:
        for manifest in manifests:
            self.cluster.apply(manifest, force=self.target.force)

    def _await_pods(self) -> None:
        """Wait until all pods are ready; a fault that time does not heal ends it early."""
        begin = reported = time.monotonic()
        last, fewest, release = "", self.target.replicas, self.release

        def problem() -> str:
            nonlocal reported, last
            try:
                deployment = self.cluster.get("Deployment", release.id)
                pods = self.cluster.find("Pod", release.selector)
            except UnreachableClusterError as error:
                return str(error)
            if deployment is None or deployment["metadata"].get("deletionTimestamp"):
                raise DeploymentError(
                    f"Deployment {release.id} was deleted during its rollout: by another one, or by hand."
                )
            if diagnosis.is_available(deployment, fewest):
                return ""
            reason = diagnosis.fault(
                deployment,
                pods,
                log=lambda pod, previous: self.cluster.log(pod, SERVER, previous=previous),
                pending_timeout=self.plan.pending_timeout,
            )
            if reason:
                raise DeploymentError(f"{release.id} does not come up: {reason}")
            line, clock = diagnosis.progress(deployment, pods, fewest), time.monotonic()
            if line != last or clock - reported >= _REPORT:
                last, reported = line, clock
                self.log.info(f"{release.id} after {clock - begin:.0f} s: {line}.")
            return line

        wait_while(
            problem,
            timeout=release.ready_timeout,
            pause=_PAUSE,
            error=lambda problem: DeploymentError(
                f"{release.id} was not ready within {release.ready_timeout:g} s: {problem}. Raise ready_timeout= if it "
                "is only slow."
            ),
        )

    def _verify(self, rows: Golden, probe: str, record: Deployment) -> Deployment:
        """Compare the predictions of each pod; the record has the largest difference."""
        plan, differences = self.plan, list[float]()
        for pod in filter(diagnosis.is_ready, self.cluster.find("Pod", self.release.selector)):
            url = self.cluster.pod_url(pod, self.target.port)
            with self.cluster.http_client(url, timeout=plan.request_timeout) as client:
                ask = Probe(plan.route, self.release.server.rows_field, probe)
                differences.append(rows.compare(client, ask, tolerance=plan.tolerance))
        if not differences:
            raise DeploymentError(f"{self.release.id} has no pod that is ready any more. Materialize it again.")
        self.log.info(f"{len(rows.rows)} golden predictions of {len(differences)} pods agree to {max(differences):g}.")
        return dataclasses.replace(record, golden_rows=len(rows.rows), golden_max_difference=max(differences))

    def _withdraw(self) -> None:
        """Undo the rollout: the deployment before gets all traffic, as before, and this one goes."""
        release = self.release
        try:
            has_served = self.switch.move_back(release.selector)
            self._delete(release.id)
            if has_served:
                self._end_record(release.id)
            else:
                self.cluster.delete("ConfigMap", release.id)
            self.switch.remove_if_first()
            self.log.info(f"{release.id} was withdrawn; {self.current_id or 'no deployment'} is live, as before.")
        except DeploymentError as error:
            self.log.warning(f"{release.id} could not be withdrawn: {error} The next materialization does it.")

    def _drain(self) -> None:
        """Stop the deployment before: its pods answer what they have begun."""
        if not self.current:
            return
        pod = self.current["spec"]["template"]["spec"]
        labels = {NAME: self.name, DEPLOYMENT: self.current_id}
        begin, timeout = time.monotonic(), (pod.get("terminationGracePeriodSeconds") or 30) + 30
        self._delete(self.current_id)
        try:
            wait_while(
                lambda: [pod["metadata"]["name"] for pod in self.cluster.find("Pod", labels)],
                timeout=timeout,
                pause=_PAUSE,
                error=lambda names: DeploymentError(f"{', '.join(names)} run on after {timeout:g} s"),
            )
        except DeploymentError as error:  # the new one is live all the same
            self.log.warning(f"{self.current_id} was stopped, but {error}.")
        self.log.info(f"{self.current_id} was drained for {time.monotonic() - begin:.1f} s.")
        self._end_record(self.current_id)

    def _renew(self, manifests: list[dict[str, Any]], probe: str) -> Live:
        """Bring the live deployment to the state of its manifests, without another rollout."""
        self._apply(manifests)
        kinds = {manifest["kind"] for manifest in manifests}
        for kind in _PARTS:
            if kind not in kinds:
                self.cluster.delete(kind, self.release.id)
        self._await_pods()
        stored = self.cluster.get("ConfigMap", self.release.id) or {}
        record = _record_of(stored) or self._new_record()
        if (stored.get("data") or {}).get("golden") != self.plan.golden_hash or record.golden_rows is None:
            record = self._verify(self.plan.golden(), probe, record)
        record = dataclasses.replace(record, traffic=1.0, url=self.release.url)
        self._record(record)
        self.log.info(f"{self.release.id} is live with the same pods.")
        return Live(record=record, started=False)

    def _remove_leftovers(self) -> None:
        """Stop what rollouts that were killed have left, and end their records.

        A record is written before anything else of a deployment, and ends after everything else.
        """
        deployments, records = (
            self.cluster.find(kind, owner_labels(self.name)) for kind in ("Deployment", "ConfigMap")
        )
        open_records = [each for each in records if (record := _record_of(each)) and not record.stopped]
        ids = {each["metadata"]["labels"].get(DEPLOYMENT, "") for each in (*deployments, *open_records)}
        for name in sorted(ids - {self.current_id, self.release.id, ""}):
            self._delete(name)
            self._end_record(name)
            self.log.info(f"Stopped {name}, which an interrupted rollout left behind.")

    def _delete(self, name: str) -> None:
        for kind in _PARTS:
            self.cluster.delete(kind, name)

    def _probe(self) -> str:
        secret = self.cluster.get("Secret", self.release.id) or {}
        stored = (secret.get("data") or {}).get("probe")
        return base64.b64decode(stored).decode() if stored else secrets.token_hex(16)

    def _new_record(self) -> Deployment:
        release, package = self.release, self.release.package
        return Deployment(
            tool=TOOL,
            name=self.name,
            id=release.id,
            package=package.tag,
            model_name=package.model_name,
            model_version=package.model_version,
            url=release.url,
            state_dir=release.place,
            prediction_log=self.target.prediction_log if self.target.prediction_claim else "",
            traffic=0.0,
            started=utc_now(),
            upstream=(package.ref,),
            **self.plan.facts,
        )

    def _record(self, record: Deployment) -> None:
        self.cluster.apply(self.release.record(record, self.plan.golden_hash), force=True)

    def _end_record(self, name: str) -> None:
        stored = self.cluster.get("ConfigMap", name) or {}
        record = _record_of(stored)
        if record and not record.stopped:
            ended = dataclasses.replace(record, stopped=utc_now(), traffic=0.0)
            release = self.release.with_id(name)
            self.cluster.apply(release.record(ended, stored["data"].get("golden", "")), force=True)


def _record_of(config_map: Mapping[str, Any]) -> Deployment | None:
    text = (config_map.get("data") or {}).get("record")
    record = Record.from_json(text) if text else None
    return record if isinstance(record, Deployment) else None
