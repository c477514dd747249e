"""A history of rows cut into consecutive windows, by time or by number of rows."""

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any

from dagster_mlops.core.arrays import np
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.timestamps import from_microseconds, to_microseconds
from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring.windows.counts import HOUR, HOURS, MONDAY, Counts, Window, hour_of_week, week_of
from dagster_mlops.monitoring.windows.profile import Profile
from dagster_mlops.monitoring.windows.readings import times_in, times_of
from dagster_mlops.monitoring.windows.values import batches


@lazy_dataclass(frozen=True, eq=False)
class History:
    """Consecutive windows in order of time, and the same rows by hour of the clock.

    Args:
        windows: The windows.
        starts: Start of each hour that has rows, in microseconds since 1970.
        rows: Its rows.
        counts: Its bins and sums, an array of as many rows as there are hours.
    """

    windows: Sequence[Window]
    starts: "np.ndarray"
    rows: "np.ndarray"
    counts: "np.ndarray"

    def weeks(self) -> list[int]:
        """Numbers of the weeks, counted from 1970, in which hours of this history lie."""
        return np.unique(week_of(self.starts)).tolist()

    def of_weeks(self, weeks: Collection[int]) -> "History":
        """The windows that start in some weeks, and the hours of these weeks."""
        use = np.isin(week_of(self.starts), list(weeks))
        starts = week_of(np.array([to_microseconds(window.start) for window in self.windows], np.int64))
        windows = [window for window, week in zip(self.windows, starts.tolist(), strict=True) if week in weeks]
        return History(windows, self.starts[use], self.rows[use], self.counts[use])


def cut(
    table: Any, profile: Profile, *, times: Any, rows: int | None = None, every: timedelta | None = None
) -> History:
    """Cut a table into consecutive windows; a last window of fewer rows than `rows` is left out, and so are empty ones.

    Args:
        table: pandas, Arrow or polars table, in any order.
        profile: The bins.
        times: Name of the column with the rows' times, or the times themselves.
        rows: Rows of a window.
        every: Length of a window, aligned to Monday, midnight, UTC.

    Raises:
        MonitoringError: neither or both of `rows` and `every` are given, or a row has no time.
    """
    if (rows is None) == (every is None):
        raise MonitoringError("Cut a history either by rows=1000 or by every=timedelta(hours=1).")
    if (rows is not None and rows < 1) or (every is not None and every <= timedelta(0)):
        raise MonitoringError("A window has at least one row, and a length above zero.")
    clock = _clock(table, times)
    if rows is not None:
        order = np.argsort(clock, kind="stable")
        group = np.empty(len(clock), np.int64)
        group[order] = np.arange(len(clock)) // rows
        group[group >= len(clock) // rows] = -1
        full = order[: len(clock) // rows * rows].reshape(-1, rows)
        ends = [(int(clock[part[0]]), int(clock[part[-1]]) + 1) for part in full]
    else:
        assert every is not None
        length, offset = every // timedelta(microseconds=1), MONDAY * HOUR
        marks, group = np.unique((clock + offset) // length, return_inverse=True)
        ends = [(int(mark) * length - offset, int(mark + 1) * length - offset) for mark in marks]
    clock_hours, hour_group = np.unique(clock // HOUR, return_inverse=True)
    windows, by_hour = _grouped(table, profile, [(group, len(ends)), (hour_group, len(clock_hours))])
    inside = group >= 0
    of_week = np.bincount(
        group[inside] * HOURS + hour_of_week(clock[inside], profile.zone), minlength=len(ends) * HOURS
    )
    of_week = of_week.reshape(-1, HOURS)
    size = profile.size
    return History(
        [
            Window(
                from_microseconds(start),
                from_microseconds(end),
                Counts(profile.digest, int(of_week[i].sum()), windows[i, :size], windows[i, size:], of_week[i]),
            )
            for i, (start, end) in enumerate(ends)
        ],
        clock_hours * HOUR,
        np.bincount(hour_group, minlength=len(clock_hours)),
        by_hour,
    )


def _clock(table: Any, times: Any) -> "np.ndarray":
    if not isinstance(times, str):
        return times_of(times)
    parts = []
    for batch in batches(table, [times]):
        parts.append(times_in(batch, times))
    return np.concatenate(parts)


def _grouped(table: Any, profile: Profile, groupings: Sequence[tuple[Any, int]]) -> list["np.ndarray"]:
    """Bins and sums by group, one array for each grouping; rows of the group -1 are left out."""
    width = profile.size + 2 * len(profile.columns)
    results = [np.zeros((groups, width), np.int64) for _, groups in groupings]
    start_row = 0
    for batch in batches(table, [column.name for column in profile.columns]):
        span = slice(start_row, start_row + batch[""].rows)
        start_row = span.stop
        coded = profile.codes(batch)
        for i, (column, start, codes) in enumerate(zip(profile.columns, profile.starts, coded, strict=True)):
            for (groups, _), result in zip(groupings, results, strict=True):
                group = groups[span]
                use = group >= 0
                if not use.any():
                    continue
                first, last = int(group[use].min()), int(group[use].max())
                local = group[use] - first
                keys = local * column.size + codes.bins[use]
                block = np.bincount(keys, minlength=(last - first + 1) * column.size)
                result[first : last + 1, start : start + column.size] += block.reshape(-1, column.size)
                if codes.positions is not None:
                    # Whole numbers below 2^53, which floats add exactly.
                    for power in (1, 2):
                        sums = np.bincount(local, weights=codes.positions[use].astype(float) ** power)
                        result[first : last + 1, profile.size + 2 * i + power - 1] += sums.astype(np.int64)
    return results
