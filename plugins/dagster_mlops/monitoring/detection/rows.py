"""Windows as arrays, a row for each, with the days before them."""

from collections.abc import Sequence

from dagster_mlops.core.arrays import np
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.monitoring.detection.recent import all_before
from dagster_mlops.monitoring.windows.counts import HOURS, Counts, Window


@lazy_dataclass(frozen=True)
class Rows:
    """Windows as arrays, a row for each: counts (bins, then sums), number of rows, shares of the hours of the week."""

    counts: "np.ndarray"
    rows: "np.ndarray"
    hours: "np.ndarray"
    before: "np.ndarray"
    rows_before: "np.ndarray"
    hours_before: "np.ndarray"

    def __getitem__(self, index: "np.ndarray") -> "Rows":
        parts = (self.counts, self.rows, self.hours, self.before, self.rows_before, self.hours_before)
        return Rows(*(part[index] for part in parts))


def rows_of(windows: Sequence[Window], zone: str) -> Rows:
    """Consecutive windows as arrays, each with the days before it.

    Args:
        windows: In order of time.
        zone: Time zone of the hours of the week.
    """
    counts = np.array([np.concatenate([w.counts.bins, w.counts.sums]) for w in windows], np.int64)
    rows = np.array([window.counts.rows for window in windows], np.int64)
    hours = np.array([window.counts.hours for window in windows], np.int64)
    before = all_before(windows, np.hstack([counts, rows[:, None], hours]))
    width = counts.shape[1]
    hours_before = before[:, width + 1 :]
    return Rows(
        counts,
        rows,
        np.array([window.hours(zone) for window in windows]),
        before[:, :width],
        before[:, width],
        _shares(hours_before),
    )


def row_of(window: Window, before: Counts | None, zone: str) -> Rows:
    """One window as arrays.

    Args:
        before: Counts of the days before it.
        zone: Time zone of the hours of the week.
    """
    counts = np.concatenate([window.counts.bins, window.counts.sums])[None, :]
    return Rows(
        counts,
        np.array([window.counts.rows]),
        window.hours(zone)[None, :],
        np.zeros_like(counts) if before is None else np.concatenate([before.bins, before.sums])[None, :],
        np.array([0 if before is None else before.rows]),
        _shares(np.zeros((1, HOURS)) if before is None else before.hours[None, :]),
    )


def _shares(hours: "np.ndarray") -> "np.ndarray":
    """Shares of the hours of the week; the same for all of them where the rows' times are unknown."""
    total = hours.sum(axis=1, keepdims=True)
    return np.where(total > 0, hours / np.maximum(total, 1), 1 / HOURS)
