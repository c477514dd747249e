"""The status of production: deployments with their models and data, promotions that wait, and all asset checks."""

import socket
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import dagster as dg

from dagster_mlops.core.gates import check_problem
from dagster_mlops.core.upstream import AssetCheckExecutionRecord
from dagster_mlops.lineage.chain.sources import EventLog
from dagster_mlops.lineage.chain.walk import plain, trace
from dagster_mlops.promotion.open_requests import OpenRequest, open_requests
from dagster_mlops.provenance import Record
from dagster_mlops.provenance.roles import Dataset, Deployment, ModelVersion, Package, Report, TrainingRun, TrainingSet

_CONNECT_TIMEOUT = 1.0
_NO_RUN = ""  # the id under which Dagster stores what a sensor reports
_OF_SENSORS = 2_000  # evaluations by sensors
_CHECK_EVENTS = {dg.DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED, dg.DagsterEventType.ASSET_CHECK_EVALUATION}


@dataclass(frozen=True, kw_only=True)
class _Live:
    """Something that is in use, and what it was made from, as Dagster recorded it."""

    since: float  # Unix time
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


@dataclass(frozen=True, kw_only=True)
class Production(_Live):
    """The latest deployment of one name in one place."""

    deployment: Deployment
    answers: bool | None  # whether its port takes a connection now; None when stopped or without a URL


@dataclass(frozen=True, kw_only=True)
class Promoted(_Live):
    """The model version that an alias was last moved to, where no deployment on record serves it."""

    alias: str


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
    promoted: tuple[Promoted, ...]
    checks: tuple[CheckStatus, ...]
    drift: tuple[Report, ...]  # the latest report of each check, newest first
    unreadable: tuple[str, ...] = ()
    other_records: tuple[Record, ...] = ()  # of unknown roles: the latest of each asset and partition
    waiting: tuple[OpenRequest, ...] = ()

    @property
    def healthy(self) -> bool:
        """True if something is in use, all live deployments answer, and every check holds."""
        answers = all(production.answers is not False for production in self.live)
        return bool(self.live or self.promoted) and answers and all(check.holds for check in self.checks)

    @property
    def live(self) -> list[Production]:
        """The deployments that were not stopped."""
        return [production for production in self.production if not production.deployment.stopped]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        production, promoted = (
            [{**vars(each), "metrics": each.metrics} for each in group] for group in (self.production, self.promoted)
        )
        checks = [{**vars(check), "holds": check.holds} for check in self.checks]
        return plain(
            {"healthy": self.healthy, **vars(self), "production": production, "promoted": promoted, "checks": checks}
        )


def status(instance: dg.DagsterInstance, *, runs: int = 200) -> Status:
    """The status of production on record in a Dagster instance; only promotions that wait ask their registry.

        current = status(dg.DagsterInstance.get())
        print(current.healthy, [production.deployment.url for production in current.production])

    Args:
        instance: Dagster instance to read.
        runs: Number of the latest runs that are searched for asset checks.
    """
    events = EventLog(instance)
    deployments = reversed(events.entries(Deployment))
    latest = {(each.tool, each.state_dir, each.name): each for each, _ in deployments}
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
        promoted=_promoted(
            events, {(each.deployment.model_name, each.deployment.model_version) for each in production}
        ),
        checks=tuple(_check_status(instance, evaluations[key]) for key in sorted(evaluations, key=str)),
        drift=tuple(drift),
        unreadable=tuple(events.unreadable),
        other_records=tuple(unknown[key] for key in sorted(unknown)),
        waiting=tuple(open_requests(instance)),
    )


def _production(deployment: Deployment, events: EventLog) -> Production:
    answers = None if deployment.stopped else _answers(deployment.url)
    return Production(deployment=deployment, answers=answers, **_origin(deployment, events))


def _promoted(events: EventLog, served: Collection[tuple[str, str]]) -> tuple[Promoted, ...]:
    holders: dict[tuple[str, str, str], ModelVersion] = {}
    for version, _ in events.entries(ModelVersion):
        for alias in version.aliases:
            holders.setdefault((version.tool, version.name, alias), version)
    return tuple(
        Promoted(alias=alias, **_origin(version, events))
        for (_, name, alias), version in sorted(holders.items())
        if (name, version.version) not in served
    )


def _origin(record: Record, events: EventLog) -> dict[str, Any]:
    """The fields of what is in use: since when, and the nearest record of each role that it was made from."""
    chain, entry = trace(record.ref, tools={}, instance=events), events.find(record.ref)
    datasets = {dataset.path: dataset for dataset in reversed(chain.find(Dataset))}
    nearest = {
        role.role: next(iter(chain.find(role)), None) for role in (Package, ModelVersion, TrainingRun, TrainingSet)
    }
    return {
        "since": entry.first_seen if entry else 0.0,
        **nearest,
        "datasets": tuple(datasets[path] for path in sorted(datasets)),
    }


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
    # An instance has no list of its checks: they are found through the runs and sensors that evaluated them.
    reported = instance.get_records_for_run(_NO_RUN, of_type=_CHECK_EVENTS, limit=_OF_SENSORS, ascending=False).records
    events = [record.event_log_entry for record in reported]
    for run in instance.get_run_records(limit=runs):
        events += instance.all_logs(run.dagster_run.run_id, of_type=_CHECK_EVENTS)
    for event in events:
        data = event.dagster_event.event_specific_data if event.dagster_event else None
        key = getattr(data, "asset_check_key", None)
        if key and key not in latest and (record := instance.get_latest_asset_check_evaluation_record(key)):
            latest[key] = record
    return latest


def _check_status(instance: dg.DagsterInstance, record: AssetCheckExecutionRecord) -> CheckStatus:
    evaluation, run = record.evaluation, instance.get_run_by_id(record.run_id) if record.run_id else None
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
