"""Feast's historical features with every entity row kept, in order, and stable types."""

import math
from collections.abc import Collection
from typing import Any

from dagster_mlops.core.tables import as_table
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.lazy import FeatureService, FeatureStore, compute, pa, pd
from dagster_mlops.feast.repository.registry import feature_service, feature_view

_ROW = "dagster_mlops_row"
_TIMESTAMP = "event_timestamp"
NUMBERS = frozenset({"Int32", "Int64", "Float32", "Float64"})
"""Feast's types of numbers."""
ENGINE = "dagster_mlops.feast.offline_store.AsofOfflineStore"
"""The offline store that keeps every entity row, its order and its columns."""
# Feast's DuckDB store joins each entity row with every event within the ttl in memory, before it picks the latest.
_ROWS_PER_QUERY = 100_000


def historical_features(
    store: FeatureStore,
    entities: Any,
    service: str,
    *,
    timestamp_column: str = _TIMESTAMP,
    full_feature_names: bool = False,
) -> Any:
    """`entities` unchanged, row by row, with the features of `service` as they were known at each row's timestamp.

    Feast gets only the columns that it needs, so that others cannot collide with its own.

    Args:
        entities: A pandas dataframe; or a polars dataframe or Arrow table or stream, which become an Arrow table.
        full_feature_names: Name features ``view__feature``, as in Feast.

    Raises:
        FeatureError: A required column is missing or empty, two features have one name, or Feast lost rows.
    """
    definition = feature_service(store, service)
    keys, types = entity_columns(store, definition), feature_types(definition, full_feature_names=full_feature_names)
    if not isinstance(entities, pd.DataFrame):
        entities = as_table(entities, tool="feast", error=FeatureError)
    require(entities, [*keys, timestamp_column], f"feature service {service!r}")
    collisions = [name for name in types if name in column_names(entities)]
    if collisions:
        raise FeatureError(
            f"the entity dataframe already has columns of {service!r}: {', '.join(collisions)}. Drop or rename them."
        )
    return (_with_features if isinstance(entities, pd.DataFrame) else _with_feature_columns)(
        store, entities, definition, keys, timestamp_column, full_feature_names
    )


def _with_features(
    store: FeatureStore,
    entities: "pd.DataFrame",
    service: FeatureService,
    keys: list[str],
    timestamp_column: str,
    full_names: bool,
) -> "pd.DataFrame":
    times = pd.to_datetime(entities[timestamp_column], utc=True).astype("datetime64[us, UTC]")
    _require_timestamps(int(times.isna().sum()), timestamp_column)
    entity_rows = entities[keys].assign(**{_TIMESTAMP: times}).reset_index(drop=True)
    types = feature_types(service, full_feature_names=full_names)
    if keeps_rows(store):
        values = point_in_time(store, entity_rows, service, types, full_names)
    else:
        # Without repeated rows, a store that collapses them cannot lose any.
        row = entity_rows.groupby([*keys, _TIMESTAMP], sort=False, dropna=False).ngroup()
        distinct = entity_rows.loc[~row.duplicated()].reset_index(drop=True)
        answer = point_in_time(store, distinct, service, types, full_names)
        values = answer.take(row.to_numpy()).reset_index(drop=True)
    return pd.concat([entities.reset_index(drop=True), values], axis=1)


def _with_feature_columns(
    store: FeatureStore,
    entities: "pa.Table",
    service: FeatureService,
    keys: list[str],
    timestamp_column: str,
    full_names: bool,
) -> "pa.Table":
    if not keeps_rows(store):
        raise FeatureError(
            f"Arrow tables are joined only by `offline_store: {{type: {ENGINE}}}`, and {store.repo_path} has another "
            "offline store. Use that one, or give a pandas DataFrame."
        )
    times = entities.column(timestamp_column)
    if not pa.types.is_timestamp(times.type):
        raise FeatureError(f"column {timestamp_column!r} is {times.type}, and must be a timestamp. Cast it first.")
    _require_timestamps(times.null_count, timestamp_column)
    zoned = times if times.type.tz else compute.assume_timezone(times, "UTC")
    entity_rows = entities.select(keys).append_column(_TIMESTAMP, zoned.cast(pa.timestamp("us", "UTC"), safe=False))
    types = feature_types(service, full_feature_names=full_names)
    job: Any = store.get_historical_features(entity_rows, service, full_names)
    pieces = job.to_tables()  # keeps_rows
    values = pa.concat_tables([_normalised_table(piece, types) for piece in pieces])
    for name in types:
        entities = entities.append_column(name, values.column(name))
    return entities


