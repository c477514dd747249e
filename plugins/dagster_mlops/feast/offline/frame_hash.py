"""A hash of what a table says: the same for a file, a frame and a stream, whatever library wrote it."""

import hashlib
from typing import TYPE_CHECKING, Any

from dagster_mlops.core.extras import extra

if TYPE_CHECKING:
    import pyarrow as pa


def content_hash(frame: Any) -> str:
    """The hash of a dataframe, Arrow table or stream: rows and columns in their order, missing values, and types.

    It does not depend on how the rows are cut into pieces, on a pandas index, or on what a file format adds. NaN is a
    missing value, as it is in pandas. Widths that no reader keeps (large strings, units of timestamps, dictionaries) do
    not count.

    >>> import pandas as pd
    >>> made = pd.DataFrame({"origin": ["JFK", None], "wind": [1.5, float("nan")]})
    >>> content_hash(made) == content_hash(pa.Table.from_pandas(made, preserve_index=False))
    True
    """
    batches = _batches(frame)
    columns = [_Column(_plain(field.type)) for field in batches.schema]
    for batch in batches:
        for column, values in zip(columns, batch.columns, strict=True):
            column.add(values)
    whole = hashlib.sha256()
    for field, column in zip(batches.schema, columns, strict=True):
        # A column without a single value has whatever type its library likes.
        kind = column.type if column.any else "null"
        whole.update(f"{field.name}\0{kind}\0{column.digest()}\0".encode())
    return whole.hexdigest()


def as_table(frame: Any) -> "pa.Table":
    """A pandas or polars dataframe, Arrow table or stream as an Arrow table without an index; NaN is missing."""
    pa = extra("pyarrow", extra="feast")
    if hasattr(frame, "collect"):  # a polars LazyFrame
        frame = frame.collect()
    if hasattr(frame, "to_arrow"):
        return frame.to_arrow()
    if isinstance(frame, pa.RecordBatchReader):
        return frame.read_all()
    return frame if isinstance(frame, pa.Table) else pa.Table.from_pandas(frame, preserve_index=False)


class _Column:
    """Hashes one column, however it is cut: which values are there, the values, and for lists how long each is."""

    def __init__(self, type: "pa.DataType") -> None:
        pa = extra("pyarrow", extra="feast")
        self.type, self.any = type, False
        self._there, self._values, self._sizes = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
        self._inner: list[_Column] = []
        if pa.types.is_large_list(type):
            self._inner = [_Column(type.value_type)]
        elif pa.types.is_struct(type):
            self._inner = [_Column(field.type) for field in type.fields]

    def add(self, values: "pa.Array") -> None:
        pa, compute = extra("pyarrow", extra="feast"), extra("pyarrow.compute", extra="feast")
        values = values.cast(self.type)
        if pa.types.is_floating(self.type):
            values = compute.if_else(compute.is_nan(values), pa.scalar(None, self.type), values)
        self._there.update(compute.cast(values.is_valid(), pa.uint8()).to_numpy().tobytes())
        values = values.drop_null()
        self.any = self.any or len(values) > 0
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
            plain = values.to_numpy(zero_copy_only=False) + 0
            self._values.update(plain.astype(plain.dtype.newbyteorder("<")).tobytes())

    def digest(self) -> str:
        parts = [hashed.hexdigest() for hashed in (self._there, self._values, self._sizes)]
        return "|".join([*parts, *(inner.digest() for inner in self._inner)])


def _batches(frame: Any) -> "pa.RecordBatchReader":
    pa = extra("pyarrow", extra="feast")
    if isinstance(frame, pa.RecordBatchReader):
        return frame
    # Small pieces, so that what is made of a piece stays small.
    table = as_table(frame)
    return pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=2**16))


def _plain(kind: "pa.DataType") -> "pa.DataType":
    """The type that stands for all that hold the same values."""
    pa = extra("pyarrow", extra="feast")
    types = pa.types
    if types.is_dictionary(kind):
        return _plain(kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return pa.large_list(_plain(kind.value_type))
    if types.is_struct(kind):
        return pa.struct([(field.name, _plain(field.type)) for field in kind.fields])
    if types.is_timestamp(kind) or types.is_date(kind):
        return pa.timestamp("us")
    if types.is_integer(kind) or types.is_boolean(kind) or types.is_floating(kind) or types.is_null(kind):
        return kind
    if types.is_duration(kind):
        return pa.int64()
    return pa.large_string() if types.is_decimal(kind) or types.is_time(kind) else pa.large_binary()
