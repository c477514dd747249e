"""Reads of the online store in the requested order and as of a given time, and writes that keep newer values."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from dagster_mlops.core.timestamps import utc
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast import upstream
from dagster_mlops.feast.lazy import FeatureService, FeatureStore, pa, pd
from dagster_mlops.feast.offline import retrieval
from dagster_mlops.feast.offline.retrieval import feature_types, is_on_demand, join_keys, normalised, request_columns
from dagster_mlops.feast.online.stores import explained, none_is_newer, session_zone, stored_event_times
from dagster_mlops.feast.repository.registry import feature_service, feature_view

_TIME = "__ts"  # Feast's suffix of a feature's name for its event timestamp


@dataclass
class Written:
    """Number of keys that were written online, and of those that kept a newer event instead."""

    keys: int = 0
    kept_newer: int = 0


@contextmanager
def newer_events_kept(store: FeatureStore) -> Iterator[Written]:
    """While it is open, no push and no materialization by `store` replaces a newer event online.

    Feast's SQLite and Postgres stores keep the last write, and its Redis store skips a corrected value with the same
    event timestamp. Here the latest event of each key wins in all stores, and of equal timestamps the last write. Hold
    :func:`~dagster_mlops.feast.online.materialization.alone` around it for each written view: no one else may write
    between the comparison and the write.

        with alone(store, repo, view, timeout), newer_events_kept(store) as written:
            store.push("visits_push", frame)
        print(written.keys, written.kept_newer)

    SQLite stores whole seconds only, so there two events within one second count as simultaneous.
    """
    online = upstream.online_store(store)
    settings: Any = store.config.online_store
    write, writes = online.online_write_batch, Written()
    deduplicates = getattr(settings, "skip_dedup", None)

    def write_newest(config: Any, table: Any, data: Any, progress: Any) -> None:
        newest: dict[bytes, tuple[datetime, Any]] = {}
        for row in data:
            # Feast serializes the keys of all rows in one way, so that equal keys are equal bytes.
            key, event_time = row[0].SerializeToString(), utc(row[2])
            if key not in newest or newest[key][0] <= event_time:
                newest[key] = (event_time, row)
        with explained(config, [table.name], "writing"):
            fresh = _not_outdated(online, config, table, [*newest.values()])
            if fresh:
                write(config, table, fresh, None)
        writes.keys += len(fresh)
        writes.kept_newer += len(newest) - len(fresh)
        if progress:
            progress(len(data))

    online.online_write_batch = write_newest
    if deduplicates is not None:
        settings.skip_dedup = True  # Redis need not compare a second time
    try:
        yield writes
    finally:
        online.online_write_batch = write
        if deduplicates is not None:
            settings.skip_dedup = deduplicates


def _not_outdated(online: Any, config: Any, view: Any, rows: Sequence[tuple[datetime, Any]]) -> list[Any]:
    """Those of `rows`, pairs of event time and row with distinct keys, of which the store holds no newer event."""
    if not rows or none_is_newer(online, config, view, min(event_time for event_time, _ in rows), len(rows)):
        return [row for _, row in rows]
    pairs = zip(rows, stored_event_times(online, config, view, (row[0] for _, row in rows)), strict=True)
    return [row for (event_time, row), stored in pairs if stored is None or stored <= event_time]


def online_features(
    store: FeatureStore, entities: "pd.DataFrame", service: str, *, at: datetime | None = None
) -> "pd.DataFrame":
    """`entities` unchanged, row by row, with the features of `service` that the online store serves now.

    Columns come in the service's order. Feast itself returns them in an order that changes from process to process,
    which a model that takes an array would not notice.

    Feast's online stores still return a value older than its view's ttl, which is missing in the offline stores. With a
    time `at`, values that had expired by then are missing, as they are offline.

    Raises:
        FeatureError: A join key is missing, or `at` has no time zone.
    """
    definition = feature_service(store, service)
    keys = retrieval.entity_columns(store, definition)
    retrieval.require(entities, keys, f"feature service {service!r}")
    if at is not None and at.tzinfo is None:
        raise FeatureError(f"at={at.isoformat()} has no time zone. Give one, e.g. datetime.now(timezone.utc).")
    rows, types = entities.loc[:, keys].reset_index(drop=True), feature_types(definition)
    views = [feature_view(store, projection.name) for projection in definition.feature_view_projections]
    values = normalised(served_values(store, rows, definition, [*types], at=at, views=views).loc[:, [*types]], types)
    return pd.concat([entities.reset_index(drop=True), values], axis=1)


def served_values(
    store: FeatureStore,
    entity_rows: "pd.DataFrame",
    features: FeatureService | list[str],
    names: Sequence[str],
    *,
    at: datetime | None = None,
    views: Sequence[Any] = (),
) -> "pd.DataFrame":
    """The features `names` that the online store serves for each of `entity_rows`, as Python objects and None.

    With a time `at`, the features of `views` that had expired by then are missing, and those of on-demand views are
    computed from the remaining ones. ``<name>__ts`` is the event timestamp of a feature in whole seconds since 1970, as
    Feast returns it: 0 without an event, and for computed features.
    """
    columns = [*names, *(f"{name}{_TIME}" for name in names)]
    rows = _plain_rows(entity_rows)
    if not rows:
        return pd.DataFrame({name: [] for name in columns}, dtype=object)
    answer = served_answer(store, features, rows)
    for view in views:
        if at is None:
            break
        if is_on_demand(view):
            answer |= _recomputed(store, view, entity_rows, answer, at)
        else:
            _expire(answer, view, at)
    return pd.DataFrame({name: pd.Series(answer[name], index=entity_rows.index, dtype=object) for name in columns})


def served_answer(
    store: FeatureStore, features: FeatureService | list[str], rows: list[dict[str, Any]]
) -> dict[str, list[Any]]:
    """Feast's response: values by feature, and in ``<name>__ts`` whole seconds since 1970, 0 without an event."""
    online = upstream.online_store(store)
    refs = features if isinstance(features, list) else [view.name for view in features.feature_view_projections]
    with explained(store.config, dict.fromkeys(ref.partition(":")[0] for ref in refs), "reading"):
        answer = store.get_online_features(features=features, entity_rows=rows).to_dict(include_event_timestamps=True)
        zone = session_zone(online, store.config)
    for name in [name for name in answer if zone and name.endswith(_TIME)]:
        session_times = [datetime.fromtimestamp(seconds, zone) if seconds else None for seconds in answer[name]]
        answer[name] = [int(m.replace(tzinfo=UTC).timestamp()) if m else 0 for m in session_times]
    return answer


