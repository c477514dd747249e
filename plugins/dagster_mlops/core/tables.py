"""Tables of any library as an Arrow table or a pandas frame, and names and text as SQL writes them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dagster_mlops.core.extras import extra
from dagster_mlops.errors import DagsterMlopsError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


def as_table(value: Any, *, tool: str, error: type[DagsterMlopsError] = DagsterMlopsError) -> "pa.Table":
    """An Arrow table of a dataframe of any library, of a stream of rows, or of a mapping of them by partition.

    pandas, polars (lazy, too), Arrow tables, batches, streams and datasets, DuckDB relations and everything else that
    offers the `Arrow stream interface
    <https://arrow.apache.org/docs/format/CDataInterface/PyCapsuleInterface.html>`_. A pandas index is left out, and
    pandas' NaN is a missing value. Partitions are put together in the order of their keys.

    Args:
        value: The table.
        tool: Extra that brings pandas and pyarrow.
        error: Error to raise.

    Raises:
        DagsterMlopsError: `value` is not a table, or has a column of mixed types.

    >>> import pandas as pd
    >>> as_table(pd.DataFrame({"wind": [1.5, float("nan")]}), tool="feast")["wind"].to_pylist()
    [1.5, None]
    """
    pa, pd = extra("pyarrow", extra=tool), extra("pandas", extra=tool)
    if isinstance(value, pa.Table):
        return value
    if isinstance(value, pd.DataFrame):
        try:
            return pa.Table.from_pandas(value, preserve_index=False)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as problem:
            raise error(f"The table has a column of mixed types: {problem}. Cast it to one type first.") from problem
    if _is_partitioned(value):
        parts = [as_table(value[key], tool=tool, error=error) for key in sorted(value)]
        return pa.concat_tables(parts, promote_options="permissive")
    other: Any = value
    if hasattr(other, "collect") and hasattr(other, "collect_schema"):  # polars.LazyFrame
        other = other.collect()
    if hasattr(other, "to_arrow") and isinstance(table := other.to_arrow(), pa.Table):
        return table
    if hasattr(other, "__arrow_c_stream__") and not isinstance(other, pd.Series):
        return pa.RecordBatchReader.from_stream(other).read_all()
    if isinstance(other, pa.RecordBatch):
        return pa.Table.from_batches([other])
    if type(other).__module__.startswith("pyarrow.") and hasattr(other, "to_table"):  # a dataset or a scanner
        return other.to_table()
    raise error(
        f"{type(value).__module__}.{type(value).__qualname__} is not a table. Name an asset that its IO manager loads "
        "as a pandas, pyarrow or polars frame."
    )


def as_frame(value: Any, *, tool: str, error: type[DagsterMlopsError] = DagsterMlopsError) -> "pd.DataFrame":
    """A pandas frame of everything that :func:`as_table` takes; a pandas frame itself is returned as it is.

    Raises:
        DagsterMlopsError: `value` is not a table.
    """
    pd = extra("pandas", extra=tool)
    if isinstance(value, pd.DataFrame):
        return value
    if _is_partitioned(value):
        return pd.concat([as_frame(value[key], tool=tool, error=error) for key in sorted(value)], ignore_index=True)
    return as_table(value, tool=tool, error=error).to_pandas()


def sql_name(name: str) -> str:
    """A table's or column's name as SQL writes it.

    >>> sql_name('a"b')
    '"a""b"'
    """
    return '"' + name.replace('"', '""') + '"'


def sql_text(text: str) -> str:
    """A text as SQL writes it.

    >>> sql_text("it's")
    "'it''s'"
    """
    return "'" + text.replace("'", "''") + "'"


def _is_partitioned(value: Any) -> bool:
    """As Dagster's IO managers load several partitions: a mapping of their keys to tables."""
    return isinstance(value, Mapping) and bool(value) and all(isinstance(key, str) for key in value)
