"""Verdicts as evaluations of asset checks that no run has made: what they say is in their metadata."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import dagster as dg

from dagster_mlops.core.metadata import shorten, table
from dagster_mlops.core.terminal import line
from dagster_mlops.monitoring import facts
from dagster_mlops.monitoring.alarm.requests import OUTCOME
from dagster_mlops.monitoring.alarm.value import Alarm
from dagster_mlops.monitoring.detection import ColumnScore
from dagster_mlops.monitoring.live.watch import Verdict
from dagster_mlops.monitoring.performance.harm import Harm

DIVERGENCE = "divergence"
_NAMES = 30
_SHOWN, _SHOWN_OK = 12, 3  # scores; the event log has a verdict for each window, and most are ok


def divergence(
    verdict: Verdict,
    alarm: Alarm,
    key: dg.AssetKey,
    target: Any,
    *,
    name: str,
    severity: str,
    judged_at: datetime,
    late: int,
    harm: Harm | None = None,
) -> dg.AssetCheckEvaluation:
    """The evaluation of a window: failed while an incident is open, and passed where the window is undecided."""
    metadata: dict[str, Any] = {
        facts.STATE: verdict.state,
        facts.WINDOW_START: verdict.start.isoformat(),
        facts.WINDOW_END: verdict.end.isoformat(),
        facts.ROWS: verdict.rows,
        facts.LAG: round((judged_at - verdict.end).total_seconds(), 3),  # seconds
        facts.LATE_ROWS: late,
        "monitoring/alarm": f"{alarm.name} {alarm.digest[:12]}",
        "monitoring/model_versions": _names(sorted(verdict.versions)),
    }
    metadata |= {f"monitoring/{kind}_requests": count for kind, count in verdict.requests._asdict().items() if count}
    if verdict.reason:
        metadata[facts.REASON] = verdict.reason
    if judgement := verdict.judgement:
        metadata |= {facts.SCORE: judgement.score, facts.THRESHOLD: judgement.threshold}
        metadata |= table(facts.COLUMNS, map(_row, judgement.columns[: _SHOWN_OK if verdict.state == "ok" else _SHOWN]))
    if harm:
        metadata |= {facts.HARM: harm.verdict, "monitoring/harm_drop": harm.drop}
        metadata |= {"monitoring/harm_basis": harm.basis, "monitoring/harm_reason": harm.text}
        severity = {"harmful": "ERROR", "benign": "WARN"}.get(harm.verdict, severity)
    if incident := verdict.incident:
        metadata |= {
            facts.INCIDENT: incident.id,
            "monitoring/incident_since": incident.since.isoformat(),
            "monitoring/incident_windows": incident.windows,
            facts.INCIDENT_COLUMNS: _names(incident.columns),
        }
    return dg.AssetCheckEvaluation(
        asset_key=key,
        check_name=name,
        passed=verdict.state != "detected",
        severity=dg.AssetCheckSeverity(severity),
        metadata={k: v for k, v in metadata.items() if v is not None},
        description=f"{sentence(verdict)}{f' {harm.verdict.capitalize()}: {harm.text}.' if harm else ''}",
        target_materialization_data=target,
        blocking=False,
    )


def sentence(verdict: Verdict) -> str:
    """The verdict in one line."""
    rows = f"{verdict.rows:,} rows until {verdict.end:%Y-%m-%d %H:%M:%S} UTC"
    incident = verdict.incident
    if verdict.state == "undecided":
        return f"Not judged, {rows}: {verdict.reason}"
    if verdict.judgement is None or (verdict.state == "ok"):
        return f"As expected, {rows}."
    worst = verdict.judgement.alarming or verdict.judgement.columns[:1]
    columns = "; ".join(_finding(score, verdict) for score in worst[:4])
    if verdict.state == "recovered" and incident:
        return f"As expected again, {rows}. The incident began {incident.since:%Y-%m-%d %H:%M} UTC."
    if verdict.state == "suspected":
        return f"Suspected, {rows}: {columns}"
    if not verdict.judgement.alarming and incident:
        return f"Not yet recovered, {rows}: {_names(incident.columns)}."
    return f"Other than in its history, {rows}: {columns}"


def _finding(score: ColumnScore, verdict: Verdict) -> str:
    if score.column != OUTCOME:
        return score.text()
    usual = f"{100 * score.expected:.1f} % expected"
    text = verdict.requests.text() or "requests were slow"
    return f"{text} (of {verdict.rows:,} answered ones, {100 * score.value:.1f} %, {usual})"


def _names(names: Sequence[str]) -> str:
    """The first names, each short and in one line: data may have any."""
    more = [f"{len(names) - _NAMES} more"] if len(names) > _NAMES else []
    return ", ".join([*(shorten(line(name), 80) for name in names[:_NAMES]), *more])


def _row(score: ColumnScore) -> dict[str, Any]:
    values = {name: f"{getattr(score, name):.6g}" for name in ("z", "value", "expected")}
    return {"column": _names([score.column]), "what": score.what, **values, "finding": score.text()}
