"""Whatever an IO manager loads as a table, as a pandas frame."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dagster_mlops.core.extras import extra
from dagster_mlops.errors import DagsterMlopsError

if TYPE_CHECKING:
    import pandas as pd


def as_frame(value: Any, *, tool: str, error: type[DagsterMlopsError]) -> "pd.DataFrame":
    """A pandas, pyarrow or polars frame, or one by partition, as one pandas frame.

    `tool` is the extra that brings pandas.

    Raises:
        DagsterMlopsError: an `error`, where `value` is no dataframe.
    """
    pd = extra("pandas", extra=tool)
    if isinstance(value, pd.DataFrame):
        return value
    if isinstance(value, Mapping) and value and all(hasattr(part, "columns") for part in value.values()):
        parts = [as_frame(part, tool=tool, error=error) for part in value.values()]
        return pd.concat(parts, ignore_index=True)
    other: Any = value
    if hasattr(other, "collect") and hasattr(other, "collect_schema"):  # polars.LazyFrame
        other = other.collect()
    if hasattr(other, "to_pandas") and isinstance(frame := other.to_pandas(), pd.DataFrame):
        return frame
    raise error(
        f"{type(value).__module__}.{type(value).__qualname__} is no dataframe. Name an asset that its IO manager loads "
        "as a pandas, pyarrow or polars frame."
    )