def keeps_rows(store: FeatureStore) -> bool:
    """True for the offline store that keeps every row, in order."""
    return getattr(store.config.offline_store, "type", None) == ENGINE


def point_in_time(
    store: FeatureStore,
    entity_rows: "pd.DataFrame",
    features: FeatureService | list[str],
    types: dict[str, str],
    full_names: bool = False,
) -> "pd.DataFrame":
    """The features of `types` for each of `entity_rows`: join keys and event timestamps, distinct rows, a plain index.

    Raises:
        FeatureError: Feast lost or multiplied rows.
    """
    if entity_rows.empty:
        return normalised(pd.DataFrame({name: [] for name in types}), types)
    if keeps_rows(store):
        answer = store.get_historical_features(entity_rows, features, full_names).to_df()
        return normalised(answer.loc[:, [*types]], types)
    parts = [entity_rows.iloc[first : first + _ROWS_PER_QUERY] for first in range(0, len(entity_rows), _ROWS_PER_QUERY)]
    answers = [
        store.get_historical_features(part.assign(**{_ROW: part.index}), features, full_names).to_df() for part in parts
    ]
    answer = pd.concat(answers, ignore_index=True).sort_values(_ROW)
    if not pd.Index(answer[_ROW]).equals(entity_rows.index):
        raise FeatureError(
            f"Feast returned {len(answer)} rows for {len(entity_rows)} entity rows: the offline store loses or "
            f"multiplies rows. Use `offline_store: {{type: {ENGINE}}}`."
        )
    return normalised(answer.set_index(_ROW).loc[:, [*types]], types)


def feature_types(service: FeatureService, *, full_feature_names: bool = False) -> dict[str, str]:
    """The columns that a feature service adds, in its order, and their Feast types.

    Raises:
        FeatureError: Two features have one name.
    """
    types: dict[str, str] = {}
    for projection in service.feature_view_projections:
        prefix = f"{projection.name_to_use()}__" if full_feature_names else ""
        for feature in projection.features:
            if (name := prefix + feature.name) in types:
                remedy = "set full_feature_names=True, which names them VIEW__FEATURE"
                remedy = "give each view its own name by with_name" if full_feature_names else remedy
                raise FeatureError(
                    f"feature service {service.name!r} has {feature.name!r} more than once, of "
                    f"{', '.join(p.name_to_use() for p in service.feature_view_projections)}; {remedy}."
                )
            types[name] = str(feature.dtype)
    return types


def types_in(service: FeatureService, columns: Collection[str]) -> dict[str, str]:
    """The columns of a training set that are features of `service`, by either kind of names, and their types."""
    full = feature_types(service, full_feature_names=True)
    return full if full.keys() & {*columns} else feature_types(service)


def entity_columns(store: FeatureStore, service: FeatureService, *, online: bool = False) -> list[str]:
    """The columns that a feature service needs: join keys, and the request data of its on-demand views.

    Offline, stored on-demand views are computed as the others are; `online` they are read by their own join keys.
    """
    columns: list[str] = []
    for projection in service.feature_view_projections:
        view: Any = feature_view(store, projection.name)
        if not is_on_demand(view) or (online and is_stored(view)):
            columns += [projection.join_key_map.get(key, key) for key in join_keys(view)]
            continue
        columns += request_columns(view)
        for source in view.source_feature_view_projections.values():
            inner: Any = feature_view(store, source.name)
            columns += [source.join_key_map.get(key, key) for key in join_keys(inner)]
    return list(dict.fromkeys(columns))


