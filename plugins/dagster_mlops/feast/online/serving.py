"""What the online store serves, in the order asked for and by a given moment, and how newer values are kept in it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from dagster_mlops.core.extras import extra
from dagster_mlops.core.timestamps import utc
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast import upstream
from dagster_mlops.feast.offline.retrieval import entity_columns, feature_types, join_keys, normalised, require
from dagster_mlops.feast.online.event_times import none_is_newer, session_zone, stored_moments
from dagster_mlops.feast.online.faults import explained
from dagster_mlops.feast.repository.registry import feature_service, feature_view

if TYPE_CHECKING:
    import pandas as pd
    from feast import FeatureStore
    from feast.feature_service import FeatureService

_TIME = "__ts"  # what Feast adds to a feature's name for the moment of its event


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
    :func:`~dagster_mlops.feast.online.materialization.alone` around it for each view that is written: between the
    comparison and the write nobody else may write.

        with alone(store, repo, view, timeout), newer_events_kept(store) as written:
            store.push("visits_push", frame)
        print(written.keys, written.kept)

    SQLite keeps whole seconds only, so that there two events within one second count as of the same moment.
    """
    online = upstream.online_store(store)
    settings: Any = store.config.online_store
    write, written = online.online_write_batch, Written()
    deduplicates = getattr(settings, "skip_dedup", None)

    def write_newest(config: Any, table: Any, data: Any, progress: Any) -> None:
        newest: dict[bytes, tuple[datetime, Any]] = {}
        for row in data:
            # One call makes the keys of all rows, so that equal ones are equal bytes.
            key, happened = row[0].SerializeToString(), utc(row[2])
            if key not in newest or newest[key][0] <= happened:
                newest[key] = (happened, row)
        with explained(config, [table.name], "writing"):
            fresh = _not_outdated(online, config, table, [*newest.values()])
            if fresh:
                write(config, table, fresh, None)
        written.keys += len(fresh)
        written.kept += len(newest) - len(fresh)
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


def _not_outdated(online: Any, config: Any, view: Any, rows: Sequence[tuple[datetime, Any]]) -> list[Any]:
    """Those of `rows`, each with its moment and of another key, of which the store holds no newer event."""
    if not rows or none_is_newer(online, config, view, min(happened for happened, _ in rows), len(rows)):
        return [row for _, row in rows]
    stored = stored_moments(online, config, view, (row[0] for _, row in rows))
    return [row for (happened, row), there in zip(rows, stored, strict=True) if there is None or there <= happened]


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
    asked, types = entities.loc[:, keys].reset_index(drop=True), feature_types(found)
    views = [feature_view(store, projection.name) for projection in found.feature_view_projections]
    values = normalised(served_values(store, asked, found, [*types], at=at, views=views).loc[:, [*types]], types)
    return pd.concat([entities.reset_index(drop=True), values], axis=1)


def served_values(
    store: "FeatureStore",
    asked: "pd.DataFrame",
    features: "FeatureService | list[str]",
    names: Sequence[str],
    *,
    at: datetime | None = None,
    views: Sequence[Any] = (),
) -> "pd.DataFrame":
    """The features `names` that the online store serves for each row of `asked`, as Python objects and None.

    Given a moment `at`, the features of `views` that had expired by then are missing, and those of on-demand views are
    computed from what was left. ``<name>__ts`` is the moment of a feature's event in whole seconds since 1970, as Feast
    gives it: 0 where there is none, and for what is computed.
    """
    pd = extra("pandas", extra="feast")
    columns = [*names, *(f"{name}{_TIME}" for name in names)]
    rows = [dict(zip(asked.columns, map(_plain, row), strict=True)) for row in asked.itertuples(index=False, name=None)]
    if not rows:
        return pd.DataFrame(columns=columns, dtype=object)
    answer = served_answer(store, features, rows)
    for view in views:
        if at is None:
            break
        if _is_on_demand(view):
            answer |= _computed_again(store, view, asked, answer, at)
        else:
            _expire(answer, view, at)
    return pd.DataFrame({name: pd.Series(answer[name], index=asked.index, dtype=object) for name in columns})


