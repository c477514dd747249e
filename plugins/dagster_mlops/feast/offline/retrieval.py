"""Dataframes of features in the order asked for, with every row kept: what Feast returns, made dependable."""

from typing import TYPE_CHECKING, Any

from dagster_mlops.core.extras import extra
from dagster_mlops.core.tables import as_table
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.repository.registry import feature_service, feature_view

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from feast import FeatureStore
    from feast.feature_service import FeatureService

_ROW = "dagster_mlops_row"
_TIMESTAMP = "event_timestamp"
_NUMBERS = {"Int32", "Int64", "Float32", "Float64", "Bool"}
ENGINE = "dagster_mlops.feast.offline_store.AsofOfflineStore"
"""The offline store that keeps every entity row, its order and its columns."""
# Feast's DuckDB store joins each entity row with every event within the ttl before it picks the latest, all in memory.
_ROWS_PER_QUERY = 100_000


def historical_features(
    store: "FeatureStore", entities: Any, service: str, *, timestamp_column: str = _TIMESTAMP
) -> Any:
    """`entities` as it is, row by row, with the features of `service` as they were known at each row's timestamp.

    Feast sees only what it needs: other columns cannot collide with its own.

    Args:
        entities: A pandas dataframe, or a polars dataframe or Arrow table (or stream), which become an Arrow table.

    Raises:
        FeatureError: a needed column is missing or empty, or Feast lost rows.
    """
    pd = extra("pandas", extra="feast")
    found = feature_service(store, service)
    keys, types = entity_columns(store, found), feature_types(found)
    if not isinstance(entities, pd.DataFrame):
        entities = as_table(entities, tool="feast", error=FeatureError)
    require(entities, [*keys, timestamp_column], f"feature service {service!r}")
    taken = [name for name in types if name in column_names(entities)]
    if taken:
        raise FeatureError(
            f"the entity dataframe already has columns that {service!r} adds: {', '.join(taken)}. Drop or rename them."
        )
    return (_with_features if isinstance(entities, pd.DataFrame) else _with_feature_columns)(
        store, entities, found, keys, timestamp_column
    )


def _with_features(
    store: "FeatureStore", entities: "pd.DataFrame", service: "FeatureService", keys: list[str], moment: str
) -> "pd.DataFrame":
    pd = extra("pandas", extra="feast")
    times = pd.to_datetime(entities[moment], utc=True).astype("datetime64[us, UTC]")
    _require_moments(int(times.isna().sum()), moment)
    asked = entities[keys].assign(**{_TIMESTAMP: times}).reset_index(drop=True)
    types = feature_types(service)
    if keeps_rows(store):
        values = point_in_time(store, asked, service, types)
    else:
        # Repeated rows cost nothing, then, and a store that collapses them cannot lose any.
        row = asked.groupby([*keys, _TIMESTAMP], sort=False, dropna=False).ngroup()
        distinct = asked.loc[~row.duplicated()].reset_index(drop=True)
        values = point_in_time(store, distinct, service, types).take(row.to_numpy()).reset_index(drop=True)
    return pd.concat([entities.reset_index(drop=True), values], axis=1)


def _with_feature_columns(
    store: "FeatureStore", entities: "pa.Table", service: "FeatureService", keys: list[str], moment: str
) -> "pa.Table":
    pa = extra("pyarrow", extra="feast")
    if not keeps_rows(store):
        raise FeatureError(
            f"Arrow tables are joined by `offline_store: {{type: {ENGINE}}}` only, and {store.repo_path} has "
            f"another. Use that engine, or give a pandas DataFrame."
        )
    times = entities.column(moment)
    if not pa.types.is_timestamp(times.type):
        raise FeatureError(f"column {moment!r} is {times.type}, and a timestamp is needed. Cast it first.")
    _require_moments(times.null_count, moment)
    zoned = times if times.type.tz else extra("pyarrow.compute", extra="feast").assume_timezone(times, "UTC")
    asked = entities.select(keys).append_column(_TIMESTAMP, zoned.cast(pa.timestamp("us", "UTC"), safe=False))
    types = feature_types(service)
    pieces = store.get_historical_features(entity_df=asked, features=service).to_tables()  # pyright: ignore[reportAttributeAccessIssue] (keeps_rows)
    values = pa.concat_tables([_normalised_table(piece, types) for piece in pieces])
    for name in types:
        entities = entities.append_column(name, values.column(name))
    return entities


def keeps_rows(store: "FeatureStore") -> bool:
    """Whether the offline store is the one that keeps every row, in order."""
    return getattr(store.config.offline_store, "type", None) == ENGINE


