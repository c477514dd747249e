"""What the online store serves, in the order asked for and by a given moment, and how newer values are kept in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
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

_KEYS_PER_READ = 1000  # a read of Feast's SQLite store has a variable per key


@dataclass
class Written:
    """How many keys were written online, and how many were not because an event that is newer is there."""

    keys: int = 0
    kept: int = 0


@contextmanager
def newer_events_kept(store: "FeatureStore") -> Iterator[Written]:
    """While it is open, nothing that `store` writes online replaces a newer event: no push, and no materialization.

    Feast's SQLite and Postgres stores take whatever comes last, and its Redis store skips a corrected value of the same
    moment. Here the latest event of each key wins in all of them, and of equal moments the last to come. Hold
    :func:`~dagster_mlops.feast.materialization.alone` around it for each view that is written: between the
    comparison and the write nobody else may write.

        with alone(store, repo, view, timeout), newer_events_kept(store) as written:
            store.push("visits_push", frame)
        print(written.keys, written.kept)

    SQLite keeps whole seconds only, so that there two events within one second count as of the same moment.
    """
    online: Any = store._get_provider().online_store  # Feast has no public name for the store that it writes to
    settings: Any = store.config.online_store
    write, written = online.online_write_batch, Written()
    deduplicates = getattr(settings, "skip_dedup", None)

    def write_newest(config: Any, table: Any, data: Any, progress: Any) -> None:
        newest: dict[bytes, Any] = {}
        for row in data:
            key = row[0].SerializeToString(deterministic=True)
            if key not in newest or utc(newest[key][2]) <= utc(row[2]):
                newest[key] = row
        rows = list(newest.values())
        fresh: list[Any] = []
        for first in range(0, len(rows), _KEYS_PER_READ):
            part = rows[first : first + _KEYS_PER_READ]
            there = online.online_read(config, table, [row[0] for row in part], [table.features[0].name])
            fresh += [
                row
                for row, (happened, _) in zip(part, there, strict=True)
                if happened is None or utc(happened) <= utc(row[2])
            ]
        if fresh:
            write(config, table, fresh, None)
        written.keys += len(fresh)
        written.kept += len(rows) - len(fresh)
        if progress:
            progress(len(data))

    online.online_write_batch = write_newest
    if deduplicates is not None:
        settings.skip_dedup = True  # Redis need not compare again
    try:
        yield written
    finally:
        online.online_write_batch = write
        if deduplicates is not None:
            settings.skip_dedup = deduplicates


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


def utc(moment: datetime) -> datetime:
    """`moment` in UTC; without a time zone it already is, as Feast takes it."""
    return moment.replace(tzinfo=timezone.utc) if moment.tzinfo is None else moment.astimezone(timezone.utc)
