"""Columns of any table as values that can be counted: arrays of one type, or Python objects."""

import datetime
import math
import sys
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from dagster_mlops.core.arrays import compute, np, pa, pd
from dagster_mlops.core.tables import as_table
from dagster_mlops.errors import MonitoringError

Kind = Literal["number", "category", "date", "nested", "empty"]
_NAMELESS = "(no name)"
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
    if _is_pandas(table):
        frame: Any = table
        columns = {
            name: of_series(frame.iloc[:, position])
            for position, name in _unique(frame.columns)
            if names is None or name in names
        }
        rows = len(frame)
        for start in range(0, max(rows, 1), _BATCH):
            yield {name: _slice(values, start) for name, values in columns.items()} | {
                "": Values(rows=min(rows - start, _BATCH))
            }
        return
    arrow: Any = table
    if not isinstance(table, pa.RecordBatch | pa.Table):
        arrow = as_table(table, tool="evidently", error=MonitoringError)
    positions = [(i, name) for i, name in _unique(arrow.schema.names) if names is None or name in names]
    parts = [arrow] if isinstance(arrow, pa.RecordBatch) else arrow.to_batches(max_chunksize=_BATCH)
    for part in parts or [pa.RecordBatch.from_pylist([], arrow.schema)]:
        for start in range(0, max(part.num_rows, 1), _BATCH):
            piece = part.slice(start, _BATCH)
            yield {
                **{name: Values(piece.column(i), rows=piece.num_rows) for i, name in positions},
                "": Values(rows=piece.num_rows),
            }


def _is_pandas(table: Any) -> bool:
    """True for a pandas frame; pandas, which takes a quarter of a second to import, is not imported for it."""
    return "pandas" in sys.modules and isinstance(table, pd.DataFrame)


def _slice(values: Values, start: int) -> Values:
    rows = min(values.rows - start, _BATCH)
    if values.array is None:
        return Values(None, values.objects[start : start + rows], rows)
    return Values(values.array.slice(start, rows), (), rows)


def _unique(labels: Any) -> list[tuple[int, str]]:
    seen: dict[str, int] = {}
    names = []
    for position, label in enumerate(labels):
        name = str(label) or _NAMELESS  # the empty text is the batch's own
        seen[name] = seen.get(name, 0) + 1
        names.append((position, name if seen[name] == 1 else f"{name} #{seen[name]}"))
    return names


def of_series(series: "pd.Series") -> Values:
    """A pandas column as values."""
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
        kinds = [kind_of_object(value) for value in values.objects]
        tally = {kind: kinds.count(kind) for kind in ("number", "category", "date", "nested")}
        best = max(tally, key=lambda kind: tally[kind])
        return best if tally[best] else "empty"  # type: ignore[return-value]
    array, types = values.array, pa.types
    if array.null_count == len(array):
        return "empty"
    if is_number_type(array.type):
        return "number" if types.is_integer(array.type) or _has_numbers(array) else "empty"
    if types.is_string(array.type) or types.is_large_string(array.type) or _is_bytes(array.type):
        return "category"
    if types.is_timestamp(array.type) or types.is_date(array.type):
        return "date"
    return "nested"


def _has_numbers(array: Any) -> bool:
    return bool(len(array)) and bool(np.isfinite(floats(array)).any())


def is_number_type(type: Any) -> bool:
    """True for an Arrow type of numbers or truth values."""
    types = pa.types
    return any(is_it(type) for is_it in (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal))


def _is_bytes(type: Any) -> bool:
    return pa.types.is_binary(type) or pa.types.is_large_binary(type) or pa.types.is_fixed_size_binary(type)


def kind_of_object(value: Any) -> str:
    """The kind of a Python object; ``empty`` for what is missing."""
    if value is None or value is pd.NaT or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return "empty"
    if isinstance(value, bool | int | float | Decimal | np.number | np.bool_) and not isinstance(
        value, np.complexfloating
    ):
        return "number"
    if isinstance(value, str | bytes):
        return "category"
    return "date" if isinstance(value, datetime.date | np.datetime64) else "nested"


def is_missing(values: Values) -> "np.ndarray":
    """True for each value that is not there."""
    if values.array is None:
        return np.array([kind_of_object(value) == "empty" for value in values.objects], bool)
    return np.asarray(compute.is_null(values.array, nan_is_null=True))


def floats(array: Any) -> "np.ndarray":
    """An array of numbers as float64, with NaN for what is missing."""
    if not pa.types.is_floating(array.type):
        array = array.cast(pa.float64(), safe=False)
    return array.to_numpy(zero_copy_only=False).astype(np.float64, copy=False)
