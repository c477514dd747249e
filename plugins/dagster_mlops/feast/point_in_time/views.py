"""Views for the join, checked against their sources and the entity rows before anything is joined."""

from datetime import timedelta

import duckdb
from feast.data_source import DataSource
from feast.feature_view import DUMMY_ENTITY_ID, FeatureView
from feast.repo_config import RepoConfig

from dagster_mlops.core.tables import sql_name
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.point_in_time import files
from dagster_mlops.feast.point_in_time.asof import View, described, family, instant
from dagster_mlops.feast.point_in_time.entity_rows import EntityRows

# Family of columns that can hold the values of a Feast type.
_FAMILIES = {
    **dict.fromkeys(("Int32", "Int64", "Float32", "Float64"), "number"),
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
