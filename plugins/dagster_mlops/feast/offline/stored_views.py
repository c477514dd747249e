"""On-demand views that are stored online: their values, computed by the offline store at each entity's latest event."""

from collections.abc import Iterator, Sequence
from typing import Any

from dagster_mlops.core.extras import extra
from dagster_mlops.core.tables import sql_name
from dagster_mlops.core.timestamps import to_microseconds
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.lazy import FeatureStore, pa, pd
from dagster_mlops.feast.offline import source
from dagster_mlops.feast.offline.retrieval import ENGINE, join_keys
from dagster_mlops.feast.offline.source import LONG_AGO, Window, WindowFacts
from dagster_mlops.feast.repository.registry import feature_view

_ROWS_PER_PIECE = 100_000
_TIMESTAMP = "event_timestamp"


def latest_entities(store: FeatureStore, view: Any, windows: Sequence[Window]) -> "pd.DataFrame":
    """Entities of a stored view with an event in one of `windows`: join keys, and the latest ``event_timestamp``.

    An event of an entity is one of any source: in a source with fewer keys, one event is that of several entities. The
    entities are those of the sources with all keys of the view.
    """
    keys, sources = join_keys(view), _sources(store, view)
    parts: list[Any] = []
    for window in windows:
        # An entity's keys may be in an older row than its event, which is in another source.
        start = window.start if len(sources) == 1 else LONG_AGO
        latest = [source.latest_per_key(store, used, Window(start, window.end)) for used in sources]
        complete = [frame[keys] for frame, used in zip(latest, sources, strict=True) if {*join_keys(used)} == {*keys}]
        entities: Any = pd.concat(complete).drop_duplicates().reset_index(drop=True)
        times = [_times(entities, join_keys(used), frame) for frame, used in zip(latest, sources, strict=True)]
        entities["last"] = pd.concat(times, axis=1).max(axis=1)
        parts.append(entities[entities["last"] >= to_microseconds(window.start)])
    latest_times: Any = pd.concat(parts).groupby(keys, sort=False, as_index=False)["last"].max()
    event_times = pd.to_datetime(latest_times.pop("last").astype("int64"), unit="us", utc=True)
    return latest_times.assign(**{_TIMESTAMP: event_times.astype("datetime64[us, UTC]")})


def _times(entities: Any, keys: list[str], latest: Any) -> "pd.Series":
    """The latest event of each of `entities` in a source with the keys `keys`, -1 without one."""
    if keys:
        return entities.merge(latest, on=keys, how="left")["last"].fillna(-1).astype("int64")
    return pd.Series(int(latest["last"].max()) if len(latest) else -1, index=entities.index)


def computed(store: FeatureStore, view: Any, entities: "pd.DataFrame") -> "Iterator[pa.Table]":
    """The features of a stored view for :func:`latest_entities`, as Feast's historical features compute them.

    Raises:
        FeatureError: The offline store lost rows.
    """
    names = [feature.name for feature in view.features]
    refs = [f"{view.name}:{name}" for name in names]
    for first in range(0, len(entities), _ROWS_PER_PIECE):
        piece = entities.iloc[first : first + _ROWS_PER_PIECE]
        table = store.get_historical_features(entity_df=piece, features=refs).to_arrow()
        if table.num_rows != len(piece):
            raise FeatureError(
                f"Feast computed {table.num_rows} rows of {view.name!r} for {len(piece)} entities: the offline store "
                f"loses or multiplies rows. Use `offline_store: {{type: {ENGINE}}}`."
            )
        times = table[_TIMESTAMP].cast(pa.timestamp("us", "UTC"), safe=False)
        yield table.select([*join_keys(view), *names]).append_column(_TIMESTAMP, times)


def describe(store: FeatureStore, view: Any, windows: Sequence[Window]) -> list[WindowFacts]:
    """Statistics of a stored view's values in each of `windows`, as for other feature views."""
    return [_described(store, view, window) for window in windows]


def _described(store: FeatureStore, view: Any, window: Window) -> WindowFacts:
    types = {feature.name: str(feature.dtype) for feature in view.features}
    tables = list(computed(store, view, latest_entities(store, view, [window])))
    if not tables:
        return WindowFacts(window, 0, None, "empty", ())
    with extra("duckdb", extra="feast").connect() as duckdb:
        duckdb.execute("SET TimeZone = 'UTC'")
        duckdb.register("computed", pa.concat_tables(tables, promote_options="permissive"))
        duckdb.execute(
            f"CREATE TEMP VIEW events AS SELECT *, epoch_us({sql_name(_TIMESTAMP)}) AS happened FROM computed"
        )
        columns = [*join_keys(view), _TIMESTAMP, *types]
        [facts] = source.described_events(duckdb, columns, types, [window])
    return facts


def whole_window(store: FeatureStore, view: Any) -> Window:
    """The window from the first to the last event of the sources of a stored view.

    Raises:
        FeatureError: A source has no events, or cannot be read.
    """
    windows = [source.whole_window(store, used) for used in _sources(store, view)]
    return Window(min(window.start for window in windows), max(window.end for window in windows))


def online_rows(view: Any, table: "pa.Table") -> list[tuple[Any, dict[str, Any], Any, Any]]:
    """The rows of :func:`computed` as Feast's online stores take them, with the time of the event.

    Feast itself stores the time of writing, so that an older window that is loaded later would replace newer values.
    """
    convert = extra("feast.type_map", extra="feast").python_values_to_proto_values
    key_class = extra("feast.protos.feast.types.EntityKey_pb2", extra="feast").EntityKey
    fields = {field.name: field.dtype.to_value_type() for field in [*view.entity_columns, *view.features]}
    values = {name: convert(table[name].to_pylist(), kind) for name, kind in fields.items()}
    keys, names = join_keys(view), [feature.name for feature in view.features]
    return [
        (
            key_class(join_keys=keys, entity_values=[values[key][i] for key in keys]),
            {name: values[name][i] for name in names},
            time,
            time,
        )
        for i, time in enumerate(table[_TIMESTAMP].to_pylist())
    ]


def _sources(store: FeatureStore, view: Any) -> list[Any]:
    names = dict.fromkeys(used.name for used in view.source_feature_view_projections.values())
    return [feature_view(store, name) for name in names]