def served_answer(
    store: "FeatureStore", features: "FeatureService | list[str]", rows: list[dict[str, Any]]
) -> dict[str, list[Any]]:
    """Feast's own answer: values by feature, and under ``<name>__ts`` whole seconds since 1970, 0 for nothing."""
    online = upstream.online_store(store)
    projections = [] if isinstance(features, list) else features.feature_view_projections
    views = [ref.partition(":")[0] for ref in features] if isinstance(features, list) else [p.name for p in projections]
    with explained(store.config, dict.fromkeys(views), "reading"):
        answer = store.get_online_features(features=features, entity_rows=rows).to_dict(include_event_timestamps=True)
        zone = session_zone(online, store.config)
    for name in [name for name in answer if zone and name.endswith(_TIME)]:
        moments = [datetime.fromtimestamp(seconds, zone) if seconds else None for seconds in answer[name]]
        answer[name] = [int(m.replace(tzinfo=UTC).timestamp()) if m else 0 for m in moments]
    return answer


def on_demand_values(view: Any, inputs: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """What an on-demand view computes from `inputs`, its features and request data by name, as Feast's server does."""
    if view.mode == "python":
        return view.transform_dict(inputs)
    table = extra("pyarrow", extra="feast").Table.from_pydict(inputs)
    return view.transform_arrow(table, full_feature_names=False).to_pydict()


def _expire(answer: dict[str, Any], view: Any, at: datetime) -> None:
    """Blank out in a response what is older than the view's ttl at the moment `at`."""
    if not getattr(view, "ttl", None):
        return
    oldest = (at - view.ttl).timestamp()
    for name in (feature.name for feature in view.features if feature.name in answer):
        served = zip(answer[name], answer[f"{name}{_TIME}"], strict=True)
        answer[name] = [value if happened >= oldest else None for value, happened in served]


def _computed_again(
    store: "FeatureStore", view: Any, asked: "pd.DataFrame", answer: dict[str, Any], at: datetime
) -> dict[str, Any]:
    """The features in `answer` of an on-demand view, computed once more for rows of which an input has expired."""
    sources = [feature_view(store, source.name) for source in view.source_feature_view_projections.values()]
    if view.write_to_online_store or not any(getattr(source, "ttl", None) for source in sources):
        return {}
    taken = {source.name: source for source in view.source_feature_view_projections.values()}
    refs = [f"{name}:{feature.name}" for name, source in taken.items() for feature in source.features]
    keys = list(dict.fromkeys(key for source in sources for key in join_keys(source)))
    rows = [dict(zip(keys, map(_plain, row), strict=True)) for row in asked[keys].itertuples(index=False, name=None)]
    inputs = served_answer(store, refs, rows)
    before = {name: list(values) for name, values in inputs.items()}
    for source in sources:
        _expire(inputs, source, at)
    changed = [i for i in range(len(rows)) if any(inputs[name][i] is not before[name][i] for name in inputs)]
    if not changed:
        return {}
    requested = {field.name for request in view.source_request_sources.values() for field in request.schema}
    given = {name: values for name, values in inputs.items() if not name.endswith(_TIME)}
    given |= {name: list(map(_plain, asked[name])) for name in requested}
    computed = on_demand_values(view, {name: [values[i] for i in changed] for name, values in given.items()})
    fresh = {}
    for name in (feature.name for feature in view.features if feature.name in answer):
        fresh[name] = list(answer[name])
        for place, value in zip(changed, computed[name], strict=True):
            fresh[name][place] = value
    return fresh


def _is_on_demand(view: Any) -> bool:
    return getattr(view, "source_request_sources", None) is not None


def _plain(value: Any) -> Any:
    """A numpy scalar as the Python value that Feast's type inference expects."""
    return value.item() if hasattr(value, "item") else value
