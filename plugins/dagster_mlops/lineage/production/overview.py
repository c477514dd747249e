"""The status of production: deployments with their models and data, and all asset checks."""

import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import dagster as dg

from dagster_mlops.core.gates import check_problem
from dagster_mlops.core.upstream import AssetCheckExecutionRecord
from dagster_mlops.lineage.chain.sources import EventLog
from dagster_mlops.lineage.chain.walk import plain, trace
from dagster_mlops.provenance import Record
from dagster_mlops.provenance.roles import Dataset, Deployment, ModelVersion, Package, Report, TrainingRun, TrainingSet

_CONNECT_TIMEOUT = 1.0
_CHECK_EVENTS = {dg.DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED, dg.DagsterEventType.ASSET_CHECK_EVALUATION}


@dataclass(frozen=True)
class Production:
    """The latest deployment of one name and what it was made from, as Dagster recorded it."""

    deployment: Deployment
    since: float  # Unix time
    answers: bool | None  # whether its port takes a connection now; None when stopped or without a URL
    package: Package | None
    model_version: ModelVersion | None
    training_run: TrainingRun | None
    training_set: TrainingSet | None
    datasets: tuple[Dataset, ...]

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the model version, or of its training run when the version has none."""
        holders = (self.model_version, self.training_run)
        return next((dict(holder.metrics) for holder in holders if holder and holder.metrics), {})


@dataclass(frozen=True)
class CheckStatus:
    """The latest evaluation of one asset check.

    `verdict` is ``passed``, ``warned`` (failed with severity WARN), ``failed``, ``running``, ``did not finish`` (the
    check itself broke) or ``judged an earlier materialization``.
    """

    asset: str
    name: str
    verdict: str
    when: float  # Unix time
    blocking: bool | None = None
    description: str = ""

    @property
    def holds(self) -> bool:
        return self.verdict in ("passed", "warned", "running")


@dataclass(frozen=True)
class Status:
    """The status of production; `unreadable` names records that this version cannot read."""

    production: tuple[Production, ...]
    checks: tuple[CheckStatus, ...]
    drift: tuple[Report, ...]  # the latest report of each check, newest first
    unreadable: tuple[str, ...] = ()
    other_records: tuple[Record, ...] = ()  # of unknown roles: the latest of each asset and partition

    @property
    def healthy(self) -> bool:
        """True if something is in production, all live deployments answer, and every check holds."""
        live = [p for p in self.production if not p.deployment.stopped]
        return bool(live) and all(p.answers is not False for p in live) and all(c.holds for c in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        production = [{**vars(each), "metrics": each.metrics} for each in self.production]
        checks = [{**vars(check), "holds": check.holds} for check in self.checks]
        return plain({"healthy": self.healthy, **vars(self), "production": production, "checks": checks})


def status(instance: dg.DagsterInstance, *, runs: int = 200) -> Status:
    """The status of production on record in a Dagster instance; no tool is asked.

        current = status(dg.DagsterInstance.get())
        print(current.healthy, [production.deployment.url for production in current.production])

    Args:
        instance: Dagster instance to read.
        runs: Number of the latest runs that are searched for asset checks.
    """
    events = EventLog(instance)
    latest = {deployment.name: deployment for deployment, _ in reversed(events.entries(Deployment))}
    production = tuple(_production(deployment, events) for deployment in latest.values())
    evaluations = _latest_evaluations(instance, runs)
    drift = [
        report
        for check in sorted(evaluations.values(), key=lambda check: -check.create_timestamp)
        for report in events.records_in(getattr(check.evaluation, "metadata", {}), check.key.to_user_string())
        if isinstance(report, Report)
    ]
    unknown = {(record.role, entry.asset, entry.partition): record for record, entry in events.entries(Record)[::-1]}
    return Status(
        production=production,
        checks=tuple(_check_status(instance, evaluations[key]) for key in sorted(evaluations, key=str)),
        drift=tuple(drift),
        unreadable=tuple(events.unreadable),
        other_records=tuple(unknown[key] for key in sorted(unknown)),
    )


def _production(deployment: Deployment, events: EventLog) -> Production:
    chain = trace(deployment.ref, tools={}, instance=events)
    entry = events.find(deployment.ref)
    datasets = {dataset.path: dataset for dataset in reversed(chain.find(Dataset))}
    roles = (Package, ModelVersion, TrainingRun, TrainingSet)
    nearest: dict[str, Any] = {role.role: next(iter(chain.find(role)), None) for role in roles}
    return Production(
        deployment=deployment,
        since=entry.first_seen if entry else 0.0,
        answers=None if deployment.stopped else _answers(deployment.url),
        **nearest,
        datasets=tuple(datasets[path] for path in sorted(datasets)),
    )


def _answers(url: str) -> bool | None:
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
        if not parts.hostname or not port:
            return None
        socket.create_connection((parts.hostname, port), timeout=_CONNECT_TIMEOUT).close()
    except ValueError:
        return None
    except OSError:
        return False
    return True


def _latest_evaluations(instance: dg.DagsterInstance, runs: int) -> dict[dg.AssetCheckKey, AssetCheckExecutionRecord]:
    latest: dict[dg.AssetCheckKey, AssetCheckExecutionRecord] = {}
    for run in instance.get_run_records(limit=runs):
        # An instance has no list of its checks: they are found through the runs that evaluated them.
        for event in instance.all_logs(run.dagster_run.run_id, of_type=_CHECK_EVENTS):
            data = event.dagster_event.event_specific_data if event.dagster_event else None
            key = getattr(data, "asset_check_key", None)
            if key and key not in latest and (record := instance.get_latest_asset_check_evaluation_record(key)):
                latest[key] = record
    return latest


def _check_status(instance: dg.DagsterInstance, record: AssetCheckExecutionRecord) -> CheckStatus:
    evaluation, run = record.evaluation, instance.get_run_by_id(record.run_id)
    evaluated = isinstance(evaluation, dg.AssetCheckEvaluation)
    verdict = check_problem(instance, record.key.asset_key, record)
    if not verdict:
        verdict = "passed" if evaluated and evaluation.passed else "warned"
    elif not evaluated and run and not run.is_finished:
        verdict = "running"
    return CheckStatus(
        asset=record.key.asset_key.to_user_string(),
        name=record.key.name,
        verdict=verdict,
        when=record.event.timestamp if record.event else record.create_timestamp,
        blocking=evaluation.blocking if evaluated else None,
        description=(evaluation.description or "") if evaluated else "",
    )
