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

from dagster_mlops.errors import FeatureError
from dagster_mlops.feast import files
from dagster_mlops.feast.asof import described, family, instant, quoted

_TIMESTAMP = "event_timestamp"
_ENDINGS = (".parquet", ".csv", ".csv.gz")


@dataclass(frozen=True)
class EntityRows:
    """Entity rows behind a name or expression of one DuckDB connection.

    Attributes:
        relation: what stands behind ``FROM``.
        types: column → DuckDB type.
        timestamp: the column of the moments asked for.
        bounds: first and last moment in microseconds; None when there is no moment at all.
        table: the rows themselves where they are in memory already.
    """

    relation: str
    types: dict[str, str]
    timestamp: str
    bounds: tuple[int, int] | None
    table: pa.Table | None

    def chunks(self, connection: duckdb.DuckDBPyConnection, rows: int) -> Iterator[pa.Table]:
        """The rows in their order, in tables of `rows` rows; at least one table, maybe empty.

        The connection is busy with the rows until the last chunk is read, unless they are in memory.
        """
        if self.table is not None:
            for start in range(0, max(self.table.num_rows, 1), rows):
                yield self.table.slice(start, rows)
            return
        reader = connection.sql(f"SELECT * FROM {self.relation}").to_arrow_reader(min(rows, 1_000_000))
        held: list[pa.RecordBatch] = []
        empty = True
        for batch in reader:
            held.append(batch)
            if sum(batch.num_rows for batch in held) >= rows:
                yield pa.Table.from_batches(held, reader.schema)
                held, empty = [], False
        if held or empty:
            yield pa.Table.from_batches(held, reader.schema)


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
    table = None
    if isinstance(asked, pa.Table | ds.Dataset):
        table = asked if isinstance(asked, pa.Table) else None
        connection.register("entity_rows", asked)
        relation = "entity_rows"
    elif isinstance(asked, Path) or asked.startswith("s3://") or asked.endswith(_ENDINGS):
        relation = files.scan(connection, FileSource(path=str(asked)), repo_path)
    else:
        relation = f"({asked.strip().rstrip(';')})"
    try:
        types = described(connection, relation)
    except duckdb.Error as error:
        raise FeatureError(f"the entity rows cannot be read from {asked!r}: {error}") from error

    moments = [name for name, kind in types.items() if family(kind) == "time"]
    if _TIMESTAMP not in types and len(moments) != 1:
        raise EntityTimestampInferenceException(_TIMESTAMP)
    timestamp = _TIMESTAMP if _TIMESTAMP in types else moments[0]
    moment = instant(quoted(timestamp), types[timestamp], "entity rows")
    found = connection.execute(f"SELECT min({moment}), max({moment}) FROM {relation}").fetchone()
    bounds = None if found is None or found[0] is None else (found[0], found[1])
    return EntityRows(relation, types, timestamp, bounds, table)
