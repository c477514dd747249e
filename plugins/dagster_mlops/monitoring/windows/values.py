"""Columns of any table as values that can be counted: numbers, texts or times, with what does not fit beside them."""

import datetime
import math
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from dagster_mlops.core.arrays import compute, np, pa, pd
from dagster_mlops.core.tables import as_table
from dagster_mlops.core.timestamps import to_microseconds
from dagster_mlops.errors import MonitoringError

Kind = Literal["number", "category", "date", "nested", "empty"]
_LONG = 200
_BATCH = 131_072  # rows: temporary arrays stay in the processor's cache


class Values(NamedTuple):
    """One column: an Arrow array of one type, or Python objects of mixed types."""

    array: Any = None
    objects: Sequence[Any] = ()
    rows: int = 0


def batches(table: Any, names: Sequence[str] | None = None) -> Iterator[dict[str, Values]]:
    """The columns of a table of any library, by name, in batches of rows.

    The second of two columns of one name is ``name #2``. Columns that are not in `names` are left out.

    Args:
        table: pandas, Arrow or polars table, a record batch, or a reader or iterator of record batches.
        names: Columns; all by default.

    Raises:
        MonitoringError: `table` is not a table.
    """
    if isinstance(table, pa.RecordBatchReader) or (isinstance(table, Iterator) and not hasattr(table, "columns")):
        for batch in table:
            yield from batches(batch, names)
        return
    if isinstance(table, pd.DataFrame):
        columns = {
            name: _of_series(table.iloc[:, position])
            for position, name in _unique(table.columns)
            if names is None or name in names
        }
        rows = len(table)
        for start in range(0, max(rows, 1), _BATCH):
            yield {name: _slice(values, start) for name, values in columns.items()} | {
                "": Values(rows=min(rows - start, _BATCH))
            }
        return
    arrow: Any = (
        table if isinstance(table, pa.RecordBatch) else as_table(table, tool="evidently", error=MonitoringError)
    )
    positions = [(i, name) for i, name in _unique(arrow.schema.names) if names is None or name in names]
    parts = [arrow] if isinstance(arrow, pa.RecordBatch) else arrow.to_batches(max_chunksize=_BATCH)
    for part in parts or [pa.RecordBatch.from_pylist([], arrow.schema)]:
        for start in range(0, max(part.num_rows, 1), _BATCH):
            piece = part.slice(start, _BATCH)
            yield {
                **{name: Values(piece.column(i), rows=piece.num_rows) for i, name in positions},
                "": Values(rows=piece.num_rows),
            }


def _slice(values: Values, start: int) -> Values:
    rows = min(values.rows - start, _BATCH)
    if values.array is None:
        return Values(None, values.objects[start : start + rows], rows)
    return Values(values.array.slice(start, rows), (), rows)


def _unique(labels: Any) -> list[tuple[int, str]]:
    seen: dict[str, int] = {}
    names = []
    for position, label in enumerate(labels):
        name = str(label)
        seen[name] = seen.get(name, 0) + 1
        names.append((position, name if seen[name] == 1 else f"{name} #{seen[name]}"))
    return names


def _of_series(series: "pd.Series") -> Values:
    try:
        array = pa.array(series, from_pandas=True)
        if isinstance(array, pa.ChunkedArray):
            array = array.combine_chunks()
        return Values(array, rows=len(series))
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        return Values(None, series.tolist(), len(series))


def plain(values: Values) -> Values:
    """`values` without dictionaries and extension types, and Python objects in place of unions and views."""
    array = values.array
    if array is None:
        return values
    types = pa.types
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if types.is_run_end_encoded(array.type):
        array = compute.run_end_decode(array)
    if types.is_string_view(array.type) or types.is_binary_view(array.type):
        array = array.cast(pa.large_string())
    if types.is_float16(array.type):
        array = array.cast(pa.float32())
    if types.is_duration(array.type) or types.is_time(array.type):
        array = array.view(pa.int32() if types.is_time32(array.type) else pa.int64())
    return Values(array, rows=values.rows)


def kind_of(values: Values) -> Kind:
    """The kind of most of the values."""
    if values.array is None:
        kinds = [_kind_of_object(value) for value in values.objects]
        tally = {kind: kinds.count(kind) for kind in ("number", "category", "date", "nested")}
        best = max(tally, key=lambda kind: tally[kind])
        return best if tally[best] else "empty"  # type: ignore[return-value]
    array, types = values.array, pa.types
    if array.null_count == len(array):
        return "empty"
    if _is_number(array.type):
        return "number" if types.is_integer(array.type) or _has_numbers(array) else "empty"
    if types.is_string(array.type) or types.is_large_string(array.type) or _is_bytes(array.type):
        return "category"
    if types.is_timestamp(array.type) or types.is_date(array.type):
        return "date"
    return "nested"


def _has_numbers(array: Any) -> bool:
    return bool(len(array)) and bool(np.isfinite(_floats(array)).any())


def _is_number(type: Any) -> bool:
    types = pa.types
    return any(is_it(type) for is_it in (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal))


def _is_bytes(type: Any) -> bool:
    return pa.types.is_binary(type) or pa.types.is_large_binary(type) or pa.types.is_fixed_size_binary(type)


def _kind_of_object(value: Any) -> str:
    if value is None or value is pd.NaT or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return "empty"
    if isinstance(value, bool | int | float | Decimal | np.number | np.bool_) and not isinstance(
        value, np.complexfloating
    ):
        return "number"
    if isinstance(value, str | bytes):
        return "category"
    return "date" if isinstance(value, datetime.date | np.datetime64) else "nested"


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
    if _is_number(array.type):
        return Numbers(_floats(array), missing)
    valid = np.ones(len(array), bool) if missing is None else ~missing
    return Numbers(np.zeros(len(array)), missing, valid)


def _floats(array: Any) -> "np.ndarray":
    if not pa.types.is_floating(array.type):
        array = array.cast(pa.float64(), safe=False)
    return array.to_numpy(zero_copy_only=False).astype(np.float64, copy=False)


def _numbers_of_objects(objects: Sequence[Any]) -> Numbers:
    kinds = [_kind_of_object(value) for value in objects]
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
    return word is None and _kind_of_object(value) != "empty"


def _text(value: Any) -> str | None:
    kind = _kind_of_object(value)
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
        kind = _kind_of_object(value)
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


def row_times(values: Values, name: str) -> "np.ndarray":
    """The times of rows in microseconds since 1970.

    Raises:
        MonitoringError: a row has no time.
    """
    column = times(plain(values))
    bad = sum(int(mask.sum()) for mask in (column.missing, column.malformed) if mask is not None)
    if bad:
        raise MonitoringError(f"{bad:,} rows have no time in {name!r}. Drop them, or name another time column.")
    return column.values


def times_of(entries: Any) -> "np.ndarray":
    """A list or array of times in microseconds since 1970.

    Raises:
        MonitoringError: one of them is not a time.
    """
    return row_times(_of_series(pd.Series(entries)), "times")


def is_missing(values: Values) -> "np.ndarray":
    """True for each value that is not there."""
    if values.array is None:
        return np.array([_kind_of_object(value) == "empty" for value in values.objects], bool)
    return np.asarray(compute.is_null(values.array, nan_is_null=True))


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
