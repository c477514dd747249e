"""Dataframes of features in the order asked for, with every row kept: what Feast returns, made dependable."""

from typing import TYPE_CHECKING, Any

from dagster_mlops._extras import extra
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.registry import feature_service, feature_view

if TYPE_CHECKING:
    import pandas as pd
    from feast import FeatureStore
    from feast.feature_service import FeatureService

_ROW = "dagster_mlops_row"
_TIMESTAMP = "event_timestamp"
# Feast's DuckDB store joins each entity row with every event within the ttl before it picks the latest, all in memory.
_ROWS_PER_QUERY = 100_000


def historical_features(
    store: "FeatureStore", entities: "pd.DataFrame", service: str, *, timestamp_column: str = _TIMESTAMP
) -> "pd.DataFrame":
    """`entities` as it is, row by row, with the features of `service` as they were known at each row's timestamp.

    Feast sees only what it needs, each combination of join keys and timestamp once: other columns cannot collide with
    its own, repeated rows cost nothing, and a store that collapses repeated rows cannot lose any.

    Raises:
        FeatureError: a needed column is missing or empty, or Feast lost rows.
    """
    pd = extra("pandas", extra="feast")
    found = feature_service(store, service)
    keys = entity_columns(store, found)
    require(entities, [*keys, timestamp_column], f"feature service {service!r}")
    taken = [name for name in feature_types(found) if name in entities.columns]
    if taken:
        raise FeatureError(
            f"the entity dataframe already has columns that {service!r} adds: {', '.join(taken)}. Drop or rename them."
        )
    times = pd.to_datetime(entities[timestamp_column], utc=True).astype("datetime64[us, UTC]")
    if times.isna().any():
        raise FeatureError(
            f"{int(times.isna().sum())} entity rows have no {timestamp_column!r}. Drop or fill them first."
        )

    asked = entities[keys].assign(**{_TIMESTAMP: times}).reset_index(drop=True)
    row = asked.groupby([*keys, _TIMESTAMP], sort=False, dropna=False).ngroup()
    distinct = asked.loc[~row.duplicated()].reset_index(drop=True)
    values = point_in_time(store, distinct, found, feature_types(found))
    spread = values.take(row.to_numpy()).reset_index(drop=True)
    return pd.concat([entities.reset_index(drop=True), spread], axis=1)


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
    parts = [asked.iloc[first : first + _ROWS_PER_QUERY] for first in range(0, len(asked), _ROWS_PER_QUERY)]
    answers = [
        store.get_historical_features(entity_df=part.assign(**{_ROW: part.index}), features=features).to_df()
        for part in parts
    ]
    answer = pd.concat(answers, ignore_index=True).sort_values(_ROW)
    if not pd.Index(answer[_ROW]).equals(asked.index):
        raise FeatureError(
            f"Feast returned {len(answer)} rows for {len(asked)} entity rows: the offline store loses or multiplies "
            "rows. Use `offline_store: {type: dagster_mlops.feast.offline_store.AsofOfflineStore}`."
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
        if types[name] in {"Int32", "Int64", "Float32", "Float64", "Bool"}:
            columns[name] = pd.to_numeric(frame[name].astype("object").where(frame[name].notna(), None)).astype(
                "float64"
            )
        elif types[name] == "UnixTimestamp":
            columns[name] = pd.to_datetime(frame[name], utc=True).astype("datetime64[us, UTC]")
        else:
            values = frame[name].astype(object)
            columns[name] = values.where(values.notna(), None)
    return pd.DataFrame(columns, index=frame.index)


def require(frame: "pd.DataFrame", columns: list[str], asker: str) -> None:
    """Refuse a dataframe that lacks columns.

    Raises:
        FeatureError: and which ones.
    """
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        has = ", ".join(map(str, frame.columns)) or "no columns"
        raise FeatureError(
            f"{asker} needs the columns {', '.join(missing)}, which the entity dataframe lacks (it has: {has})."
        )
