"""The rows that features are asked for: a dataframe, an Arrow table, a file or a query, read a chunk at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
from feast.errors import EntityTimestampInferenceException
from feast.infra.offline_stores.file_source import FileSource

from dagster_mlops.core.tables import sql_name
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.point_in_time import files
from dagster_mlops.feast.point_in_time.asof import described, family, instant

_TIMESTAMP = "event_timestamp"
_ENDINGS = (".parquet", ".csv", ".csv.gz")


@dataclass(frozen=True)
class EntityRows:
    """What is known of entity rows before they are read.

    Attributes:
        types: column → DuckDB type.
        timestamp: the column of the moments asked for.
        bounds: first and last moment in microseconds; None when there is no moment at all.
        table: the rows themselves where they are in memory already.
    """

    types: dict[str, str]
    timestamp: str
    bounds: tuple[int, int] | None
    table: pa.Table | None


def in_memory(asked: Any) -> Any:
    """What was asked with as an Arrow table, if it is in memory; paths, queries and Arrow datasets as they are.

    Moments given as text become timestamps, and a plain pandas index is dropped.

    Raises:
        FeatureError: it is of a kind that is not read here.
    """
    if isinstance(asked, pd.DataFrame):
        text = _TIMESTAMP in asked.columns and asked[_TIMESTAMP].dtype.kind not in "Mm"
        if text and not isinstance(asked[_TIMESTAMP].dtype, pd.DatetimeTZDtype):
            asked = asked.assign(**{_TIMESTAMP: pd.to_datetime(asked[_TIMESTAMP], utc=True)})
        return pa.Table.from_pandas(asked, preserve_index=False)
    if isinstance(asked, pa.Table | ds.Dataset | str | Path):
        return asked
    if hasattr(asked, "collect"):  # a polars LazyFrame
        asked = asked.collect()
    if hasattr(asked, "to_arrow"):
        return asked.to_arrow()
    if asked is None:
        raise FeatureError(
            "this offline store joins features to entity rows, and none were given (only start_date and end_date). "
            "Pass entity_df: a dataframe, an Arrow table, the path of a Parquet file or a DuckDB query."
        )
    raise FeatureError(
        f"entity rows of type {type(asked).__name__} are not read here. Pass a pandas or polars dataframe, an Arrow "
        "table or dataset, the path of a Parquet or CSV file, or a DuckDB query."
    )


def entity_rows(connection: duckdb.DuckDBPyConnection, asked: Any, repo_path: Path | str | None) -> EntityRows:
    """Look at entity rows: their columns, their moments, and where they are.

    Args:
        connection: Gets to know the rows by name.
        asked: What `in_memory` returned. A string is a path (ending in .parquet or .csv, or s3://) or a query.

    Raises:
        FeatureError: the query fails, nothing is there, or the column of moments is no moment.
        EntityTimestampInferenceException: no ``event_timestamp``, and not exactly one other column of moments.
    """
    relation = located(connection, asked, repo_path)
    try:
        types = described(connection, relation)
    except duckdb.Error as error:
        raise FeatureError(f"the entity rows cannot be read from {asked!r}: {error}") from error

    moments = [name for name, kind in types.items() if family(kind) == "time"]
    if _TIMESTAMP not in types and len(moments) != 1:
        raise EntityTimestampInferenceException(_TIMESTAMP)
    timestamp = _TIMESTAMP if _TIMESTAMP in types else moments[0]
    moment = instant(sql_name(timestamp), types[timestamp], "entity rows")
    # All rows of an answer are fetched: DuckDB refuses the next query while one is unfinished.
    ((first, last),) = connection.execute(f"SELECT min({moment}), max({moment}) FROM {relation}").fetchall()
    bounds = None if first is None else (first, last)
    return EntityRows(types, timestamp, bounds, asked if isinstance(asked, pa.Table) else None)


def located(connection: duckdb.DuckDBPyConnection, asked: Any, repo_path: Path | str | None) -> str:
    """What stands behind ``FROM`` on this connection to read what `in_memory` returned."""
    if isinstance(asked, pa.Table | ds.Dataset):
        connection.register("entity_rows", asked)
        return "entity_rows"
    if isinstance(asked, Path) or asked.startswith("s3://") or asked.endswith(_ENDINGS):
        return files.scan(connection, FileSource(path=str(asked)), repo_path)
    return f"({asked.strip().rstrip(';')})"


def chunked(
    connection: duckdb.DuckDBPyConnection, asked: Any, repo_path: Path | str | None, rows: int
) -> Iterator[pa.Table]:
    """The rows in their order, in tables of `rows` rows or slightly more; at least one table, maybe empty.

    The connection is busy with the rows until the last chunk is read, unless they are in memory.
    """
    if isinstance(asked, pa.Table):
        for start in range(0, max(asked.num_rows, 1), rows):
            yield asked.slice(start, rows)
        return
    relation = located(connection, asked, repo_path)
    reader = connection.sql(f"SELECT * FROM {relation}").to_arrow_reader(min(rows, 1_000_000))
    held: list[pa.RecordBatch] = []
    empty = True
    for batch in reader:
        held.append(batch)
        if sum(batch.num_rows for batch in held) >= rows:
            yield pa.Table.from_batches(held, reader.schema)
            held, empty = [], False
    if held or empty:
        yield pa.Table.from_batches(held, reader.schema)
