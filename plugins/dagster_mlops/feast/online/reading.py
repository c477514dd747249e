"""Reads of the online store in the requested order and as of a given time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from dagster_mlops.errors import FeatureError
from dagster_mlops.feast import upstream
from dagster_mlops.feast.lazy import FeatureService, FeatureStore, pa, pd
from dagster_mlops.feast.offline import retrieval
from dagster_mlops.feast.offline.retrieval import feature_types, is_on_demand, is_stored, join_keys, request_columns
from dagster_mlops.feast.online.stores import explained, session_zone
from dagster_mlops.feast.repository.registry import feature_service, feature_view

EVENT_TIME = "__ts"  # Feast's suffix of a feature's name for its event timestamp
_Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class ServedView:
    """A feature view in a request.

    Attributes:
        view: The view, as the registry has it.
        ref: Its name in the request.
        columns: Requested feature → column of the answer.
        sources: The projections that an on-demand view is computed from, with their feature views.
    """

    view: Any
    ref: str
    columns: Mapping[str, str]
    sources: tuple[tuple[Any, Any], ...] = ()

    @classmethod
    def of(cls, store: FeatureStore, view: Any, ref: str, columns: Mapping[str, str]) -> "ServedView":
        """A view and, if it is an on-demand view, those that it is computed from."""
        projections = view.source_feature_view_projections.values() if is_on_demand(view) else ()
        return cls(view, ref, columns, tuple((source, feature_view(store, source.name)) for source in projections))


@dataclass(frozen=True)
class OnlineRequest:
    """The features of a request, looked up in the registry once for any number of reads.

    Attributes:
        features: A feature service, or references to features.
        views: Its feature views, in order.
        keys: The columns that a row of a request has: join keys and request data.
        types: Column of the answer → Feast type.
        full_feature_names: Columns are named ``view__feature``.
    """

    store: FeatureStore
    features: FeatureService | list[str]
    views: tuple[ServedView, ...]
    keys: tuple[str, ...]
    types: Mapping[str, str]
    full_feature_names: bool = False

    @classmethod
    def of_service(cls, store: FeatureStore, name: str, *, full_feature_names: bool = False) -> "OnlineRequest":
        """A request for a feature service.

        Raises:
            FeatureError: The registry has no such service, or two of its features have one name.
        """
        service = feature_service(store, name)
        types, views = feature_types(service, full_feature_names=full_feature_names), []
        for projection in service.feature_view_projections:
            ref = projection.name_to_use()
            prefix = f"{ref}__" if full_feature_names else ""
            columns = {feature.name: prefix + feature.name for feature in projection.features}
            views.append(ServedView.of(store, feature_view(store, projection.name), ref, columns))
        keys = retrieval.entity_columns(store, service, online=True)
        return cls(store, service, tuple(views), tuple(keys), types, full_feature_names)

    @classmethod
    def of_view(cls, store: FeatureStore, view: Any, names: Sequence[str]) -> "OnlineRequest":
        """A request for the features `names` of one view."""
        types = {feature.name: str(feature.dtype) for feature in view.features if feature.name in names}
        used = ServedView.of(store, view, view.name, {name: name for name in names})
        return cls(store, [f"{view.name}:{name}" for name in names], (used,), (), types)

    @cached_property
    def computed(self) -> list[ServedView]:
        """On-demand views that Feast's server cannot compute: a join key is request data of theirs, too.

        It takes the column for the one and then misses the other: https://github.com/feast-dev/feast/issues/6790
        """
        on_demand = [used for used in self.views if is_on_demand(used.view) and not is_stored(used.view)]
        inner = [view for used in on_demand for _, view in used.sources]
        outer = [used.view for used in self.views if used not in on_demand]
        keys = {key for view in [*outer, *inner] for key in join_keys(view)}
        return [used for used in on_demand if keys & {*request_columns(used.view)}]

    def answer(self, rows: _Columns, count: int, at: datetime | None = None) -> dict[str, list[Any]]:
        """The values of each column for `count` rows, and in ``<column>__ts`` the seconds of their event timestamps.

        With a time `at`, features that had expired by then are missing, and those of on-demand views are computed from
        the remaining ones. A column without timestamps is computed, and has 0.
        """
        features, answer = self.features, dict[str, list[Any]]()
        if self.computed:
            by_feast = [used for used in self.views if used not in self.computed]
            features = [f"{used.ref}:{name}" for used in by_feast for name in used.columns]
        if features:
            answer = served_answer(self.store, features, rows, count, full_feature_names=self.full_feature_names)
        for used in self.computed:
            answer |= self._computed(used, rows, count, at)
        for used in self.views:
            if at is None:
                break
            if not is_on_demand(used.view):
                _expire(answer, used.view, used.columns, at)
            elif used not in self.computed:
                answer |= self._computed(used, rows, count, at, only_expired=True)
        return answer

    def _computed(
        self, used: ServedView, rows: _Columns, count: int, at: datetime | None, *, only_expired: bool = False
    ) -> dict[str, list[Any]]:
        """An on-demand view's columns, computed from its inputs online; with `only_expired` if one of them expired."""
        view = used.view
        if only_expired:
            needs_request = is_stored(view) and request_columns(view)
            if needs_request or not any(getattr(source, "ttl", None) for _, source in used.sources):
                return {}
        inputs: dict[str, list[Any]] = {}
        has_expired = False
        for projection, source in used.sources:
            keys = {key: rows[projection.join_key_map.get(key, key)] for key in join_keys(source)}
            columns = {feature.name: feature.name for feature in projection.features}
            refs = [f"{projection.name}:{name}" for name in columns]
            served = served_answer(self.store, refs, keys, count)
            has_expired |= at is not None and _expire(served, source, columns, at)
            inputs |= {name: served[name] for name in columns} | {key: list(values) for key, values in keys.items()}
        if only_expired and not has_expired:
            return {}
        inputs |= {name: list(rows[name]) for name in request_columns(view)}
        values = on_demand_values(view, inputs, [source for _, source in used.sources])
        return {column: values[name] for name, column in used.columns.items()}