def join_keys(view: Any) -> list[str]:
    """A feature view's join keys, without the dummy key that Feast adds to a view without entities."""
    return [column.name for column in view.entity_columns if not column.name.startswith("__")]


def is_on_demand(view: Any) -> bool:
    """True for an on-demand feature view."""
    return getattr(view, "source_request_sources", None) is not None


def is_stored(view: Any) -> bool:
    """True for an on-demand feature view whose values are stored online."""
    return is_on_demand(view) and bool(view.write_to_online_store)


def request_columns(view: Any) -> list[str]:
    """The request data of an on-demand feature view."""
    return [field.name for request in view.source_request_sources.values() for field in request.schema]


def normalised(frame: "pd.DataFrame", types: dict[str, str]) -> "pd.DataFrame":
    """`frame` with one dtype per Feast type, whatever the store returned and whether or not a value is missing.

    Numbers and booleans become float64 (exact for integers up to 2**53), timestamps ``datetime64[us, UTC]``, and the
    rest objects with None for a missing value. So offline and online frames, and frames of different months, have
    the same types.
    """
    columns = {name: normalised_values(frame[name], types[name], frame.index) for name in frame.columns}
    return pd.DataFrame(columns, index=frame.index)


def normalised_values(values: Any, dtype: str, index: Any = None) -> "pd.Series":
    """A column of :func:`normalised`: a series, or a list of Python values, of one Feast type."""
    if isinstance(values, list) and dtype != "UnixTimestamp":  # a few values read online, for which pandas is slow
        if dtype in {*NUMBERS, "Bool"}:
            return pd.Series([math.nan if value is None else value for value in values], index, dtype="float64")
        is_missing = [value is None or (isinstance(value, float) and math.isnan(value)) for value in values]
        plain = [None if missing else value for value, missing in zip(values, is_missing, strict=True)]
        return pd.Series(plain, index, dtype=object)
    series = values if isinstance(values, pd.Series) else pd.Series(values, index, dtype=object)
    if dtype == "UnixTimestamp":
        return pd.to_datetime(series, utc=True).astype("datetime64[us, UTC]")
    objects: Any = series.astype(object)
    objects = objects.where(objects.notna(), None)
    return objects.astype("float64") if dtype in {*NUMBERS, "Bool"} else objects


def _normalised_table(table: "pa.Table", types: dict[str, str]) -> "pa.Table":
    """The features of an Arrow table with one type per Feast type, and null for a missing value."""
    columns = {}
    for name, kind in types.items():
        values = table.column(name)
        if kind in {*NUMBERS, "Bool"}:
            if pa.types.is_boolean(values.type):
                values = values.cast(pa.uint8())
            values = values.cast(pa.float64(), safe=False)
            values = compute.if_else(compute.is_nan(values), pa.scalar(None, pa.float64()), values)
        elif kind == "UnixTimestamp":
            values = values.cast(pa.timestamp("us", "UTC"), safe=False)
        columns[name] = values
    return pa.table(columns)


def _require_timestamps(missing: int, column: str) -> None:
    if missing:
        raise FeatureError(f"{missing} entity rows have no {column!r}. Drop or fill them first.")


def column_names(frame: Any) -> list[str]:
    """The columns of a pandas dataframe or Arrow table."""
    return list(frame.columns if hasattr(frame, "iloc") else frame.column_names)


def require(frame: Any, columns: list[str], asker: str) -> None:
    """Refuse a dataframe that lacks columns, with a FeatureError that names them."""
    missing = [name for name in columns if name not in column_names(frame)]
    if missing:
        has = ", ".join(map(str, column_names(frame))) or "no columns"
        raise FeatureError(
            f"{asker} needs the columns {', '.join(missing)}, which the entity dataframe lacks (it has: {has})."
        )
