"""A hash of a table's content: the same for a file, a frame and a stream, whatever library wrote it."""

import hashlib
from typing import Any

from dagster_mlops.core.arrays import compute, pa
from dagster_mlops.core.extras import extra
from dagster_mlops.core.tables import as_table


def content_hash(table: Any, *, tool: str) -> str:
    """The hash of everything that :func:`as_table` takes: rows and columns in their order, missing values, and types.

    It does not depend on the sizes of batches, on a pandas index, or on additions of a file format. NaN is a
    missing value, as it is in pandas, and a timestamp without a time zone is UTC. Widths that no reader keeps (large
    strings, units of times, dictionaries) do not count; integers and floats of different widths differ.

    Raises:
        DagsterMlopsError: `table` is not a table.

    >>> import pandas as pd, pyarrow as pa
    >>> made = pd.DataFrame({"origin": ["JFK", None], "wind": [1.5, float("nan")]})
    >>> content_hash(made, tool="feast") == content_hash(pa.Table.from_pandas(made), tool="feast")
    True
    """
    batches = _batches(table, tool)
    columns = [_Column(_plain(field.type)) for field in batches.schema]
    for batch in batches:
        for column, values in zip(columns, batch.columns, strict=True):
            column.add(values)
    total = hashlib.sha256()
    for field, column in zip(batches.schema, columns, strict=True):
        # A column without a single value has whatever type its library likes.
        type_name = column.type if column.has_values else "null"
        total.update(f"{field.name}\0{type_name}\0{column.digest()}\0".encode())
    return total.hexdigest()


class _Column:
    """Hashes one column, in batches of any size: which values are missing, the values, and the lengths of lists."""

    def __init__(self, type: "pa.DataType") -> None:
        self.type, self.has_values = type, False
        self._present, self._values, self._sizes = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
        self._nanoseconds, self._has_nanoseconds = hashlib.sha256(), False
        self._inner: list[_Column] = []
        if pa.types.is_large_list(type):
            self._inner = [_Column(type.value_type)]
        elif pa.types.is_struct(type):
            self._inner = [_Column(field.type) for field in type.fields]

    def add(self, values: "pa.Array") -> None:
        if isinstance(values.type, pa.BaseExtensionType):
            values = values.storage
        if pa.types.is_large_list(self.type):
            values = values.cast(pa.large_list(_item_type(values.type)))
        elif not pa.types.is_struct(self.type):  # whose fields, as a list's items, become plain one by one
            values = _in_microseconds(values, self._add_nanoseconds).cast(self.type)
        if pa.types.is_floating(self.type):
            values = compute.if_else(compute.is_nan(values), pa.scalar(None, self.type), values)
        self._present.update(compute.cast(values.is_valid(), pa.uint8()).to_numpy().tobytes())
        values = values.drop_null()
        self.has_values = self.has_values or len(values) > 0
        if pa.types.is_large_list(self.type):
            self._sizes.update(compute.list_value_length(values).to_numpy().astype("<i8").tobytes())
            self._inner[0].add(values.flatten())
        elif pa.types.is_struct(self.type):
            for inner, field in zip(self._inner, values.flatten(), strict=True):
                inner.add(field)
        elif pa.types.is_large_binary(self.type) or pa.types.is_large_string(self.type):
            values = values.cast(pa.large_binary())
            self._sizes.update(compute.binary_length(values).to_numpy().astype("<i8").tobytes())
            self._values.update(b"".join(values.to_pylist()))
        elif not pa.types.is_null(self.type):
            # Minus zero equals zero, and no reader promises to keep it.
            numbers = values.to_numpy(zero_copy_only=False)
            if numbers.dtype.kind not in "mM":  # times have no minus zero, and newer NumPy versions add no bare number
                numbers = numbers + 0
            self._values.update(numbers.astype(numbers.dtype.newbyteorder("<")).tobytes())

    def digest(self) -> str:
        hashes = [self._present, self._values, self._sizes, *([self._nanoseconds] if self._has_nanoseconds else [])]
        return "|".join([*(part.hexdigest() for part in hashes), *(inner.digest() for inner in self._inner)])

    def _add_nanoseconds(self, remainder: Any) -> None:
        self._has_nanoseconds = self._has_nanoseconds or bool(remainder.any())
        self._nanoseconds.update(remainder.astype("<i8").tobytes())


def _in_microseconds(values: "pa.Array", add_remainder: Any) -> "pa.Array":
    """Times in microseconds; the nanoseconds that remain go to `add_remainder`."""
    types, unit = pa.types, getattr(values.type, "unit", "")
    if types.is_timestamp(values.type):
        type = pa.timestamp("us")
    elif types.is_duration(values.type):
        type = pa.duration("us")
    elif types.is_time(values.type):
        type = pa.time64("us")
    else:
        return values
    if unit != "ns":
        return values.cast(type)
    numbers = values.cast(pa.int64())
    add_remainder(numbers.drop_null().to_numpy() % 1000)
    missing = numbers.is_null().to_numpy(zero_copy_only=False)
    return pa.array(numbers.fill_null(0).to_numpy() // 1000, pa.int64(), mask=missing).cast(type)


def _batches(table: Any, tool: str) -> "pa.RecordBatchReader":
    extra("pyarrow", extra=tool)  # says what to install for this tool
    if isinstance(table, pa.RecordBatchReader):
        return table
    # Small batches, so that their intermediate results stay small.
    arrow_table = as_table(_without_mixed_columns(table), tool=tool)
    return pa.RecordBatchReader.from_batches(arrow_table.schema, arrow_table.to_batches(max_chunksize=2**16))


def _item_type(type: "pa.DataType") -> "pa.DataType | None":
    """The type of the items of any kind of list; a map is a list of keys and values."""
    types = pa.types
    if types.is_map(type):
        return pa.struct([("key", type.key_type), ("value", type.item_type)])
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return type.value_type if any(is_list(type) for is_list in lists) else None


def _without_mixed_columns(table: Any) -> Any:
    """A pandas frame whose columns that Arrow has no type for, such as mixed ones, are their values' texts."""
    texts = {}
    for name, values in table.items() if hasattr(table, "iloc") else ():
        if values.dtype == object:
            try:
                pa.array(values, from_pandas=True)
            except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # the last: integers beyond 64 bits
                texts[name] = values.map(repr).where(values.notna(), None)
    return table.assign(**texts) if texts else table


def _plain(type: "pa.DataType") -> "pa.DataType":
    """The type that stands for all that hold the same values."""
    types = pa.types
    if isinstance(type, pa.BaseExtensionType):
        return _plain(type.storage_type)
    if types.is_dictionary(type):
        return _plain(type.value_type)
    if item := _item_type(type):
        return pa.large_list(_plain(item))
    if types.is_struct(type):
        return pa.struct([(field.name, _plain(field.type)) for field in type.fields])
    if types.is_timestamp(type) or types.is_date(type):
        return pa.timestamp("us")
    if types.is_integer(type) or types.is_boolean(type) or types.is_floating(type) or types.is_null(type):
        return type
    if types.is_duration(type):
        return pa.int64()
    return pa.large_string() if types.is_decimal(type) or types.is_time(type) else pa.large_binary()
