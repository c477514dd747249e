"""Any dataframe made into one that a measuring tool can digest, with what was wrong with it said column by column.

One bad column can kill a whole report: an empty one, a nullable or pyarrow dtype, an infinity, a mixed object
column. So every column becomes float64 numbers, text categories, or something that is named and left out.
"""

import datetime
import itertools
from collections.abc import Sequence
from dataclasses import field
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

from dagster_mlops.core.arrays import np, pa, pd
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.tables import as_table
from dagster_mlops.errors import MonitoringError

Kind = Literal["number", "category", "date", "empty"]
_EXACT = 2**53


def to_pandas(value: Any) -> "pd.DataFrame":
    """A table of any library as a pandas frame; whole numbers with gaps stay whole.

    Raises:
        MonitoringError: `value` is not a table.
    """
    if isinstance(value, pd.DataFrame):
        return value
    table = as_table(value, tool="evidently", error=MonitoringError)
    # As float64, two identifiers of 19 digits would be one.
    exact = {pa.int64(): pd.Int64Dtype(), pa.uint64(): pd.UInt64Dtype()}
    gaps = any(table.column(n).null_count for n, kind in enumerate(table.schema.types) if kind in exact)
    return table.to_pandas(types_mapper=exact.get) if gaps else table.to_pandas()


@lazy_dataclass(frozen=True)
class Frame:
    """A frame whose columns are float64 (``number``) or text with None (``category``); other kinds hold no drift.

    `malformed` counts, by column, the values that do not fit the column's kind: infinities, text among numbers.
    They are missing in `data`.
    """

    data: "pd.DataFrame"
    kinds: dict[str, Kind]
    malformed: dict[str, int] = field(default_factory=dict)

    def sample(self, rows: int, seed: int) -> "Frame":
        """At most `rows` rows, the same ones each time, in their order."""
        if len(self.data) <= rows:
            return self
        return Frame(sampled(self.data, rows, seed), self.kinds, self.malformed)

    def where(self, rows: Any) -> "Frame":
        """The rows for which `rows`, a column of truth values, is true."""
        data: Any = self.data[rows]
        return Frame(data.reset_index(drop=True), self.kinds, self.malformed)


def sampled(frame: "pd.DataFrame", rows: int, seed: int) -> "pd.DataFrame":
    """At most `rows` rows of a frame, the same ones each time, in their order."""
    if len(frame) <= rows:
        return frame
    return frame.iloc[np.sort(np.random.default_rng(seed).choice(len(frame), rows, replace=False))]


def normalise(data: Any, columns: Sequence[str] | None = None) -> Frame:
    """Bring a frame into the form that :class:`Frame` promises; `columns` leaves out the others.

    Names become text; the second column of one name gets a number, as in ``temp (2)``. Whole numbers that float64 does
    not hold exactly (beyond 2^53, as identifiers have) are text of all their digits.

    Raises:
        MonitoringError: `data` is not a dataframe.
    """
    frame = to_pandas(data)
    values: dict[str, Any] = {}
    kinds: dict[str, Kind] = {}
    malformed: dict[str, int] = {}
    for position, label in enumerate(frame.columns):
        name = str(label)
        if columns is not None and name not in columns:
            continue
        if name in values:
            name = next(free for n in itertools.count(2) if (free := f"{name} ({n})") not in values)
        values[name], kinds[name], bad = _column(frame.iloc[:, position].reset_index(drop=True))
        if bad:
            malformed[name] = bad
    return Frame(pd.DataFrame(values, index=pd.RangeIndex(len(frame))), kinds, malformed)


def _column(series: "pd.Series") -> tuple["pd.Series", Kind, int]:
    types = pd.api.types
    dtype = series.dtype
    if types.is_object_dtype(dtype):
        series = _without_signals(series)
    if not series.notna().any():
        return pd.Series(np.nan, index=series.index, dtype=float), "empty", 0
    if types.is_timedelta64_dtype(dtype):
        series, dtype = series.dt.total_seconds(), np.dtype(float)
    if types.is_datetime64_any_dtype(dtype) or isinstance(dtype, pd.PeriodDtype | pd.IntervalDtype):
        return series, "date", 0
    if types.is_bool_dtype(dtype) or types.is_complex_dtype(dtype) or not types.is_numeric_dtype(dtype):
        return _objects(series.astype(object))
    if types.is_integer_dtype(dtype) and _are_beyond_float(series.dropna()):
        return _objects(series.astype(object))
    return _finite(pd.Series(series.to_numpy(dtype=float, na_value=np.nan), index=series.index), 0)


def _without_signals(series: "pd.Series") -> "pd.Series":
    """Objects without signalling NaN, which Python raises where pandas asks if it is missing."""
    try:
        series.notna()
    except InvalidOperation:
        return series.map(lambda value: None if isinstance(value, Decimal) and value.is_snan() else value)
    return series


def _finite(numbers: "pd.Series", malformed: int) -> tuple["pd.Series", Kind, int]:
    infinite = np.isinf(numbers)
    numbers = numbers.mask(infinite)
    return numbers, "number" if numbers.notna().any() else "empty", malformed + int(infinite.sum())


def _objects(series: "pd.Series") -> tuple["pd.Series", Kind, int]:
    """A column of Python objects is of the kind that most of its values are; the others are malformed."""
    present: Any = series[series.notna()]
    # By the few types rather than value by value: a month of flights has a hundred thousand words.
    types = pd.Series([type(value) for value in present], index=present.index, dtype=object)
    number, date = (types.isin([kind for kind in types.unique() if is_of(kind)]) for is_of in (_is_number, _is_date))
    integer = types.isin([kind for kind in types.unique() if issubclass(kind, int | np.integer)])
    if 2 * number.sum() > len(present) and not (integer.all() and _are_beyond_float(present)):
        return _finite(present[number].map(_float).astype(float).reindex(series.index), int((~number).sum()))
    if 2 * date.sum() > len(present):
        return series, "date", int((~date).sum())
    # Some types print as an address or not at all; tools need text that they can count.
    text = present if set(types) == {str} else present.map(str)
    odd = 0 if number.all() else int((number | date).sum())
    return text.astype(object).reindex(series.index).where(series.notna(), None), "category", odd


def _are_beyond_float(integers: "pd.Series") -> bool:
    """True if most of some whole numbers have more digits than float64 holds."""
    return bool(2 * ((integers > _EXACT) | (integers < -_EXACT)).sum() > len(integers))


def _is_number(kind: type) -> bool:
    return issubclass(kind, int | float | Decimal | np.number) and not issubclass(kind, bool | np.complexfloating)


def _is_date(kind: type) -> bool:
    return issubclass(kind, datetime.date | datetime.time | np.datetime64)


def _float(value: Any) -> float:
    try:
        return float(value)
    except (OverflowError, ValueError):  # a Python integer or Decimal beyond float64, a signalling NaN
        return float("inf")