def on_demand_values(view: Any, inputs: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Features that an on-demand view computes from `inputs`, features and request data, as in Feast's server."""
    if view.mode == "python":
        return view.transform_dict(inputs)
    return view.transform_arrow(pa.Table.from_pydict(inputs), full_feature_names=False).to_pydict()


def _expire(answer: dict[str, Any], view: Any, at: datetime) -> None:
    """Blank out values in a response that are older than the view's ttl at the time `at`."""
    if not getattr(view, "ttl", None):
        return
    oldest = (at - view.ttl).timestamp()
    for name in (feature.name for feature in view.features if feature.name in answer):
        served = zip(answer[name], answer[f"{name}{_TIME}"], strict=True)
        answer[name] = [value if event_time >= oldest else None for value, event_time in served]


def _recomputed(
    store: FeatureStore, view: Any, entity_rows: "pd.DataFrame", answer: dict[str, Any], at: datetime
) -> dict[str, Any]:
    """An on-demand view's features in `answer`, recomputed if an input has expired."""
    projections = {source.name: source for source in view.source_feature_view_projections.values()}
    sources = [feature_view(store, name) for name in projections]
    if view.write_to_online_store or not any(getattr(source, "ttl", None) for source in sources):
        return {}
    refs = [f"{name}:{feature.name}" for name, source in projections.items() for feature in source.features]
    keys = list(dict.fromkeys(key for source in sources for key in join_keys(source)))
    served = served_answer(store, refs, _plain_rows(entity_rows.loc[:, keys]))
    inputs = dict(served)
    for source in sources:
        _expire(inputs, source, at)
    if inputs == served:
        return {}
    arguments = {name: values for name, values in inputs.items() if not name.endswith(_TIME)}
    arguments |= {name: list(map(_plain, entity_rows[name])) for name in request_columns(view)}
    computed = on_demand_values(view, arguments)
    return {feature.name: computed[feature.name] for feature in view.features if feature.name in answer}


def _plain_rows(frame: "pd.DataFrame") -> list[dict[str, Any]]:
    return [dict(zip(frame.columns, map(_plain, row), strict=True)) for row in frame.itertuples(index=False, name=None)]


def _plain(value: Any) -> Any:
    """A numpy scalar as the Python value that Feast's type inference expects."""
    return value.item() if hasattr(value, "item") else value
