"""Bins of one column, frozen with the reference: four for what is wrong with a value, then its distribution."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dagster_mlops.core.arrays import compute, np, pa
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.monitoring.windows.values import Values, is_missing, numbers, plain, shortened, texts, times

MISSING, MALFORMED, UNSEEN, ABOVE = range(4)
"""The first bins of every column. `UNSEEN` is a category that the reference has not, or a number far below its range;
`ABOVE` a number far above it."""
SPECIAL = 4
_GRID = 16_384
_CENTRE = _GRID // 2
_BUCKETS = 16


class Codes(NamedTuple):
    """The bin of each value, and its position on the grid (0 in the centre, and for what is not on the grid)."""

    bins: "np.ndarray"
    positions: "np.ndarray | None" = None


@lazy_dataclass(frozen=True)
class Column:
    """A column of which only missing and present values are counted: nested values, or nothing in the reference."""

    name: str
    kind: str
    size: int = SPECIAL + 1

    def codes(self, values: Values) -> Codes:
        """The bin of each value."""
        present = UNSEEN if self.kind == "empty" else SPECIAL
        return Codes(np.where(is_missing(values), MISSING, present))

    def labels(self) -> list[str]:
        """Texts of the bins after the first four."""
        return ["present"]

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {"name": self.name, "kind": self.kind}


@lazy_dataclass(frozen=True)
class NumberColumn:
    """Numbers on a grid of 16,384 cells of width `unit` from `low` on; `edges` are the first cells of the bins but one.

    The sums of a window are those of cells, hence whole numbers. Outside of the grid a value is far out of range: it
    has a bin, and no part in the sums, so that one outlier hides nothing.
    """

    name: str
    low: int | float
    unit: float
    edges: tuple[int, ...]
    kind: str = "number"

    @property
    def size(self) -> int:
        return SPECIAL + len(self.edges) + 1

    def codes(self, values: Values) -> Codes:
        """The bin and the position of each value."""
        cells = self.cells(values)
        on_grid = (cells >= SPECIAL) & (cells < SPECIAL + _GRID)
        return Codes(self._bin_of_cell()[cells], np.where(on_grid, cells - (SPECIAL + _CENTRE), 0))

    def cells(self, values: Values) -> "np.ndarray":
        """The cell of each value, from 4 on; the four before are those of special bins."""
        column = numbers(plain(values))
        x = column.values
        if x.dtype == np.int64 and isinstance(self.low, int):  # exact, also beyond 2^53
            reach = math.ceil(self.unit * _GRID) + 2
            least, most = (min(max(end, -(2**63)), 2**63 - 1) for end in (self.low - 2, self.low + reach))
            x = (np.clip(x, least, most).astype(np.uint64) - np.uint64(least % 2**64)).astype(np.float64)
            x = (x + (least - self.low)) / self.unit
        else:  # divided before it is subtracted from: the difference of two finite numbers may be infinite
            with np.errstate(over="ignore", invalid="ignore"):
                x = x / self.unit - float(self.low) / self.unit
        x = np.clip(x, -1.0, float(_GRID)) + SPECIAL
        missing = np.isnan(x)
        if missing.any():
            x[missing] = MISSING
        cells = x.astype(np.int64)
        cells[cells == SPECIAL - 1] = UNSEEN
        cells[(x < SPECIAL) & (cells == SPECIAL)] = UNSEEN
        cells[cells == SPECIAL + _GRID] = ABOVE
        if column.values.dtype != np.int64 and ((cells == UNSEEN) | (cells == ABOVE)).any():
            cells[np.isinf(column.values)] = MALFORMED
        for mask, cell in ((column.malformed, MALFORMED), (column.missing, MISSING)):
            if mask is not None:
                cells[mask] = cell
        return cells

    def _bin_of_cell(self) -> "np.ndarray":
        table = np.arange(SPECIAL + _GRID)
        table[SPECIAL:] = SPECIAL + np.searchsorted(self.edges, np.arange(_GRID), side="right")
        return table

    def position(self, value: float) -> float:
        """A value as a position on the grid."""
        return (value - self.low) / self.unit - _CENTRE

    def value(self, position: float) -> float:
        """The value at a position on the grid, in the column's own unit."""
        return float(self.low + self.unit * (position + _CENTRE + 0.5))

    def labels(self) -> list[str]:
        """Texts of the bins after the first four."""
        if isinstance(self.low, int):
            ends = [str(self.low + math.ceil(self.unit * edge)) for edge in self.edges]
        else:
            ends = [f"{self.low + self.unit * edge:.6g}" for edge in self.edges]
        between = [f"{start} to {end}" for start, end in itertools.pairwise(ends)]
        return [f"below {ends[0]}", *between, f"from {ends[-1]}"] if ends else ["any"]

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {"name": self.name, "kind": self.kind, "low": self.low, "unit": self.unit, "edges": list(self.edges)}