def online_features(request: OnlineRequest, entities: "pd.DataFrame", *, at: datetime | None = None) -> "pd.DataFrame":
    """`entities` unchanged, row by row, with the features that the online store serves now.

    Columns come in the service's order. Feast itself returns them in an order that changes from process to process,
    which a model that takes an array would not notice.

    Feast's online stores still return a value older than its view's ttl, which is missing in the offline stores. With a
    time `at`, values that had expired by then are missing, as they are offline.

    Raises:
        FeatureError: A join key is missing, or `at` has no time zone.
    """
    name = getattr(request.features, "name", "")
    retrieval.require(entities, [*request.keys], f"feature service {name!r}")
    if at is not None and at.tzinfo is None:
        raise FeatureError(f"at={at.isoformat()} has no time zone. Give one, e.g. datetime.now(timezone.utc).")
    answer = request.answer(columns_of(entities, request.keys), len(entities), at) if len(entities) else {}
    values = {
        column: retrieval.normalised_values(answer.get(column, []), dtype) for column, dtype in request.types.items()
    }
    return pd.concat([entities.reset_index(drop=True), pd.DataFrame(values)], axis=1)


def served_values(
    store: FeatureStore, entity_rows: "pd.DataFrame", view: Any, names: Sequence[str], *, at: datetime | None = None
) -> "pd.DataFrame":
    """The features `names` of a view that are served for each of `entity_rows`, as Python objects and None.

    ``<name>__ts`` is the event timestamp of a feature in whole seconds since 1970, as Feast returns it: 0 without an
    event, and for computed features. `at` is as in :meth:`OnlineRequest.answer`.
    """
    rows, count = columns_of(entity_rows, [*entity_rows.columns]), len(entity_rows)
    answer = OnlineRequest.of_view(store, view, names).answer(rows, count, at) if count else {}
    columns = [*names, *(f"{name}{EVENT_TIME}" for name in names)]
    missing = [0] * count
    return pd.DataFrame(
        {name: pd.Series(answer.get(name, missing), index=entity_rows.index, dtype=object) for name in columns}
    )


def served_answer(
    store: FeatureStore,
    features: FeatureService | list[str],
    rows: _Columns,
    count: int,
    *,
    full_feature_names: bool = False,
) -> dict[str, list[Any]]:
    """Feast's response: values by column, and in ``<column>__ts`` whole seconds since 1970, 0 without an event.

    Args:
        rows: Columns of join keys and request data; none for views without entities.
        count: Number of rows.
    """
    online = upstream.online_store(store)
    refs = features if isinstance(features, list) else [view.name for view in features.feature_view_projections]
    # Feast answers for the rows of its request, so one without columns gets the key that it gives to such views.
    entity_rows = dict(rows) or {"__dummy_id": [""] * count}
    with explained(store.config, dict.fromkeys(ref.partition(":")[0] for ref in refs), "reading"):
        response = store.get_online_features(features, entity_rows, full_feature_names)
        answer = response.to_dict(include_event_timestamps=True)
        zone = session_zone(online, store.config)
    for name in [name for name in answer if zone and name.endswith(EVENT_TIME)]:
        session_times = [datetime.fromtimestamp(seconds, zone) if seconds else None for seconds in answer[name]]
        answer[name] = [int(m.replace(tzinfo=UTC).timestamp()) if m else 0 for m in session_times]
    return answer


def on_demand_values(view: Any, inputs: Mapping[str, list[Any]], sources: Sequence[Any] = ()) -> dict[str, list[Any]]:
    """Features that an on-demand view computes from `inputs`, features and request data, as in Feast's server.

    Args:
        sources: The feature views that declare the types of `inputs`, so that one without values has them, too.
    """
    from dagster_mlops.feast.point_in_time.declared import arrow_type  # it imports Feast

    if view.mode == "python":
        return view.transform_dict(dict(inputs))
    fields = [field for source in sources for field in [*source.entity_columns, *source.features]]
    fields += [field for request in view.source_request_sources.values() for field in request.schema]
    types = {field.name: arrow_type(field) for field in fields}
    arrays = {name: pa.array(values, types.get(name) if _has_none(values) else None) for name, values in inputs.items()}
    return view.transform_arrow(pa.table(arrays), full_feature_names=False).to_pydict()


def _has_none(values: list[Any]) -> bool:
    """True if no value tells the type of the column."""
    return all(value is None for value in values)


def columns_of(frame: "pd.DataFrame", names: Sequence[str]) -> dict[str, list[Any]]:
    """Columns of a dataframe as Python values, which Feast's type inference expects."""
    return {name: list(map(_plain, frame[name].tolist())) for name in names}


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") and not getattr(value, "ndim", 0) else value


def _expire(answer: dict[str, Any], view: Any, columns: Mapping[str, str], at: datetime) -> bool:
    """Blank out values in a response that are older than the view's ttl at the time `at`; True if there were some."""
    if not getattr(view, "ttl", None):
        return False
    oldest, has_expired = (at - view.ttl).timestamp(), False
    for column in (column for column in columns.values() if column in answer):
        served = answer[column]
        pairs = zip(served, answer[f"{column}{EVENT_TIME}"], strict=True)
        answer[column] = [value if event_time >= oldest else None for value, event_time in pairs]
        has_expired |= answer[column] != served
    return has_expired
