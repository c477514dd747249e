"""The columns of a feature view's source: they are there, and one without any value has the declared type."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import duckdb
from feast.data_source import DataSource
from feast.feature_view import DUMMY_ENTITY_ID, FeatureView
from feast.infra.offline_stores.file_source import FileSource

from dagster_mlops.core.tables import sql_name
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.offline.sql import NULL, described, unlike
from dagster_mlops.feast.point_in_time import files

# DuckDB's type for each of Feast's; a column of the same family can hold its values.
_DUCKDB_TYPES = {
    "Int32": "INTEGER",
    "Int64": "BIGINT",
    "Float32": "FLOAT",
    "Float64": "DOUBLE",
    "String": "VARCHAR",
    "Bool": "BOOLEAN",
    "Bytes": "BLOB",
    "UnixTimestamp": "TIMESTAMPTZ",
}


def duckdb_type(dtype: str) -> str | None:
    """DuckDB's type for one of Feast's, such as ``Array(String)``; None for maps, structs and other types."""
    for prefix in ("Array(", "Set("):
        if dtype.startswith(prefix):
            inner = duckdb_type(dtype.removeprefix(prefix)[:-1])
            return inner and f"{inner}[]"
    return _DUCKDB_TYPES.get(dtype)


@dataclass(frozen=True)
class ViewSource:
    """A feature view's source: its relation, columns and types, and the columns of keys and timestamps.

    `keys` is the source's column → the entity rows' column; `renamed` is the view's name of a column → the source's.
    """

    source: FileSource
    relation: str
    types: dict[str, str]
    renamed: dict[str, str]
    keys: dict[str, str]
    timestamp: str
    created: str | None

    @classmethod
    def of(cls, connection: duckdb.DuckDBPyConnection, view: FeatureView, repo_path: Path | str | None) -> "ViewSource":
        """The source of a view, after a check that it has the columns.

        Raises:
            FeatureError: It lacks one of them.
        """
        source = files.checked(view.batch_source)
        relation = files.scan(connection, source, repo_path)
        types = described(connection, relation)
        renamed = {new: old for old, new in source.field_mapping.items() if old in types}
        keys = {
            renamed.get(column.name, column.name): view.projection.join_key_map.get(column.name, column.name)
            for column in view.entity_columns
            if column.name != DUMMY_ENTITY_ID
        }
        timestamp = renamed.get(source.timestamp_field, source.timestamp_field)
        created = renamed.get(source.created_timestamp_column, source.created_timestamp_column) or None
        times = [timestamp, *([created] if created else [])]
        require(types, [*keys, *times], source)
        relation, types = with_declared_types(connection, relation, types, dict.fromkeys(times, "TIMESTAMPTZ"))
        return cls(source, relation, types, renamed, keys, timestamp, created)


def with_declared_types(
    connection: duckdb.DuckDBPyConnection, relation: str, types: dict[str, str], declared: Mapping[str, str]
) -> tuple[str, dict[str, str]]:
    """A relation in which columns without any value have their `declared` type, and its types.

    The type that a library writes for a column without values says nothing: pandas writes float64 of NaN, or null.
    """
    empty = {name: kind for name, kind in declared.items() if unlike(types[name], kind)}
    for name in [name for name in empty if types[name] != NULL]:
        column = sql_name(name)
        is_value = f"NOT isnan({column})" if types[name] in ("FLOAT", "DOUBLE") else f"{column} IS NOT NULL"
        if connection.execute(f"SELECT 1 FROM {relation} WHERE {is_value} LIMIT 1").fetchall():
            del empty[name]
    if not empty:
        return relation, types
    nulls = ", ".join(f"CAST(NULL AS {kind}) AS {sql_name(name)}" for name, kind in empty.items())
    return f"(SELECT * REPLACE ({nulls}) FROM {relation})", types | empty


def require(types: dict[str, str], columns: list[str], source: DataSource) -> None:
    """Refuse a source with columns of these `types` if it lacks some of `columns`."""
    if missing := [name for name in columns if name not in types]:
        raise FeatureError(
            f"source {source.name!r} lacks the columns {', '.join(missing)} (it has {', '.join(types)})."
        )
