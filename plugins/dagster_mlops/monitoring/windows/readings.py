"""Values read as numbers, texts or times, with what does not fit beside them."""

import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dagster_mlops.core.arrays import compute, np, pa, pd
from dagster_mlops.core.timestamps import to_microseconds
from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring.windows.values import Values, floats, is_number_type, kind_of_object, of_series, plain

_LONG = 200
_YEARS = 1900, 2200  # of rows, beyond which something else was read as a time
_FIRST, _LAST = (to_microseconds(datetime.datetime(year, 1, 1)) for year in _YEARS)


class Numbers(NamedTuple):
    """Numbers, int64 or float64, and masks of those that are missing or malformed; None where there are none."""

    values: "np.ndarray"
    missing: "np.ndarray | None" = None
    malformed: "np.ndarray | None" = None


def numbers(values: Values) -> Numbers:
    """A column as numbers: 64-bit integers stay exact, NaN is missing, text and nested values are malformed."""
    array, types = values.array, pa.types
    if array is None:
        return _numbers_of_objects(values.objects)
    missing = None
    if array.null_count:
        missing = np.asarray(compute.is_null(array))
    if types.is_boolean(array.type):
        array = array.cast(pa.int8())
    if types.is_integer(array.type) and not types.is_uint64(array.type):
        filled = compute.fill_null(array, 0) if missing is not None else array
        return Numbers(filled.to_numpy(zero_copy_only=False).astype(np.int64, copy=False), missing)
    if is_number_type(array.type):
        return Numbers(floats(array), missing)
    valid = np.ones(len(array), bool) if missing is None else ~missing
    return Numbers(np.zeros(len(array)), missing, valid)


def _numbers_of_objects(objects: Sequence[Any]) -> Numbers:
    kinds = [kind_of_object(value) for value in objects]
    integers = all(
        kind != "number" or isinstance(value, int | np.integer) for kind, value in zip(kinds, objects, strict=True)
    )
    numeric = [_number(value) if kind == "number" else 0 for kind, value in zip(kinds, objects, strict=True)]
    if integers and all(-(2**63) <= value < 2**63 for value in numeric):
        result = np.array([int(value) for value in numeric], np.int64)
    else:
        result = np.array([_float(value) for value in numeric], np.float64)
    missing = np.array([kind == "empty" for kind in kinds], bool)
    return Numbers(result, missing, np.array([kind not in ("empty", "number") for kind in kinds], bool))


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, bool | int | np.integer | np.bool_) else _float(value)


def _float(value: Any) -> float:
    try:
        return float(value)
    except (OverflowError, ValueError):  # an integer or Decimal beyond float64, a signalling NaN
        return math.inf


class Texts(NamedTuple):
    """Texts as an Arrow array with nulls, and a mask of values that are not text, which are null there."""

    values: Any
    malformed: "np.ndarray | None" = None


def texts(values: Values) -> Texts:
    """A column as texts: numbers as they are written, bytes as UTF-8 or in hexadecimal; other values are malformed."""
    array, types = values.array, pa.types
    if array is not None:
        if types.is_string(array.type) or types.is_large_string(array.type):
            return Texts(array)
        if types.is_null(array.type):
            return Texts(array.cast(pa.string()))
        if types.is_boolean(array.type) or types.is_integer(array.type):
            return Texts((array.cast(pa.int8()) if types.is_boolean(array.type) else array).cast(pa.string()))
    objects = values.objects if array is None else array.to_pylist()
    words = [_text(value) for value in objects]
    malformed = np.array([kind_and_no_word(value, word) for value, word in zip(objects, words, strict=True)], bool)
    return Texts(pa.array(words, pa.large_string()), malformed)


def kind_and_no_word(value: Any, word: str | None) -> bool:
    """True for a value that is there, but not as a text."""
    return word is None and kind_of_object(value) != "empty"


def _text(value: Any) -> str | None:
    kind = kind_of_object(value)
    if kind == "number":
        number = _number(value)
        return str(int(number)) if math.isfinite(number) and number == int(number) else str(number)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.hex()
    if isinstance(value, str):
        return value if value.isascii() else value.encode(errors="replace").decode()
    return None


