"""Entity rows and feature views of a retrieval, checked before anything is joined; rows are read a chunk at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
from feast.data_source import DataSource
from feast.errors import EntityTimestampInferenceException
from feast.feature_view import DUMMY_ENTITY_ID, FeatureView
from feast.infra.offline_stores.file_source import FileSource
from feast.repo_config import RepoConfig

from dagster_mlops.core.failures import raised_as
from dagster_mlops.core.tables import as_table, sql_name
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.offline.retrieval import NUMBERS
from dagster_mlops.feast.point_in_time import files
from dagster_mlops.feast.point_in_time.asof import View, described, family, instant

_TIMESTAMP = "event_timestamp"
_ENDINGS = (".parquet", ".csv", ".csv.gz")


@dataclass(frozen=True)
class EntityRows:
    """Facts about entity rows before they are read.

    Attributes:
        types: Column → DuckDB type.
        timestamp: Name of the timestamp column.
        bounds: First and last timestamp in microseconds; None without any.
    """

    types: dict[str, str]
    timestamp: str
    bounds: tuple[int, int] | None


def in_memory(entities: Any) -> Any:
    """Entity rows as an Arrow table if they are in memory; paths, queries and Arrow datasets unchanged.

    Timestamps given as text are parsed, and a pandas index is dropped.

    Raises:
        FeatureError: `entities` is neither a table nor a path or query.
    """
    if entities is None:
        raise FeatureError(
            "this offline store joins features to entity rows, and none were given (only start_date and end_date). "
            "Pass entity_df: a dataframe, an Arrow table, the path of a Parquet or CSV file, or a DuckDB query."
        )
    if isinstance(entities, ds.Dataset | str | Path):
        return entities
    if isinstance(entities, pd.DataFrame) and _TIMESTAMP in entities.columns:
        times = entities[_TIMESTAMP]
        if times.dtype.kind not in "Mm":
            entities = entities.assign(**{_TIMESTAMP: pd.to_datetime(times, utc=True)})
    return as_table(entities, tool="feast", error=FeatureError)


def entity_rows(connection: duckdb.DuckDBPyConnection, entities: Any, repo_path: Path | str | None) -> EntityRows:
    """The columns and the range of timestamps of entity rows.

    Args:
        connection: Connection on which the rows are registered.
        entities: Result of `in_memory`. A string is a path (ending in .parquet or .csv, or s3://) or a query.
        repo_path: Folder that relative paths start from.

    Raises:
        FeatureError: The query fails, nothing is there, or the timestamp column has another type.
        EntityTimestampInferenceException: No ``event_timestamp``, and not exactly one other timestamp column.
    """
    relation = located(connection, entities, repo_path)
    with raised_as(FeatureError, f"the entity rows cannot be read from {entities!r}", duckdb.Error):
        types = described(connection, relation)
    timestamp_columns = [name for name, kind in types.items() if family(kind) == "time"]
    if _TIMESTAMP not in types and len(timestamp_columns) != 1:
        raise EntityTimestampInferenceException(_TIMESTAMP)
    timestamp = _TIMESTAMP if _TIMESTAMP in types else timestamp_columns[0]
    row_time = instant(sql_name(timestamp), types[timestamp], "entity rows")
    # All rows of a result are fetched: DuckDB refuses the next query while one is unfinished.
    ((first, last),) = connection.execute(f"SELECT min({row_time}), max({row_time}) FROM {relation}").fetchall()
    return EntityRows(types, timestamp, None if first is None else (first, last))


def located(connection: duckdb.DuckDBPyConnection, entities: Any, repo_path: Path | str | None) -> str:
    """Text after ``FROM`` in SQL on this connection to read a result of `in_memory`."""
    if isinstance(entities, pa.Table | ds.Dataset):
        connection.register("entity_rows", entities)
        return "entity_rows"
    if isinstance(entities, Path) or entities.startswith("s3://") or entities.endswith(_ENDINGS):
        return files.scan(connection, FileSource(path=str(entities)), repo_path)
    return f"({entities.strip().rstrip(';')})"


def chunked(
    connection: duckdb.DuckDBPyConnection, entities: Any, repo_path: Path | str | None, rows: int
) -> Iterator[pa.Table]:
    """The rows in their order, in tables of `rows` rows or slightly more; at least one table, possibly empty.

    The connection is busy with the rows until the last chunk is read, unless they are in memory.
    """
    if isinstance(entities, pa.Table):
        for start in range(0, max(entities.num_rows, 1), rows):
            yield entities.slice(start, rows)
        return
    relation = located(connection, entities, repo_path)
    reader = connection.sql(f"SELECT * FROM {relation}").to_arrow_reader(min(rows, 1_000_000))
    batches: list[pa.RecordBatch] = []
    empty = True
    for batch in reader:
        batches.append(batch)
        if sum(batch.num_rows for batch in batches) >= rows:
            yield pa.Table.from_batches(batches, reader.schema)
            batches, empty = [], False
    if batches or empty:
        yield pa.Table.from_batches(batches, reader.schema)


# Family of columns that can hold the values of a Feast type.
_FAMILIES = {
    **dict.fromkeys(NUMBERS, "number"),
    "String": "text",
    "Bool": "truth",
    "Bytes": "bytes",
    "UnixTimestamp": "time",
}


def view_of(
    connection: duckdb.DuckDBPyConnection,
    config: RepoConfig,
    view: FeatureView,
    feature_refs: list[str],
    rows: EntityRows,
    full_feature_names: bool,
    known_only: bool,
) -> View:
    """The view for the join, after a check that all its columns exist and compare.

    Raises:
        FeatureError: They do not.
    """
    source = files.checked(view.batch_source)
    relation = files.scan(connection, source, config.repo_path)
    types = described(connection, relation)
    renamed = {new: old for old, new in source.field_mapping.items() if old in types}
    prefix = f"{view.projection.name_to_use()}:"
    feature_names = [ref.removeprefix(prefix) for ref in feature_refs if ref.startswith(prefix)]
    keys = {
        renamed.get(column.name, column.name): view.projection.join_key_map.get(column.name, column.name)
        for column in view.entity_columns
        if column.name != DUMMY_ENTITY_ID
    }
    features = {renamed.get(name, name): name for name in feature_names}
    timestamp = renamed.get(source.timestamp_field, source.timestamp_field)
    created = renamed.get(source.created_timestamp_column, source.created_timestamp_column) or None
    require(types, [*keys, timestamp, *([created] if created else []), *features], source)

    if missing := [key for key in keys.values() if key not in rows.types]:
        raise FeatureError(
            f"{view.name!r} is joined by {', '.join(missing)}, which the entity rows lack (they have "
            f"{', '.join(rows.types)})."
        )
    for column, key in keys.items():
        entity_family, source_family = family(rows.types[key]), family(types[column])
        if entity_family and source_family and entity_family != source_family:
            raise FeatureError(
                f"{view.name!r}: {key} is {rows.types[key]} in the entity rows and {types[column]} in source "
                f"{source.name!r}. Cast one of them; otherwise no row would match."
            )
    declared = {field.name: str(field.dtype) for field in view.features}
    for column, name in features.items():
        source_family, declared_family = family(types[column]), _FAMILIES.get(declared.get(name, ""))
        if source_family and declared_family and source_family != declared_family:
            raise FeatureError(
                f"{view.name}:{name} is declared as {declared[name]}, and column {column} of source {source.name!r} is "
                f"{types[column]}. Fix the one that is wrong."
            )
    for column in filter(None, [timestamp, created]):
        instant(sql_name(column), types[column], f"source {source.name!r}")

    label = f"{view.projection.name_alias or view.name}__" if full_feature_names else ""
    return View(
        name=view.name,
        relation=relation,
        types=types,
        keys=keys,
        instant=timestamp,
        created=created,
        features={column: label + name for column, name in features.items()},
        ttl=view.ttl if view.ttl and view.ttl > timedelta(0) else None,
        known_only=known_only and created is not None,
    )


def require(types: dict[str, str], columns: list[str], source: DataSource) -> None:
    """Refuse a source with columns of these `types` if it lacks some of `columns`."""
    if missing := [name for name in columns if name not in types]:
        raise FeatureError(
            f"source {source.name!r} lacks the columns {', '.join(missing)} (it has {', '.join(types)})."
        )
