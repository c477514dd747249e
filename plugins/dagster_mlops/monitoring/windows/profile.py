"""Bins of all columns of a model's data, frozen with its reference."""

import functools
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dagster_mlops.core.arrays import np
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring.windows.columns import BucketColumn, CategoryColumn, Column, DateColumn
from dagster_mlops.monitoring.windows.counts import HOURS, Counts, expect_version, hour_of_week
from dagster_mlops.monitoring.windows.known import KnownColumn, known_column
from dagster_mlops.monitoring.windows.learning import Learner, PlainColumn
from dagster_mlops.monitoring.windows.numbers import CELLS, MANY, MISSING, SPECIAL, Codes, NumberColumn, RelationColumn
from dagster_mlops.monitoring.windows.readings import times_in, times_of
from dagster_mlops.monitoring.windows.relations import learn_relations
from dagster_mlops.monitoring.windows.values import Values, batches
from dagster_mlops.monitoring.windows.zones import is_zone

AnyColumn = PlainColumn | RelationColumn | KnownColumn
_SPECIAL_NAMES = ("missing", "malformed")
_CLASSES: Mapping[str, Any] = {
    "number": NumberColumn,
    "category": CategoryColumn,
    "id": BucketColumn,
    "text": BucketColumn,
    "date": DateColumn,
    "values": KnownColumn,
}


