"""The properties of a good table, learnt from a reference: kinds, missing values, ranges, categories and orders."""

import itertools
import math
from collections.abc import Collection, Mapping
from dataclasses import field
from typing import Any, Literal, get_args

from dagster_mlops.core.arrays import np
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.monitoring.normalise import Frame, Kind

Lesson = Literal["types", "missing", "ranges", "categories", "orders"]
LESSONS: tuple[Lesson, ...] = get_args(Lesson)
_FEWEST = 100  # rows of a reference from which anything is learnt
_MOST_CATEGORIES = 1_000
_MOST_ORDERED = 60  # columns of numbers that are held against each other
_STANDARD_ERRORS = 4


@lazy_dataclass(frozen=True)
class Expectations:
    """Facts that held for a reference. `unseen` is the share of new categories that it lets expect.

    `orders` are pairs of columns: the first was never below the second, in any row.
    """

    rows: int = 0
    kinds: dict[str, Kind] = field(default_factory=dict)
    missing: dict[str, float] = field(default_factory=dict)
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    categories: dict[str, frozenset[str]] = field(default_factory=dict)
    unseen: dict[str, float] = field(default_factory=dict)
    orders: tuple[tuple[str, str], ...] = ()

    @classmethod
    def learn(cls, frame: Frame, lessons: Collection[Lesson] = LESSONS) -> "Expectations":
        """Learn from a reference of at least 100 rows; from a smaller one, nothing.

        Of a column of words, new ones are expected as often as words that are there once: I. J. Good, The population
        frequencies of species, Biometrika 40, 1953. So identifiers and long tails have no fixed categories.
        """
        rows = len(frame.data)
        if rows < _FEWEST:
            return cls(rows=rows)
        missing = {name: float(frame.data[name].isna().mean()) for name in frame.kinds}
        ranges, categories, unseen = {}, {}, {}
        for name, kind in frame.kinds.items():
            values: Any = frame.data[name].dropna()
            if kind == "number":
                ranges[name] = float(values.min()), float(values.max())
            elif kind == "category":
                counts = values.value_counts()
                if len(counts) <= _MOST_CATEGORIES:
                    categories[name] = frozenset(map(str, counts.index))
                    unseen[name] = float((counts == 1).sum() / len(values))
        return cls(
            rows=rows,
            kinds=dict(frame.kinds) if "types" in lessons else {},
            missing=missing if "missing" in lessons else {},
            ranges=ranges if "ranges" in lessons else {},
            categories=categories if "categories" in lessons else {},
            unseen=unseen,
            orders=_orders(frame) if "orders" in lessons else (),
        )


def too_many(share: float, rows: int, expected: float, tolerance: float, reference_rows: int) -> bool:
    """True if a share is above the expected one by more than the tolerance, and by more than chance.

    >>> too_many(0.02, 1000, 0.0, 0.01, 1000), too_many(0.1, 10, 0.0, 0.01, 1000)
    (True, False)
    """
    allowed = min(expected + tolerance, 1.0)
    error = math.sqrt(allowed * (1 - allowed) * (1 / max(rows, 1) + 1 / max(reference_rows, 1)))
    return share > allowed + _STANDARD_ERRORS * error


def disorder(frame: Frame, orders: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], tuple[float, int]]:
    """By pair of columns, the share of rows in which the first is below the second, and the rows that have both."""
    shares = {}
    for greater, less in orders:
        if frame.kinds.get(greater) == frame.kinds.get(less) == "number":
            left, right = frame.data[greater], frame.data[less]
            rows = int((left.notna() & right.notna()).sum())
            shares[greater, less] = (float((left < right).sum() / max(rows, 1)), rows)
    return shares


def _orders(frame: Frame) -> tuple[tuple[str, str], ...]:
    """Pairs whose first is never below the second, though their ranges overlap."""
    numbers = [name for name, kind in frame.kinds.items() if kind == "number"][:_MOST_ORDERED]
    if not numbers:
        return ()
    values = frame.data[numbers].to_numpy(dtype=float)
    with np.errstate(invalid="ignore"):
        low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
        pairs = []
        for i, j in itertools.permutations(range(len(numbers)), 2):
            if low[i] >= high[j] or high[i] <= low[j]:
                continue  # their ranges say it already
            complete = ~(np.isnan(values[:, i]) | np.isnan(values[:, j]))
            if complete.sum() >= _FEWEST and (values[complete, i] >= values[complete, j]).all():
                pairs.append((numbers[i], numbers[j]))
    return tuple(pairs)
