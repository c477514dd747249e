"""Bins of a column of categories, identifiers or dates, frozen with the reference."""

from typing import Any

from dagster_mlops.core.arrays import compute, np, pa
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.monitoring.windows.numbers import ABOVE, MALFORMED, MISSING, SPECIAL, UNSEEN, Codes
from dagster_mlops.monitoring.windows.readings import numbers, shortened, texts, times
from dagster_mlops.monitoring.windows.values import Values, is_missing, plain

_BUCKETS = 16


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
