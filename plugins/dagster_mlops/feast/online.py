"""What the online store serves, as dataframes in the order asked for, and what had expired by a given moment."""

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from dagster_mlops._extras import extra
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.registry import feature_service, feature_view
from dagster_mlops.feast.retrieval import entity_columns, feature_types, normalised, require

if TYPE_CHECKING:
    import pandas as pd
    from feast import FeatureStore
    from feast.feature_service import FeatureService
    from feast.feature_view_projection import FeatureViewProjection


def online_features(
    store: "FeatureStore", entities: "pd.DataFrame", service: str, *, at: datetime | None = None
) -> "pd.DataFrame":
    """`entities` as it is, row by row, with the features of `service` that the online store serves now.

    Columns come in the service's order. Feast itself returns them in an order that changes from process to
    process, which a model that takes an array would not notice.

    Feast's online stores go on answering with a value that is older than its view's ttl, where the offline stores say
    that there is none. Given a moment `at`, values that had expired by then are missing, as they are offline.

    Raises:
        FeatureError: a join key is missing, or `at` has no time zone.
    """
    pd = extra("pandas", extra="feast")
    found = feature_service(store, service)
    keys = entity_columns(store, found)
    require(entities, keys, f"feature service {service!r}")
    if at is not None and at.tzinfo is None:
        raise FeatureError(f"at={at.isoformat()} has no time zone. Say which, e.g. datetime.now(timezone.utc).")
    asked = entities.loc[:, keys].reset_index(drop=True)
    ttls = _ttls(store, found.feature_view_projections) if at else {}
    values = online_values(store, asked, found, feature_types(found), at=at, ttls=ttls)
    return pd.concat([entities.reset_index(drop=True), values], axis=1)


def online_values(
    store: "FeatureStore",
    asked: "pd.DataFrame",
    features: "FeatureService | list[str]",
    types: dict[str, str],
    *,
    at: datetime | None = None,
    ttls: dict[str, timedelta] | None = None,
) -> "pd.DataFrame":
    """The features of `types` that the online store serves for each row of `asked`, which holds join keys.

    A feature in `ttls` is missing where its event is older than that at the moment `at`.
    """
    pd = extra("pandas", extra="feast")
    rows = [dict(zip(asked.columns, map(_plain, row), strict=True)) for row in asked.itertuples(index=False, name=None)]
    if not rows:
        return normalised(pd.DataFrame(columns=[*types]), types)
    response = store.get_online_features(features=features, entity_rows=rows)
    answer = response.to_dict(include_event_timestamps=bool(ttls))
    frame = pd.DataFrame({name: pd.Series(answer[name], dtype=object) for name in types})
    for name, ttl in (ttls or {}).items():
        assert at is not None  # given together
        happened = pd.Series(answer[f"{name}__ts"])
        frame.loc[happened < (at - ttl).timestamp(), name] = None
    return normalised(frame, types)


def _ttls(store: "FeatureStore", projections: "list[FeatureViewProjection]") -> dict[str, timedelta]:
    """The ttl of each feature that has one. Those of on-demand views have none: they are computed from others."""
    found: dict[str, timedelta] = {}
    for projection in projections:
        view: Any = feature_view(store, projection.name)
        if getattr(view, "ttl", None):
            found |= {feature.name: view.ttl for feature in projection.features}
    return found


def _plain(value: Any) -> Any:
    """A numpy scalar as the Python value that Feast's type inference expects."""
    return value.item() if hasattr(value, "item") else value