@lazy_dataclass(frozen=True)
class CategoryColumn:
    """Categories: a bin for each of the most frequent ones, one for the others of the reference.

    Args:
        frequent: Categories with a bin of their own, the most frequent first.
        rare: Other categories of the reference, which share a bin.
        novelty: Share of values that are new categories, as one has to expect: the share of the reference's categories
            that it holds once (Good, 1953, https://doi.org/10.1093/biomet/40.3-4.237).
    """

    name: str
    frequent: tuple[str, ...]
    rare: tuple[str, ...] = ()
    novelty: float = 0.0
    kind: str = "category"

    @property
    def size(self) -> int:
        return SPECIAL + len(self.frequent) + 1

    def codes(self, values: Values) -> Codes:
        """The bin of each value."""
        words = texts(plain(values))
        array = shortened(words.values)
        names = pa.array([*self.frequent, *self.rare], pa.large_string())
        index = compute.index_in(array.cast(pa.large_string()), value_set=names)
        places = compute.fill_null(index, -1).to_numpy(zero_copy_only=False)
        codes = np.where(places < 0, UNSEEN, SPECIAL + np.minimum(places, len(self.frequent))).astype(np.int64)
        if array.null_count:
            codes[np.asarray(compute.is_null(array))] = MISSING
        if words.malformed is not None:
            codes[words.malformed] = MALFORMED
        return Codes(codes)

    def labels(self) -> list[str]:
        """Texts of the bins after the first four."""
        return [*self.frequent, "other"]

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        lists = {"frequent": list(self.frequent), "rare": list(self.rare)}
        return {"name": self.name, "kind": self.kind, **lists, "novelty": self.novelty}


@lazy_dataclass(frozen=True)
class BucketColumn:
    """Identifiers, numbers in order or texts of too many kinds: 16 buckets, which fill evenly unless ids collapse."""

    name: str
    kind: str
    size: int = SPECIAL + _BUCKETS

    def codes(self, values: Values) -> Codes:
        """The bin of each value."""
        if self.kind == "id":
            column = numbers(plain(values))
            with np.errstate(invalid="ignore"):
                integers = column.values if column.values.dtype == np.int64 else np.nan_to_num(column.values)
                codes = SPECIAL + (np.mod(integers, _BUCKETS)).astype(np.int64)
            missing, malformed = column.missing, column.malformed
            if column.values.dtype != np.int64:
                codes[np.isnan(column.values)] = MISSING
                codes[np.isinf(column.values)] = MALFORMED
        else:
            words = texts(plain(values))
            codes = SPECIAL + _buckets(words.values.cast(pa.large_string()))
            missing, malformed = np.asarray(compute.is_null(words.values)), words.malformed
        for mask, code in ((missing, MISSING), (malformed, MALFORMED)):
            if mask is not None:
                codes[mask] = code
        return Codes(codes)

    def labels(self) -> list[str]:
        """Texts of the bins after the first four."""
        return [f"bucket {i + 1}" for i in range(_BUCKETS)]

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {"name": self.name, "kind": self.kind}


def _buckets(array: Any) -> "np.ndarray":
    """A bucket for each text, by its last three bytes and its length, in whole arrays: Arrow has no hash of texts."""
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    content = np.frombuffer(data, np.uint8) if data and data.size else np.zeros(1, np.uint8)
    lengths = np.diff(ends)
    total = lengths * 7
    for back, factor in ((1, 1), (2, 3), (3, 5)):
        place = np.clip(ends[1:] - back, 0, len(content) - 1)
        total = total + np.where(lengths >= back, content[place].astype(np.int64) * factor, 0)
    return total % _BUCKETS


@lazy_dataclass(frozen=True)
class DateColumn:
    """Dates and times: only those far from the reference's are distinguished, because time goes on.

    Args:
        low: Earliest plausible time, in microseconds since 1970.
        high: The latest.
    """

    name: str
    low: int
    high: int
    kind: str = "date"
    size: int = SPECIAL + 1

    def codes(self, values: Values) -> Codes:
        """The bin of each value."""
        column = times(plain(values))
        codes = np.full(len(column.values), SPECIAL)
        codes[column.values < self.low], codes[column.values > self.high] = UNSEEN, ABOVE
        for mask, code in ((column.malformed, MALFORMED), (column.missing, MISSING)):
            if mask is not None:
                codes[mask] = code
        return Codes(codes)

    def labels(self) -> list[str]:
        """Texts of the bins after the first four."""
        return ["plausible"]

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {"name": self.name, "kind": self.kind, "low": self.low, "high": self.high}


AnyColumn = Column | NumberColumn | CategoryColumn | BucketColumn | DateColumn
_CLASSES: Mapping[str, Any] = {
    "number": NumberColumn,
    "category": CategoryColumn,
    "id": BucketColumn,
    "text": BucketColumn,
    "date": DateColumn,
}


def column_from_dict(data: Mapping[str, Any]) -> AnyColumn:
    """The column that its `to_dict` wrote."""
    lists = {name: tuple(value) for name, value in data.items() if isinstance(value, Sequence) and name in _LISTS}
    return _CLASSES.get(data["kind"], Column)(**{**data, **lists})


_LISTS = {"edges", "frequent", "rare"}
