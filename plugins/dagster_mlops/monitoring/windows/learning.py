"""Bins learnt from a reference: quantiles of numbers, the most frequent categories."""

import math
from collections import Counter
from itertools import pairwise
from typing import Any

from dagster_mlops.core.arrays import compute, np
from dagster_mlops.monitoring.windows.columns import BucketColumn, CategoryColumn, Column, DateColumn
from dagster_mlops.monitoring.windows.numbers import GRID, NumberColumn
from dagster_mlops.monitoring.windows.readings import numbers, short, texts, times
from dagster_mlops.monitoring.windows.values import Values, kind_of, plain

_FEW = 20  # distinct numbers that have a bin each
_MASS = 0.05  # share of one number that gives it a bin
_SHOWN, _KNOWN = 60, 1000
_DAY = 86_400_000_000


PlainColumn = Column | NumberColumn | CategoryColumn | BucketColumn | DateColumn


class Learner:
    """The bins of one column, learnt from its values batch by batch."""

    def __init__(self, name: str, bins: int, as_category: bool) -> None:
        self._name, self._bins, self._as_category = name, bins, as_category
        self.values: list[Values] = []

    def add(self, values: Values) -> None:
        """Look at some values."""
        self.values.append(plain(values))

    def cells(self, column: NumberColumn) -> "np.ndarray":
        """The cells of all values."""
        return np.concatenate([column.cells(values) for values in self.values])

    def column(self) -> PlainColumn:
        """The column's bins."""
        kinds: Counter[str] = Counter()
        for values in self.values:
            kinds[kind_of(values)] += values.rows
        kinds.pop("empty", None)
        kind = kinds.most_common(1)[0][0] if kinds else "empty"
        if kind in ("number", "category") and self._as_category:
            return self._categories()
        if kind == "number":
            return self._numbers()
        if kind == "category":
            return self._categories()
        return self._dates() if kind == "date" else Column(self._name, kind)

    def _numbers(self) -> PlainColumn:
        parts = []
        for values in self.values:
            column = numbers(values)
            use = np.isfinite(column.values)
            for mask in (column.missing, column.malformed):
                if mask is not None:
                    use &= ~mask
            parts.append(column.values if use.all() else column.values[use])
        exact = all(part.dtype == np.int64 for part in parts)
        x = np.concatenate(parts if exact else [part.astype(np.float64) for part in parts])
        if exact and len(x) >= 100 and bool((x[1:] > x[:-1]).all()):
            return BucketColumn(self._name, "id")
        return number_column(self._name, x, self._bins)

    def _categories(self) -> PlainColumn:
        tally: Counter[str] = Counter()
        for values in self.values:
            for entry in compute.value_counts(texts(values).values).to_pylist():
                if entry["values"] is not None:
                    tally[short(entry["values"])] += entry["counts"]
        rows = sum(tally.values())
        if len(tally) > _KNOWN or (len(tally) > 100 and len(tally) > rows / 2):
            return BucketColumn(self._name, "text")
        names = [name for name, _ in sorted(tally.items(), key=lambda item: (-item[1], item[0]))]
        novelty = sum(count == 1 for count in tally.values()) / rows if rows else 0.0
        return CategoryColumn(self._name, tuple(names[:_SHOWN]), tuple(names[_SHOWN:]), novelty)

    def _dates(self) -> DateColumn:
        ends = []
        for values in self.values:
            column = times(values)
            use = np.ones(len(column.values), bool)
            for mask in (column.missing, column.malformed):
                if mask is not None:
                    use &= ~mask
            if use.any():
                ends += [int(column.values[use].min()), int(column.values[use].max())]
        if not ends:
            return DateColumn(self._name, 0, 0)
        span = max(ends) - min(ends) + _DAY
        return DateColumn(self._name, min(ends) - span, max(ends) + 10 * span + 3650 * _DAY)


def number_column(
    name: str, x: "np.ndarray", bins: int, *, least_spread: float = 0.0, tail: float = 0.0
) -> NumberColumn:
    """Bins of finite numbers: `bins` quantiles, one of its own for each frequent number, and those out of range.

    The grid reaches half the range beyond the reference's extremes, which themselves reach at most five times the
    spread (1 % to 99 %) beyond it: one extreme value does not stretch it.
    """
    if not len(x):
        return NumberColumn(name, 0.0, 1.0, (GRID // 2,))
    x = np.sort(x)
    exact = x.dtype == np.int64

    def at(share: float) -> Any:
        value = x[min(int(share * len(x)), len(x) - 1)]
        return int(value) if exact else float(value)

    least, most = at(tail), at(1 - tail)
    # Divided before they are subtracted: the ends may be ±1e308.
    spread = at(0.99) / GRID - at(0.01) / GRID if not exact else (at(0.99) - at(0.01)) / GRID
    if spread <= 0:
        spread = most / GRID - least / GRID if not exact else (most - least) / GRID
    if spread <= 0:
        spread = max(abs(least), 1) / GRID
    spread = max(spread, least_spread / GRID)
    most_far = int(5 * spread * GRID) if exact else 5 * spread * GRID  # an integer less a float would not be exact
    low, high = max(least, _finite(at(0.01) - most_far)), min(most, _finite(at(0.99) + most_far))
    reach = (high - low) / GRID if exact else high / GRID - low / GRID
    margin = reach / 2 if reach > 0 else spread / 2
    start = 0 if exact else _finite(low - margin * GRID)
    if exact:
        start = max(low - math.ceil(margin * GRID), -(2**63))
        unit = (high - start + margin * GRID) / GRID + 2.0**-20
    else:  # not finer than the numbers' own precision around its start
        unit = max(reach + 2 * margin, abs(start) * 2.0**-50, 1e-300)

    def place(value: Any) -> float:
        return (value - start) / unit if exact else value * (1 / unit) - start / unit

    def cell(position: float) -> int:
        return int(min(max(position, 0), GRID - 1))

    distinct, counts = np.unique(x, return_counts=True)
    values = [int(value) for value in distinct] if exact else distinct.tolist()
    if len(values) <= _FEW:
        edges = {cell((place(a) + place(b)) / 2) for a, b in pairwise(values)}
    else:
        edges = {cell(place(at(i / bins))) for i in range(1, bins)}
        for value in np.asarray(distinct)[counts >= _MASS * len(x)]:
            frequent = cell(place(int(value) if exact else float(value)))
            edges |= {frequent, frequent + 1}
    edges |= {cell(place(low)), cell(place(high)) + 1}
    return NumberColumn(name, start, unit, tuple(sorted(edge for edge in edges if 0 < edge < GRID)))


def _finite(value: Any) -> Any:
    return value if isinstance(value, int) else min(max(value, -1.79e308), 1.79e308)
