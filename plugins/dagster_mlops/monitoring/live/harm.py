"""Harm of an incident: requests that fail, labels that have arrived, a rehearsal, or an estimate by predictions."""

from datetime import datetime
from pathlib import Path

import dagster as dg

from dagster_mlops.monitoring.alarm.outputs import OUTPUT, with_outputs
from dagster_mlops.monitoring.alarm.requests import OUTCOME
from dagster_mlops.monitoring.alarm.value import Alarm
from dagster_mlops.monitoring.live.asset_values import latest_value
from dagster_mlops.monitoring.live.incidents import Incident
from dagster_mlops.monitoring.live.watch import Verdict
from dagster_mlops.monitoring.performance.harm import Harm, HarmScale
from dagster_mlops.serving.runtime import PredictionLog

_WINDOWS = 8  # of which predictions are read


def incident_harm(
    context: dg.SensorEvaluationContext, verdict: Verdict, alarm: Alarm, log: Path, labels: dg.AssetKey | None
) -> Harm | None:
    """The harm of the incident that a window is of; None where nothing can tell."""
    alarming = verdict.judgement.alarming if verdict.judgement else ()
    if any(score.column == OUTCOME for score in alarming):
        return Harm("harmful", 1.0, "requests", verdict.requests.text() or "requests were slow")
    if alarm.harm is None or verdict.incident is None:
        return None
    if labels:
        harm = _by_labels(context, labels, verdict.incident, verdict.end, alarm, alarm.harm)
        if harm and harm.verdict != "undecided":
            return harm
    if not alarming:
        return None
    rehearsed = alarm.harm.rehearsed([(score.column, score.what) for score in alarming])
    if rehearsed.verdict != "undecided":
        return rehearsed
    # A bounded part of an incident that goes on for weeks: a tick costs the same.
    start = max(verdict.incident.since, verdict.end - _WINDOWS * (verdict.end - verdict.start))
    rows = PredictionLog.read(log, start, verdict.end, columns=[OUTPUT])
    scores = with_outputs(rows, _places(alarm, alarm.harm))[alarm.harm.prediction]
    return alarm.harm.estimated(scores.to_numpy(float, na_value=float("nan")))


def _by_labels(
    context: dg.SensorEvaluationContext,
    key: dg.AssetKey,
    incident: Incident,
    end: datetime,
    alarm: Alarm,
    scale: HarmScale,
) -> Harm | None:
    frame = latest_value(context, key)
    if frame is None or scale.label not in frame:
        return None
    rows = frame[(frame["timestamp"] >= incident.since) & (frame["timestamp"] < end) & frame[scale.label].notna()]
    rows = with_outputs(rows.copy(), _places(alarm, scale))
    return scale.realized(rows[scale.label].to_numpy(float), rows[scale.prediction].to_numpy(float))


def _places(alarm: Alarm, scale: HarmScale) -> dict[str, str]:
    return {scale.prediction: alarm.outputs[scale.prediction]}
