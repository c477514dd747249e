"""Entity rows and feature views of a retrieval, checked before anything is joined; rows are read a chunk at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
from feast.errors import EntityTimestampInferenceException
from feast.feature_view import FeatureView
from feast.infra.offline_stores.file_source import FileSource
from feast.repo_config import RepoConfig

from dagster_mlops.core.failures import raised_as
from dagster_mlops.core.tables import as_table, sql_name
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.offline.sql import described, family, instant, unlike
from dagster_mlops.feast.point_in_time import files
from dagster_mlops.feast.point_in_time.asof import View, within
from dagster_mlops.feast.point_in_time.columns import ViewSource, duckdb_type, require, with_declared_types

_TIMESTAMP = "event_timestamp"
_ENDINGS = (".parquet", ".csv", ".csv.gz")


@dataclass(frozen=True)
class EntityRows:
    """Facts about entity rows before they are read.

    Attributes:
        relation: Text after ``FROM`` in DuckDB's SQL.
        types: Column → DuckDB type.
        timestamp: Name of the timestamp column.
        bounds: First and last timestamp in microseconds; None without any.
    """

    relation: str
    types: dict[str, str]
    timestamp: str
    bounds: tuple[int, int] | None


@dataclass(frozen=True)
class EventsBetween:
    """Entity rows of a retrieval by dates: every key and event timestamp of `views` from `first` to `last`.

    Both ends are included, in microseconds. Each combination occurs once, in the order of the timestamps. The row of a
    view that lacks a key of another has none.
    """

    views: Sequence[FeatureView]
    first: int
    last: int


def in_memory(entities: Any) -> Any:
    """Entity rows as an Arrow table if they are in memory; paths, queries, datasets and ranges of time unchanged.

    Timestamps given as text are parsed, and a pandas index is dropped.

    Raises:
        FeatureError: `entities` is neither a table nor a path or query.
    """
    if isinstance(entities, EventsBetween | ds.Dataset | str | Path):
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
        entities: Result of `in_memory`. A string is a path (ending in .parquet or .csv, or s3://) or a query, which may
            end in a semicolon and a comment.
        repo_path: Folder that relative paths start from.

    Raises:
        FeatureError: The query fails, nothing is there, or the timestamp column has another type.
        EntityTimestampInferenceException: No ``event_timestamp``, and not exactly one other timestamp column.
    """
    with raised_as(FeatureError, f"the entity rows cannot be read from {entities!r}", duckdb.Error):
        relation = located(connection, entities, repo_path)
        types = described(connection, relation)
    timestamp_columns = [name for name, kind in types.items() if family(kind) == "time"]
    if _TIMESTAMP not in types and len(timestamp_columns) != 1:
        raise EntityTimestampInferenceException(_TIMESTAMP)
    timestamp = _TIMESTAMP if _TIMESTAMP in types else timestamp_columns[0]
    row_time = instant(sql_name(timestamp), types[timestamp], "entity rows")
    # All rows of a result are fetched: DuckDB refuses the next query while one is unfinished.
    ((first, last),) = connection.execute(f"SELECT min({row_time}), max({row_time}) FROM {relation}").fetchall()
    return EntityRows(relation, types, timestamp, None if first is None else (first, last))


def located(connection: duckdb.DuckDBPyConnection, entities: Any, repo_path: Path | str | None) -> str:
    """Text after ``FROM`` in SQL on this connection to read a result of `in_memory`."""
    if isinstance(entities, pa.Table | ds.Dataset):
        connection.register("entity_rows", entities)
        return "entity_rows"
    if isinstance(entities, EventsBetween):
        return _events(connection, entities, repo_path)
    if isinstance(entities, Path) or entities.startswith("s3://") or entities.endswith(_ENDINGS):
        return files.scan(connection, FileSource(path=str(entities)), repo_path)
    return f"({_without_end(entities)}\n)"  # on a line of its own, because the query may end in a comment


def _without_end(query: str) -> str:
    """A query without the semicolons and comments after it, as DuckDB's own tokens tell them."""
    text = query.encode()  # the offsets of tokens are in bytes
    while tokens := [start for start, kind in duckdb.tokenize(text.decode()) if kind != duckdb.token_type.comment]:
        if text[tokens[-1] : tokens[-1] + 1] != b";":
            break
        text = text[: tokens[-1]]
    return text.decode()


def _events(connection: duckdb.DuckDBPyConnection, entities: EventsBetween, repo_path: Path | str | None) -> str:
    parts, all_keys = [], dict[str, None]()
    for view in entities.views:
        source = ViewSource.of(connection, view, repo_path)
        kind = source.types[source.timestamp]
        row_time = instant(sql_name(source.timestamp), kind, f"source {source.source.name!r}")
        columns = [f"{sql_name(column)} AS {sql_name(key)}" for column, key in source.keys.items()]
        conditions = [within(sql_name(source.timestamp), kind, entities.first, entities.last)]
        conditions += [f"{sql_name(column)} IS NOT NULL" for column in source.keys]
        columns.append(f"make_timestamptz({row_time}) AS {_TIMESTAMP}")
        parts.append(f"SELECT {', '.join(columns)} FROM {source.relation} WHERE {' AND '.join(conditions)}")
        all_keys |= dict.fromkeys(source.keys.values())
    order = ", ".join([_TIMESTAMP, *map(sql_name, all_keys)])
    return f"(SELECT DISTINCT * FROM ({' UNION ALL BY NAME '.join(parts)}) ORDER BY {order})"


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
    place = ViewSource.of(connection, view, config.repo_path)
    source, types = place.source, place.types
    prefix = f"{view.projection.name_to_use()}:"
    feature_names = [ref.removeprefix(prefix) for ref in feature_refs if ref.startswith(prefix)]
    features = {place.renamed.get(name, name): name for name in feature_names}
    require(types, [*features], source)

    if missing := [key for key in place.keys.values() if key not in rows.types]:
        raise FeatureError(
            f"{view.name!r} is joined by {', '.join(missing)}, which the entity rows lack (they have "
            f"{', '.join(rows.types)})."
        )
    dtypes = {column: {f.name: str(f.dtype) for f in view.features}.get(name, "") for column, name in features.items()}
    declared = {column: kind for column, dtype in dtypes.items() if (kind := duckdb_type(dtype))}
    key_types = {column: rows.types[key] for column, key in place.keys.items()}
    relation, types = with_declared_types(connection, place.relation, types, declared | key_types)
    for column, key in place.keys.items():
        _, row_types = with_declared_types(connection, rows.relation, rows.types, {key: types[column]})
        if unlike(row_types[key], types[column]):
            raise FeatureError(
                f"{view.name!r}: {key} is {rows.types[key]} in the entity rows and {types[column]} in source "
                f"{source.name!r}. Cast one of them; otherwise no row would match."
            )
    for column, kind in declared.items():
        if unlike(types[column], kind) and "list" not in (family(types[column]), family(kind)):
            raise FeatureError(
                f"{view.name}:{features[column]} is declared as {dtypes[column]}, and column {column} of source "
                f"{source.name!r} is {types[column]}. Fix the one that is wrong."
            )
    for column in filter(None, [place.timestamp, place.created]):
        instant(sql_name(column), types[column], f"source {source.name!r}")

    label = f"{view.projection.name_to_use()}__" if full_feature_names else ""
    return View(
        name=view.name,
        relation=relation,
        types=types,
        keys=place.keys,
        instant=place.timestamp,
        created=place.created,
        features={column: label + name for column, name in features.items()},
        ttl=view.ttl if view.ttl and view.ttl > timedelta(0) else None,
        known_only=known_only and place.created is not None,
    )
