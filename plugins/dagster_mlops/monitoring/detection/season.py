"""The reference by hour of the week, shrunk towards the hour of the day and the whole."""

from dagster_mlops.core.arrays import np
from dagster_mlops.monitoring.windows.counts import HOURS, hour_of_week

_PRIOR = 4.0  # weeks (or days) of an hour that count as much as what it is shrunk to


def season(starts: "np.ndarray", rows: "np.ndarray", counts: "np.ndarray", zone: str) -> "np.ndarray":
    """Expected counts of one row by hour of the week: 168 rows.

    An hour of the week has been seen in few weeks, whose rows hang together; it weighs as many observations as there
    are weeks, against the same hour of all days, and that against the whole.

    Args:
        starts: Start of each clock hour, in microseconds since 1970.
        rows: Its rows.
        counts: Its counts, a row for each clock hour.
        zone: Time zone of the hours of the week.
    """
    hour = hour_of_week(starts, zone)
    by_week = _sums(hour, counts, HOURS), np.bincount(hour, rows, HOURS), np.bincount(hour, rows > 0, HOURS)
    day = np.arange(HOURS) % 24
    by_day = tuple(_sums(day, part, 24) if part.ndim > 1 else np.bincount(day, part, 24) for part in by_week)
    overall = counts.sum(axis=0) / max(rows.sum(), 1)
    expected = np.repeat(overall[None, :], 24, axis=0)
    expected = _shrunk(by_day, expected)[day]
    return _shrunk(by_week, expected)


def _sums(group: "np.ndarray", values: "np.ndarray", groups: int) -> "np.ndarray":
    order = np.argsort(group, kind="stable")
    first = np.flatnonzero(np.diff(group[order], prepend=-1))
    result = np.zeros((groups, values.shape[1]))
    if len(first):
        result[group[order][first]] = np.add.reduceat(values[order].astype(float), first, axis=0)
    return result


def _shrunk(group: tuple["np.ndarray", ...], target: "np.ndarray") -> "np.ndarray":
    totals, rows, seen = group
    weight = (seen / (seen + _PRIOR))[:, None]
    return weight * totals / np.maximum(rows, 1)[:, None] + (1 - weight) * target
