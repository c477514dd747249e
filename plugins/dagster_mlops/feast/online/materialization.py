"""Loads windows of a feature view into the online store, in any order and beside other processes."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import dagster as dg

from dagster_mlops.core.extras import extra
from dagster_mlops.core.files import exclusive
from dagster_mlops.core.memory import state_dir
from dagster_mlops.core.timestamps import MICROSECOND, utc
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast import upstream
from dagster_mlops.feast.lazy import FeatureStore
from dagster_mlops.feast.offline import stored_views
from dagster_mlops.feast.offline.retrieval import is_stored
from dagster_mlops.feast.offline.source import Window
from dagster_mlops.feast.online.serving import Written, newer_events_kept
from dagster_mlops.feast.online.stores import explained, has_table
from dagster_mlops.feast.repository import registry

_LOST_WINDOWS = "dagster_mlops/lost/{}"  # the registry entry with the windows of a view to reload
_STORED_WINDOWS = "dagster_mlops/stored/{}"  # that of a stored on-demand view, for which Feast records no windows


@contextmanager
def alone(store: FeatureStore, repo: Path, view: str, timeout: float) -> Iterator[None]:
    """Lock `view` against other loaders: on this machine and, with a registry in Postgres, on all machines.

    Two writers would not see each other's writes, and could overwrite a newer value with an older one. The operating
    system, or the database, releases the lock of a killed process.

    Raises:
        FeatureError: Another process held the lock for `timeout` seconds.
    """
    with exclusive(state_dir(repo) / f"{quote(view, safe='')}.lock", timeout, error=FeatureError):
        engine = getattr(store.registry, "write_engine", None)
        if engine is None or engine.dialect.name != "postgresql":
            yield
            return
        sql = extra("sqlalchemy", extra="feast")
        name = {"name": f"dagster_mlops/{store.project}/{view}"}
        # Autocommit: the server may end a session that is idle in a transaction, and its lock with it.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sql.text(f"SET lock_timeout = {int(timeout * 1000)}"))
            try:
                connection.execute(sql.text("SELECT pg_advisory_lock(hashtextextended(:name, 0))"), name)
            except sql.exc.OperationalError as error:
                raise FeatureError(
                    f"another machine has been materializing {view!r} for {timeout:.0f} s. Wait for it or stop it."
                ) from error
            try:
                yield
            finally:
                connection.execute(sql.text("SELECT pg_advisory_unlock(hashtextextended(:name, 0))"), name)


def materialize(store: FeatureStore, view: str, window: Window) -> Written:
    """Load `window` into the online store and return the number of written keys. Call it inside :func:`alone`.

    The latest event of each key wins, in whatever order windows are loaded: also for late rows, reloaded windows and
    values that were pushed meanwhile; :func:`~dagster_mlops.feast.online.newer_events_kept` says what Feast's own
    stores do. A missing table is recreated, and all windows that the registry records as loaded are reloaded first.

    Raises:
        FeatureError: The registry did not keep the record of the loaded window; or the online store failed.
    """
    make_missing_table(store, registry.feature_view(store, view))
    name = _LOST_WINDOWS.format(view)
    if lost_windows := json.loads(registry.get_tags(store, name).get("windows", "[]")):
        for start, end in lost_windows:
            _load(store, view, Window(datetime.fromisoformat(start), datetime.fromisoformat(end)))
        registry.put_tags(store, name, {})
    return _load(store, view, window)


def make_missing_tables(store: FeatureStore) -> None:
    """Recreate missing tables of the registry's views, for the next :func:`materialize` to reload.

    ``feast apply`` creates no table for a view that the registry has already, or creates it without a warning: the
    loaded values would stay missing although the registry records them as loaded.
    """
    for view in store.registry.list_all_feature_views(store.project):
        if is_stored(view) or (getattr(view, "online", False) and hasattr(view, "materialization_intervals")):
            make_missing_table(store, view)


def make_missing_table(store: FeatureStore, view: Any) -> None:
    """Recreate the table of one view if it is missing, and record the windows to reload."""
    online = upstream.online_store(store)
    with explained(store.config, [view.name], "looking for"):
        if has_table(online, store.config, view):
            return
        if windows := loaded_windows(store, view):
            pushed = ", and repush rows that are not in its source" if getattr(view, "stream_source", None) else ""
            dg.get_dagster_logger().warning(
                f"the table of feature view {view.name!r} is missing from the online store. It is recreated, and a "
                f"materialization reloads its loaded windows. Find out who deleted it{pushed}."
            )
            # Recorded before the table exists, so that a process killed in between leaves the windows for the next.
            spans = [[window.start.isoformat(), window.end.isoformat()] for window in windows]
            registry.put_tags(store, _LOST_WINDOWS.format(view.name), {"windows": json.dumps(spans)})
        online.update(store.config, [], [view], [], [], True)


def _load(store: FeatureStore, view: str, window: Window) -> Written:
    definition = registry.feature_view(store, view)
    if is_stored(definition):
        return _load_stored(store, definition, window)
    for _ in range(3):
        with newer_events_kept(store) as writes:
            # Feast reads both ends of an interval; events at `end` belong to the next window.
            store.materialize(window.start, window.end - MICROSECOND, feature_views=[view])
        # `feast apply` in another process writes back the intervals that it read before ours was recorded.
        windows = materialized_windows(registry.feature_view(store, view))
        if any(w.start <= window.start and window.end <= w.end for w in windows):
            return writes
    raise FeatureError(
        f"feature view {view!r} was loaded from {window.start} to {window.end}, but the registry lost that record "
        "three times, because another process keeps applying. Stop it, and rematerialize."
    )


def _load_stored(store: FeatureStore, view: Any, window: Window) -> Written:
    entities = stored_views.latest_entities(store, view, [window])
    with newer_events_kept(store) as writes:
        for table in stored_views.computed(store, view, entities):
            upstream.online_store(store).online_write_batch(
                store.config, view, stored_views.online_rows(view, table), None
            )
    windows = _merged([*loaded_windows(store, view), window])
    spans = json.dumps([[w.start.isoformat(), w.end.isoformat()] for w in windows])
    registry.put_tags(store, _STORED_WINDOWS.format(view.name), {"windows": spans})
    return writes


def loaded_windows(store: FeatureStore, view: Any) -> list[Window]:
    """The windows of a view of any kind that the registry records as loaded, as in :func:`materialized_windows`."""
    if not is_stored(view):
        return materialized_windows(view)
    spans = json.loads(registry.get_tags(store, _STORED_WINDOWS.format(view.name)).get("windows", "[]"))
    return [Window(datetime.fromisoformat(start), datetime.fromisoformat(end)) for start, end in spans]


def materialized_windows(view: Any) -> list[Window]:
    """The windows of a view that the registry records as loaded, in order; adjacent or overlapping ones are merged."""
    return _merged(Window(utc(start), utc(end) + MICROSECOND) for start, end in view.materialization_intervals)


def _merged(windows: Iterable[Window]) -> list[Window]:
    merged: list[Window] = []
    for window in sorted(windows):
        if merged and window.start <= merged[-1].end:
            merged[-1] = Window(merged[-1].start, max(merged[-1].end, window.end))
        else:
            merged.append(window)
    return merged
