"""A history read from a file, or from the folder of a prediction log."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dagster_mlops.core.arrays import pd
from dagster_mlops.errors import MonitoringError

LOG_TIME = "timestamp"
_LOG_FACTS = ("request_id", "deployment", "bento", "model_name", "model_version", "trace_id", "seconds", "output")


def read_history(path: Path, time: str, columns: Sequence[str] | None) -> tuple[Any, str]:
    """A table of rows with a time, and the name of the time column.

    Args:
        path: Parquet or CSV file, or folder of a prediction log.
        time: Time column; may be empty for a prediction log, whose rows have a `timestamp`.
        columns: Columns to read; all by default.

    Raises:
        MonitoringError: the file is missing or cannot be read, or its time column is not named.
    """
    if path.is_dir():
        frame = _read_log(path)
        time = time or LOG_TIME
        return frame[[time, *columns]] if columns and not set(columns) - set(frame) else frame, time
    if not path.exists():
        raise MonitoringError(f"{path} does not exist. Name a Parquet or CSV file, or the folder of a prediction log.")
    if not time:
        raise MonitoringError(f"{path} needs --time: the column that holds when a row happened.")
    try:
        frame: Any = pd.read_csv(path) if path.suffix.lower() in (".csv", ".txt", ".gz") else pd.read_parquet(path)
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
        raise MonitoringError(f"{path} cannot be read as Parquet or CSV: {reason}") from error
    if absent := [name for name in (time, *(columns or ())) if name not in frame]:
        names = ", ".join(map(str, frame.columns[:20]))
        raise MonitoringError(f"{path} has no column {absent[0]!r}. Its columns are: {names}.")
    return (frame[[time, *columns]] if columns else frame), time


def _read_log(folder: Path) -> Any:
    from dagster_mlops.serving.runtime import PredictionLog

    try:
        frame: Any = PredictionLog.read(folder)
    except (OSError, ValueError) as error:
        raise MonitoringError(f"the prediction log {folder} cannot be read: {type(error).__name__}: {error}") from error
    if frame.empty:
        raise MonitoringError(f"{folder} holds no prediction. Name the folder of a prediction log, or a file.")
    outputs = frame["output"]
    if outputs.map(lambda value: isinstance(value, int | float)).all():
        frame["prediction"] = outputs.astype(float)
    return frame.drop(columns=[name for name in _LOG_FACTS if name in frame])