@lazy_dataclass(frozen=True)
class Profile:
    """The bins in which the rows of a window are counted, learnt once from a reference.

    Numbers have quantile bins, one below the reference's range, one above it, and two far beyond; categories one for
    each of the most frequent, one for the others, one for *unseen* ones; every column one for missing and one for
    malformed values. Numbers are counted once more by whether the reference has them, and where others explain them,
    less what these lead to expect. Whole numbers of 64 bits are exact; infinities are malformed, NaN is missing.

    >>> import pandas as pd
    >>> profile = Profile.learn(pd.DataFrame({"wind": [1.0, 2.0, 4.0], "origin": ["EWR", "JFK", "EWR"]}))
    >>> counts = profile.count(pd.DataFrame({"wind": [2.0, None], "origin": ["EWR", "LGA"]}))
    >>> profile.histogram(counts, "origin")
    [('missing', 0), ('malformed', 0), ('unseen', 1), ('EWR', 1), ('JFK', 0), ('other', 0)]
    """

    columns: tuple[AnyColumn, ...]
    zone: str = "UTC"

    @classmethod
    def learn(
        cls,
        table: Any,
        columns: Sequence[str] | None = None,
        *,
        categories: Collection[str] = (),
        bins: int = 10,
        relations: bool = True,
        zone: str = "UTC",
    ) -> "Profile":
        """Learn the bins from a reference: a pandas, Arrow or polars table, or an iterator of record batches.

        Args:
            table: The reference.
            columns: Columns to count; all by default.
            categories: Columns of numbers that stand for categories.
            bins: Quantile bins of a column of numbers.
            relations: Count columns of numbers once more given those others that explain them, such as the temperature
                given dew point and humidity.
            zone: Time zone of the users, such as ``Europe/Vienna``: the hour of the week is that of their clocks, also
                in summer.

        Raises:
            MonitoringError: it is not a table, or a column or the time zone is not there.
        """
        if not is_zone(zone):
            raise MonitoringError(f"zone={zone!r} is not the name of a time zone, such as 'Europe/Vienna'.")
        learners: dict[str, Learner] = {}
        for batch in batches(table, columns):
            for name, values in batch.items():
                if name:
                    learners.setdefault(name, Learner(name, bins, name in categories)).add(values)
        if absent := [name for name in (*(columns or ()), *categories) if name not in learners]:
            raise MonitoringError(
                f"The reference has no column {absent[0]!r}. Its columns are: {', '.join(list(learners)[:20])}."
            )
        plain = {name: learners[name].column() for name in columns or learners}
        numbers = {name: column for name, column in plain.items() if isinstance(column, NumberColumn)}
        cells = {name: learners[name].cells(column) for name, column in numbers.items()}
        values = [known_column(column, cells[name], learners[name].values) for name, column in numbers.items()]
        return cls((*plain.values(), *(learn_relations(numbers, cells, bins) if relations else ()), *values), zone)

    def count(self, table: Any, times: Any = None) -> Counts:
        """Count the rows of a window in one pass, in bounded memory where `table` is an iterator of record batches.

        A column that the table lacks is missing in every row; one that the profile lacks is not looked at.

        Args:
            table: As for :meth:`learn`.
            times: Name of the column with the rows' times, or the times themselves: for the hour of the week.

        Raises:
            MonitoringError: it is not a table, or a row has no time.
        """
        names = {column.name for column in self.columns} | ({times} if isinstance(times, str) else set())
        rows = 0
        bins, sums = np.zeros(self.size, np.int64), np.zeros(2 * len(self.columns), np.int64)
        hours = np.zeros(HOURS, np.int64)
        for batch in batches(table, sorted(names)):
            length = batch[""].rows
            rows += length
            if isinstance(times, str):
                hours += np.bincount(hour_of_week(times_in(batch, times), self.zone), minlength=HOURS)
            counted = self._cells(batch)
            by_cell = {n: np.bincount(cells, minlength=CELLS) for n, cells in counted.items() if length >= MANY}
            for i, (column, start) in enumerate(zip(self.columns, self.starts, strict=True)):
                stop = start + column.size
                if isinstance(column, KnownColumn):
                    if column.target in counted:
                        bins[start:stop] += column.tally(counted[column.target], by_cell.get(column.target))
                    else:
                        bins[start + MISSING] += length
                elif column.name in counted:
                    grid = column.rest if isinstance(column, RelationColumn) else column
                    assert isinstance(grid, NumberColumn)
                    by_bin, total, squares = grid.tally(counted[column.name], by_cell.get(column.name))
                    bins[start:stop] += by_bin
                    sums[2 * i : 2 * i + 2] += (total, squares)
                elif column.name in batch and not isinstance(column, RelationColumn):
                    bins[start:stop] += np.bincount(column.codes(batch[column.name]).bins, minlength=column.size)
                else:
                    bins[start + MISSING] += length
        if times is not None and not isinstance(times, str):
            hours += np.bincount(hour_of_week(times_of(times), self.zone), minlength=HOURS)
        return Counts(self.digest, rows, bins, sums, hours)

    def codes(self, batch: Mapping[str, Values]) -> list[Codes]:
        """The bins of a batch's values, for each column of the profile."""
        counted = self._cells(batch)
        missing = Codes(np.full(batch[""].rows, MISSING))
        codes = []
        for column in self.columns:
            if isinstance(column, KnownColumn):
                is_counted = column.target in counted
                codes.append(Codes(column.codes_of(counted[column.target])) if is_counted else missing)
            elif column.name in counted:
                grid = column.rest if isinstance(column, RelationColumn) else column
                assert isinstance(grid, NumberColumn)
                codes.append(grid.codes_of(counted[column.name]))
            elif column.name in batch and not isinstance(column, RelationColumn):
                codes.append(column.codes(batch[column.name]))
            else:
                codes.append(missing)
        return codes

    def _cells(self, batch: Mapping[str, Values]) -> dict[str, "np.ndarray"]:
        """The cells of columns of numbers and of their relations that a batch holds."""
        numbers = {
            column.name: column for column in self.columns if isinstance(column, NumberColumn) and column.name in batch
        }
        cells = {name: column.cells(batch[name]) for name, column in numbers.items()}
        for column in self.columns:
            if isinstance(column, RelationColumn) and {column.target, *column.inputs} <= set(cells):
                cells[column.name] = column.cells(numbers, cells)
        return cells

    def empty(self) -> Counts:
        """The counts of no rows."""
        bins, sums = np.zeros(self.size, np.int64), np.zeros(2 * len(self.columns), np.int64)
        return Counts(self.digest, 0, bins, sums, np.zeros(HOURS, np.int64))

    @functools.cached_property
    def starts(self) -> list[int]:
        """The first bin of each column."""
        sizes = [0, *(column.size for column in self.columns)]
        return np.cumsum(sizes)[:-1].tolist()

    @functools.cached_property
    def size(self) -> int:
        """Number of bins of all columns."""
        return sum(column.size for column in self.columns)

    @functools.cached_property
    def digest(self) -> str:
        """A name for these bins; counts say which they were made with."""
        text = json.dumps(self.to_dict())
        return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]

    def histogram(self, counts: Counts, column: str) -> list[tuple[str, int]]:
        """The values of a column by bin: the bin in words, and how many.

        Raises:
            MonitoringError: the profile has no such column, or the counts are those of another profile.
        """
        if counts.profile != self.digest:
            raise MonitoringError("These counts were made with another profile.")
        for entry, start in zip(self.columns, self.starts, strict=True):
            if entry.name == column:
                values = counts.bins[start : start + entry.size].tolist()
                if entry.kind in ("number", "date", "relation", "values"):
                    names = [*_SPECIAL_NAMES, "far below", "far above", *entry.labels()]
                    return list(zip(names, values, strict=True))
                names = [*_SPECIAL_NAMES, "unseen", *entry.labels()]
                return list(zip(names, [*values[:3], *values[SPECIAL:]], strict=True))
        raise MonitoringError(f"The profile has no column {column!r}.")

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {"version": 1, "zone": self.zone, "columns": [column.to_dict() for column in self.columns]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Profile":
        """The profile that :meth:`to_dict` wrote.

        Raises:
            MonitoringError: it was written by a later version.
        """
        expect_version(data, "profiles")
        return cls(tuple(_column_from_dict(column) for column in data["columns"]), data["zone"])


def _column_from_dict(data: Mapping[str, Any]) -> AnyColumn:
    if data["kind"] == "relation":
        rest = _column_from_dict(data["rest"])
        assert isinstance(rest, NumberColumn)
        products = tuple((first, second, weight) for first, second, weight in data.get("products", ()))
        return RelationColumn(**{**data, "rest": rest, "products": products})
    lists = {name: tuple(value) for name, value in data.items() if isinstance(value, list)}
    return _CLASSES.get(data["kind"], Column)(**{**data, **lists})
