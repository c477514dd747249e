"""The rules of a data quality check: fixed ones of the user, with the senseless refused."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from dagster_mlops.monitoring.normalise import Kind


class Rules(NamedTuple):
    """Fixed limits; see :func:`data_quality_check` for each."""

    columns: Sequence[str] | None = None
    max_missing_share: float | Mapping[str, float] = 1.0
    max_malformed_share: float = 0.0
    min_rows: int = 1
    max_rows: int | None = None
    types: Mapping[str, Kind] = {}
    ranges: Mapping[str, tuple[float, float]] = {}
    categories: Mapping[str, Sequence[Any]] = {}
    at_least: Mapping[str, str] = {}
    no_duplicates_of: Sequence[str] = ()
    time: str | None = None
    max_age: timedelta | None = None
    tolerance: float = 0.01

    @property
    def configured(self) -> list[str]:
        """The columns that must be there."""
        by_column = self.max_missing_share if isinstance(self.max_missing_share, Mapping) else {}
        options = [self.types, self.ranges, self.categories, self.at_least, self.at_least.values()]
        names = [name for option in (self.columns or (), by_column, *options, self.no_duplicates_of) for name in option]
        return list(dict.fromkeys([*names, *([self.time] if self.time else [])]))

    def faults(self) -> dict[str, bool]:
        """Arguments with which the check would say the same of every table, for ``refuse_useless``."""
        missing = self.max_missing_share
        shares = missing if isinstance(missing, Mapping) else {"all columns": missing}
        shares = {f"max_missing_share of {column}": share for column, share in shares.items()}
        shares |= {"max_malformed_share": self.max_malformed_share, "tolerance": self.tolerance}
        return {
            **{f"{name}={share} is not between 0 and 1": not 0 <= share <= 1 for name, share in shares.items()},
            "columns is empty": self.columns is not None and not self.columns,
            **{
                f"no number is in the range {low} to {high} of {column!r}": not low <= high
                for column, (low, high) in self.ranges.items()
            },
            **{
                f"the categories of {column!r} are {values!r}, not a list of some": isinstance(values, str)
                or not values
                for column, values in self.categories.items()
            },
            **{f"{column!r} is always at least itself": column == other for column, other in self.at_least.items()},
            f"min_rows={self.min_rows} is less than 0": not self.min_rows >= 0,
            f"max_rows={self.max_rows} is less than min_rows={self.min_rows}": self.max_rows is not None
            and not self.max_rows >= self.min_rows,
            "time and max_age go together: the column, and how old its newest value may be": (self.time is None)
            != (self.max_age is None),
            f"max_age={self.max_age} is not a time above 0": self.max_age is not None and self.max_age <= timedelta(0),
        }