def point_in_time(
    store: "FeatureStore", asked: "pd.DataFrame", features: "FeatureService | list[str]", types: dict[str, str]
) -> "pd.DataFrame":
    """The features of `types` for each row of `asked`: join keys and event timestamps, no row twice, a plain index.

    Raises:
        FeatureError: Feast lost or multiplied rows.
    """
    pd = extra("pandas", extra="feast")
    if asked.empty:
        return normalised(pd.DataFrame(columns=[*types]), types)
    if keeps_rows(store):
        answer = store.get_historical_features(entity_df=asked, features=features).to_df()
        return normalised(answer.loc[:, [*types]], types)
    parts = [asked.iloc[first : first + _ROWS_PER_QUERY] for first in range(0, len(asked), _ROWS_PER_QUERY)]
    answers = [
        store.get_historical_features(entity_df=part.assign(**{_ROW: part.index}), features=features).to_df()
        for part in parts
    ]
    answer = pd.concat(answers, ignore_index=True).sort_values(_ROW)
    if not pd.Index(answer[_ROW]).equals(asked.index):
        raise FeatureError(
            f"Feast returned {len(answer)} rows for {len(asked)} entity rows: the offline store loses or multiplies "
            f"rows. Use `offline_store: {{type: {ENGINE}}}`."
        )
    return normalised(answer.set_index(_ROW).loc[:, [*types]], types)


def feature_types(service: "FeatureService") -> dict[str, str]:
    """The columns that a feature service adds, in its order, and their Feast types."""
    return {f.name: str(f.dtype) for projection in service.feature_view_projections for f in projection.features}


def entity_columns(store: "FeatureStore", service: "FeatureService") -> list[str]:
    """The columns that a feature service needs: join keys, and what its on-demand views take from the request."""
    columns: list[str] = []
    for projection in service.feature_view_projections:
        view: Any = feature_view(store, projection.name)
        requests = getattr(view, "source_request_sources", None)
        if requests is None:
            columns += [projection.join_key_map.get(key, key) for key in join_keys(view)]
            continue
        columns += [field.name for request in requests.values() for field in request.schema]
        for source in view.source_feature_view_projections.values():
            inner: Any = feature_view(store, source.name)
            columns += [source.join_key_map.get(key, key) for key in join_keys(inner)]
    return list(dict.fromkeys(columns))


def join_keys(view: Any) -> list[str]:
    """A feature view's join keys, without the dummy that Feast gives a view without entities."""
    return [column.name for column in view.entity_columns if not column.name.startswith("__")]


def normalised(frame: "pd.DataFrame", types: dict[str, str]) -> "pd.DataFrame":
    """`frame` with one dtype per Feast type, whatever the store returned and whether or not a value is missing.

    Numbers and booleans become float64 (exact for integers up to 2**53), timestamps ``datetime64[us, UTC]``, and the
    rest objects with None for a missing value. Offline and online frames are equal in type, then, and so are months.
    """
    pd = extra("pandas", extra="feast")
    columns: dict[str, Any] = {}
    for name in frame.columns:
        if types[name] in _NUMBERS:
            columns[name] = pd.to_numeric(frame[name].astype("object").where(frame[name].notna(), None)).astype(
                "float64"
            )
        elif types[name] == "UnixTimestamp":
            columns[name] = pd.to_datetime(frame[name], utc=True).astype("datetime64[us, UTC]")
        else:
            values = frame[name].astype(object)
            columns[name] = values.where(values.notna(), None)
    return pd.DataFrame(columns, index=frame.index)


def _normalised_table(table: "pa.Table", types: dict[str, str]) -> "pa.Table":
    """The same of an Arrow table: its features alone, missing values null."""
    pa, compute = extra("pyarrow", extra="feast"), extra("pyarrow.compute", extra="feast")
    columns = {}
    for name, kind in types.items():
        values = table.column(name)
        if kind in _NUMBERS:
            if pa.types.is_boolean(values.type):
                values = values.cast(pa.uint8())
            values = values.cast(pa.float64(), safe=False)
            values = compute.if_else(compute.is_nan(values), pa.scalar(None, pa.float64()), values)
        elif kind == "UnixTimestamp":
            values = values.cast(pa.timestamp("us", "UTC"), safe=False)
        columns[name] = values
    return pa.table(columns)


def _require_moments(missing: int, column: str) -> None:
    if missing:
        raise FeatureError(f"{missing} entity rows have no {column!r}. Drop or fill them first.")


def column_names(frame: Any) -> list[str]:
    """The columns of a pandas dataframe or Arrow table."""
    return list(frame.columns if hasattr(frame, "iloc") else frame.column_names)


def require(frame: Any, columns: list[str], asker: str) -> None:
    """Refuse a dataframe that lacks columns.

    Raises:
        FeatureError: and which ones.
    """
    missing = [name for name in columns if name not in column_names(frame)]
    if missing:
        has = ", ".join(map(str, column_names(frame))) or "no columns"
        raise FeatureError(
            f"{asker} needs the columns {', '.join(missing)}, which the entity dataframe lacks (it has: {has})."
        )
