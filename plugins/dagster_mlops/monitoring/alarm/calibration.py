"""The calibration of an alarm by a history of rows, and what people should see of it."""

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from dagster_mlops.core.arrays import np
from dagster_mlops.core.tables import as_frame
from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring import facts
from dagster_mlops.monitoring.alarm.requests import OUTCOME, failed_between, with_failures, with_kinds, with_outcomes
from dagster_mlops.monitoring.alarm.value import Alarm, Size
from dagster_mlops.monitoring.detection import Detector
from dagster_mlops.monitoring.performance.harm import MAX_DROP, HarmScale
from dagster_mlops.monitoring.performance.rehearsal import Predict
from dagster_mlops.monitoring.windows import History, Profile, cut
from dagster_mlops.monitoring.windows.values import batches


class Calibration(NamedTuple):
    """An alarm, and the history that it was calibrated by."""

    alarm: Alarm
    history: History

    def metadata(self) -> dict[str, Any]:
        """Facts for the asset's page."""
        from dagster_mlops.monitoring.alarm import pictures

        detector, windows = self.alarm.detector, self.history.windows
        ends, scores = [window.end for window in windows], [j.score for j in detector.judge_all(windows)]
        return {
            "monitoring/promise": detector.promise,
            facts.THRESHOLD: detector.threshold,
            "monitoring/windows": len(windows),
            "monitoring/window": str(self.alarm.size),
            "monitoring/first": windows[0].start.isoformat(),
            "monitoring/last": windows[-1].end.isoformat(),
            "monitoring/watched_columns": sum(
                column.name != OUTCOME and column.kind not in ("relation", "values")
                for column in detector.profile.columns
            ),
            "monitoring/model_version": self.alarm.model_version or "unknown",
            **pictures.scores(facts.SCORES, ends, scores, detector.threshold),
        }


def calibrate(
    history: Any,
    *,
    name: str,
    time: str,
    columns: Sequence[str] | None,
    categories: Collection[str],
    outputs: Mapping[str, str],
    size: Size,
    alarms: float,
    per: timedelta,
    minimum_effect: float = 0.0,
    zone: str = "UTC",
    model_version: str,
    slow: timedelta | None = None,
    requests: Path | None = None,
    label: str | None = None,
    prediction: str | None = None,
    max_drop: float = MAX_DROP,
    predict: Predict | None = None,
) -> Calibration:
    """Learn bins and threshold from a table; see :func:`alarm_asset`.

    Raises:
        MonitoringError: A column is not there, or the history is too short for what is asked.
    """
    first = next(iter(batches(history, None)), {})
    columns = columns or [column for column in first if column not in ("", time, label)]
    if not columns:
        raise MonitoringError(f"The history has no column to watch beside {time!r}.")
    seconds = slow.total_seconds() if slow else None
    table = with_outcomes(history, seconds)
    profile = Profile.learn(table, [*dict.fromkeys([*columns, OUTCOME])], categories=categories, zone=zone)
    windows = cut(table, profile, times=time, rows=size.rows or None, every=size.every or None)
    if requests and windows.windows:
        usual = failed_between(requests, windows.windows[0].start, windows.windows[-1].end)
        profile = with_kinds(profile, usual)
        windows = cut(table, profile, times=time, rows=size.rows or None, every=size.every or None)
        windows = with_failures(windows, profile, requests)
    detector = Detector.calibrate(windows, profile=profile, alarms=alarms, per=per, minimum_effect=minimum_effect)
    harm = None
    if label and prediction:
        usual = int(np.median([window.counts.rows for window in windows.windows]))
        ordered = as_frame(history, tool=facts.TOOL, error=MonitoringError).sort_values(time, kind="stable")
        inputs = [name for name in columns if name not in outputs]
        harm = HarmScale.learn(ordered, label, prediction, usual, columns=inputs, max_drop=max_drop, predict=predict)
    return Calibration(Alarm(name, detector, size, dict(outputs), model_version, seconds, harm), windows)
