"""Rows of a prediction log that were not read before, with the columns of the history."""

from datetime import datetime
from pathlib import Path

from dagster_mlops.core.arrays import pd
from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring.alarm.outputs import logged_names, with_outputs
from dagster_mlops.monitoring.alarm.requests import with_outcomes
from dagster_mlops.monitoring.alarm.value import Alarm
from dagster_mlops.serving.runtime import PredictionLog


def rows_after(log: Path, cursor: str, *, start: datetime, alarm: Alarm, most: int) -> "tuple[pd.DataFrame, str]":
    """The rows that were not read with the cursors before, oldest first, and the next cursor; `most` of them at most.

    Only the columns that the alarm watches are read: the names that clients send may be any, and as many.

    Raises:
        MonitoringError: The log cannot be read.
    """
    if not log.is_dir():
        return pd.DataFrame(), cursor  # the first prediction makes the folder
    try:
        columns = logged_names([column.name for column in alarm.detector.profile.columns])
        frame, after = PredictionLog.read_after(log, cursor, start=start, columns=columns, absent=True, most=most)
    except (OSError, ValueError) as error:
        raise MonitoringError(f"the prediction log {log} cannot be read: {type(error).__name__}: {error}") from error
    return of_alarm(frame, alarm), after


def of_alarm(frame: "pd.DataFrame", alarm: Alarm) -> "pd.DataFrame":
    """Rows of a log with all columns that an alarm may watch."""
    return with_outputs(with_outcomes(frame, alarm.slow), alarm.outputs)  # a feature may be named seconds, too


def without_times_to_come(frame: "pd.DataFrame", latest: datetime) -> "tuple[pd.DataFrame, bool]":
    """The rows until `latest`, and whether there are others: those of a machine whose clock is wrong."""
    if frame.empty:
        return frame, False
    past = frame.loc[frame["timestamp"] <= latest]
    return past, len(past) < len(frame)
