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
    features = feature_names(found)
    keys = entity_columns(store, found)
    _require(entities, [*keys, timestamp_column], f"feature service {service!r}")
    taken = [name for name in features if name in entities.columns]
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
    if distinct.empty:
        return entities.reset_index(drop=True).assign(**{name: pd.Series(dtype="float64") for name in features})
    answer = store.get_historical_features(
        entity_df=distinct.assign(**{_ROW: range(len(distinct))}), features=found
    ).to_df()
    if sorted(answer[_ROW]) != list(range(len(distinct))):
        raise FeatureError(
            f"Feast returned {len(answer)} rows for {len(distinct)} entity rows of {service!r}. The offline store "
            "loses or multiplies rows; use `offline_store: {type: duckdb}` in feature_store.yaml."
        )
    values = normalised(answer.set_index(_ROW).sort_index().loc[:, features], found)
    spread = values.take(row.to_numpy()).reset_index(drop=True)
    return pd.concat([entities.reset_index(drop=True), spread], axis=1)


def online_features(store: "FeatureStore", entities: "pd.DataFrame", service: str) -> "pd.DataFrame":
    """`entities` as it is, row by row, with the features of `service` that the online store serves now.

    Columns come in the service's order. Feast itself returns them in an order that changes from process to
    process, which a model that takes an array would not notice.

    Raises:
        FeatureError: a join key is missing.
    """
    pd = extra("pandas", extra="feast")
    found = feature_service(store, service)
    features = feature_names(found)
    keys = entity_columns(store, found)
    _require(entities, keys, f"feature service {service!r}")
    asked = entities[keys].reset_index(drop=True)
    rows = [dict(zip(keys, map(_plain, row), strict=True)) for row in asked.itertuples(index=False, name=None)]
    answer = store.get_online_features(features=found, entity_rows=rows).to_dict() if rows else {}
    values = pd.DataFrame({name: pd.Series(answer.get(name, []), dtype=object) for name in features})
    return pd.concat([entities.reset_index(drop=True), normalised(values, found)], axis=1)


def feature_names(service: "FeatureService") -> list[str]:
    """The columns that a feature service adds, in its order."""
    return [feature.name for projection in service.feature_view_projections for feature in projection.features]


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


def normalised(frame: "pd.DataFrame", service: "FeatureService") -> "pd.DataFrame":
    """`frame` with one dtype per Feast type, whatever the store returned and whether or not a value is missing.

    Numbers and booleans become float64 (exact for integers up to 2**53), timestamps ``datetime64[us, UTC]``, and the
    rest objects with None for a missing value. Offline and online frames are equal in type, then, and so are months.
    """
    pd = extra("pandas", extra="feast")
    types = {f.name: str(f.dtype) for projection in service.feature_view_projections for f in projection.features}
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


def _require(frame: "pd.DataFrame", columns: list[str], asker: str) -> None:
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        has = ", ".join(map(str, frame.columns)) or "no columns"
        raise FeatureError(
            f"{asker} needs the columns {', '.join(missing)}, which the entity dataframe lacks (it has: {has})."
        )


def _plain(value: Any) -> Any:
    """A numpy scalar as the Python value that Feast's type inference expects."""
    return value.item() if hasattr(value, "item") else value
