"""Requests without predictions, in the windows of their time."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from dagster_mlops.monitoring.alarm.requests import LEAST, OUTCOME, Failed, counted
from dagster_mlops.monitoring.alarm.value import Alarm
from dagster_mlops.monitoring.detection import ColumnScore, Judgement
from dagster_mlops.monitoring.live.open_windows import OpenWindow, OpenWindows
from dagster_mlops.monitoring.windows import Counts
from dagster_mlops.monitoring.windows.counts import Span
from dagster_mlops.serving.runtime import PredictionLog


class WithFailures(NamedTuple):
    """Windows whose outcomes of requests are complete, oldest first, and their requests without predictions."""

    windows: list[OpenWindow]
    requests: Mapping[datetime, Failed]


def with_failures(
    due: list[OpenWindow], windows: OpenWindows, alarm: Alarm, log: Path, since: datetime, until: datetime
) -> WithFailures:
    """The windows that are due, with the requests of their time that had no predictions.

    Windows by time end by `until`; one in which no request had predictions is among them. Windows by rows take what
    failed since the one before.
    """
    requests: dict[datetime, Failed] = {}
    by_start = {window.start: window for window in due}
    ends = [windows.end_of(window) for window in due]
    last = until if alarm.size.every else max(ends, default=since)
    for entry in PredictionLog.failures(log, since, last) if since < last else []:
        if alarm.size.every:
            start = Span.of(alarm.size.every).start(entry.time)
            if start + alarm.size.every > until:
                continue
        else:
            start = next(window.start for window, end in zip(due, ends, strict=True) if entry.time < end)
        requests[start] = requests.get(start, Failed()) + Failed(entry.failed, entry.refused)
        by_start.setdefault(start, OpenWindow(start, entry.time, entry.time, alarm.detector.profile.empty(), {}))
    for start, count in requests.items():
        window = by_start[start]
        by_start[start] = window._replace(counts=window.counts + counted(alarm.detector.profile, count))
    return WithFailures([by_start[start] for start in sorted(by_start)], requests)


def outage(counts: Counts, requests: Failed, alarm: Alarm) -> Judgement | None:
    """The verdict on a window in which no request had predictions; None for any other, or with a few requests."""
    detector = alarm.detector
    if counts.rows or sum(requests) < LEAST or all(column.name != OUTCOME for column in detector.profile.columns):
        return None
    score = 2 * detector.threshold
    return Judgement(score, detector.threshold, "", (ColumnScore(OUTCOME, "unseen", score, 1.0, 0.0),))


def silent_failures(log: Path, since: datetime, time: datetime) -> str:
    """The requests that failed since the last prediction, in words, where there is a minute without predictions."""
    if time - since < timedelta(minutes=1):
        return ""
    entries = PredictionLog.failures(log, max(since, time - timedelta(hours=1)), time)
    requests = sum((Failed(entry.failed, entry.refused) for entry in entries), Failed())
    return f"{requests.text()}, and none was answered since {since:%H:%M} UTC" if sum(requests) >= LEAST else ""