def times(values: Values) -> Numbers:
    """A column of dates or times as microseconds since 1970; texts in ISO 8601 are read."""
    array, types = values.array, pa.types
    if array is not None:
        if types.is_date(array.type):
            array = array.cast(pa.timestamp("s"))
        if types.is_timestamp(array.type):
            micros = _to_microseconds(array)
            missing = np.asarray(compute.is_null(array)) if array.null_count else None
            return Numbers(micros, missing)
    objects = values.objects if array is None else array.to_pylist()
    result, missing, malformed = np.zeros(len(objects), np.int64), [], []
    for i, value in enumerate(objects):
        kind = kind_of_object(value)
        missing.append(kind == "empty")
        try:
            if isinstance(value, str):
                value = datetime.datetime.fromisoformat(value)
            elif isinstance(value, np.datetime64):
                value = value.astype("datetime64[us]").astype(datetime.datetime)
            if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
                value = datetime.datetime(value.year, value.month, value.day)
            malformed.append(kind != "empty" and not isinstance(value, datetime.datetime))
            if isinstance(value, datetime.datetime) and kind != "empty":
                result[i] = to_microseconds(value)
        except (ValueError, OverflowError, TypeError):
            malformed.append(True)
    return Numbers(result, np.array(missing, bool), np.array(malformed, bool))


def _to_microseconds(array: Any) -> "np.ndarray":
    unit = array.type.unit
    raw = compute.fill_null(array.view(pa.int64()), 0).to_numpy(zero_copy_only=False)
    if unit == "ns":
        return raw // 1000
    factor = {"us": 1, "ms": 1000, "s": 1_000_000}[unit]
    limit = 2**62 // factor
    return np.clip(raw, -limit, limit) * factor


def times_in(batch: Mapping[str, Values], name: str) -> "np.ndarray":
    """The times in a column of a batch, as :func:`row_times` gives them.

    Raises:
        MonitoringError: the column is not there, or a row has no time.
    """
    if name not in batch:
        raise MonitoringError(f"The table has no column {name!r}, which is to hold the times.")
    return row_times(batch[name], name)


def row_times(values: Values, name: str) -> "np.ndarray":
    """The times of rows in microseconds since 1970.

    Raises:
        MonitoringError: a row has no time.
    """
    column = times(plain(values))
    bad = sum(int(mask.sum()) for mask in (column.missing, column.malformed) if mask is not None)
    if bad:
        advice = "Drop them, or name another time column"
        if is_number_type(values.array.type if values.array is not None else pa.null()):
            advice = "It holds numbers: make times of them, such as by pandas.to_datetime(…, unit='s')"
        raise MonitoringError(f"{bad:,} rows have no time in {name!r}. {advice}.")
    far = (column.values < _FIRST) | (column.values > _LAST)
    if far.any():
        raise MonitoringError(
            f"{int(far.sum()):,} rows have a time before {_YEARS[0]} or after {_YEARS[1]} in {name!r}. Drop them."
        )
    return column.values


def short(text: str) -> str:
    """A text as a profile keeps it: a long one by its start and a hash.

    >>> len(short("x" * 1_000_000)) < 300
    True
    """
    if len(text) <= _LONG:
        return text
    import hashlib

    return f"{text[:_LONG]}…{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:16]}"


def shortened(array: Any, longest: int = _LONG) -> Any:
    """An array of texts in which long ones are as :func:`short` writes them."""
    lengths = compute.utf8_length(array)
    longest_length = compute.max(lengths).as_py() or 0
    if longest_length <= longest:
        return array
    words = [None if word is None else short(word) for word in array.to_pylist()]
    return pa.array(words, pa.large_string())


def times_of(entries: Any) -> "np.ndarray":
    """A list or array of times in microseconds since 1970.

    Raises:
        MonitoringError: one of them is not a time.
    """
    return row_times(of_series(pd.Series(entries)), "times")
