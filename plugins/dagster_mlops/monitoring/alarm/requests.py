"""The outcome of requests as a watched column: answered, slow, refused or failed, beside the columns of a model."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from dagster_mlops.core.arrays import np, pa, pd
from dagster_mlops.core.tables import as_table
from dagster_mlops.core.timestamps import to_microseconds
from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring.windows import Counts, History, Profile, Window
from dagster_mlops.monitoring.windows.columns import CategoryColumn
from dagster_mlops.monitoring.windows.counts import HOUR
from dagster_mlops.monitoring.windows.values import Values
from dagster_mlops.serving.runtime import PredictionLog

OUTCOME = "request outcome"
ANSWERED, SLOW = "answered", "slow"
LEAST = 20  # failed requests that are an outage where nothing was answered


class Failed(NamedTuple):
    """Requests without predictions: those that failed by the server's fault, and those that it refused."""

    failed: int = 0
    refused: int = 0

    def __add__(self, other: "Failed") -> "Failed":  # pyright: ignore[reportIncompatibleMethodOverride]
        return Failed(self.failed + other.failed, self.refused + other.refused)

    def text(self) -> str:
        """The counts in words; empty without any."""
        counts = {"failed": self.failed, "were refused": self.refused}
        return " and ".join(f"{count:,} requests {what}" for what, count in counts.items() if count)


def failed_between(log: Path, start: datetime, end: datetime) -> Failed:
    """The requests of a log's servers that had no predictions from `start` to `end`."""
    return sum((Failed(entry.failed, entry.refused) for entry in PredictionLog.failures(log, start, end)), Failed())


def with_outcomes(table: Any, slow: float | None) -> Any:
    """A table with the outcome of each row's request: slow where ``seconds`` is more than `slow`."""
    if isinstance(table, pd.DataFrame):
        if slow is None or "seconds" not in table:
            return table.assign(**{OUTCOME: ANSWERED})
        seconds = np.asarray(pd.to_numeric(table["seconds"], errors="coerce"), float)
        return table.assign(**{OUTCOME: np.where(seconds > slow, SLOW, ANSWERED)})
    arrow = as_table(table, tool="monitoring", error=MonitoringError)
    values = np.full(len(arrow), ANSWERED, object)
    if slow is not None and "seconds" in arrow.column_names:
        values[arrow["seconds"].to_numpy() > slow] = SLOW
    return arrow.append_column(OUTCOME, pa.array(values, pa.string()))


def counted(profile: Profile, requests: Failed) -> Counts:
    """Counts of no rows, and of the outcomes of requests without predictions."""
    counts = profile.empty()
    for column, start in zip(profile.columns, profile.starts, strict=True):
        if column.name == OUTCOME and isinstance(column, CategoryColumn):
            codes = column.codes(Values(pa.array(list(requests._fields), pa.string()), rows=len(requests)))
            for code, count in zip(codes.bins.tolist(), requests, strict=True):
                counts.bins[start + code] += count
    return counts


def with_kinds(profile: Profile, requests: Failed) -> Profile:
    """A profile in which the outcomes that a history has are not new."""
    usual = [kind for kind, count in requests._asdict().items() if count]
    columns: Sequence[Any] = [
        CategoryColumn(OUTCOME, (*column.frequent, *usual))
        if column.name == OUTCOME and isinstance(column, CategoryColumn)
        else column
        for column in profile.columns
    ]
    return Profile(tuple(columns), profile.zone)


def with_failures(history: History, profile: Profile, log: Path) -> History:
    """A history with the requests of its time that had no predictions, as a log's servers have counted them."""
    starts = np.array([to_microseconds(window.start) for window in history.windows], np.int64)
    windows, by_hour = list(history.windows), history.counts.copy()
    for entry in PredictionLog.failures(log, windows[0].start, windows[-1].end) if windows else []:
        counts, time = counted(profile, Failed(entry.failed, entry.refused)), to_microseconds(entry.time)
        place = int(np.searchsorted(starts, time, side="right")) - 1
        window = windows[place]
        windows[place] = Window(window.start, window.end, window.counts + counts)
        by_hour[history.starts == time // HOUR * HOUR, : profile.size] += counts.bins
    return History(windows, history.starts, history.rows, by_hour)
