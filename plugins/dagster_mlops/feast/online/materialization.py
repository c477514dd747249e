"""Loads windows of a feature view into the online store, whatever order they come in and whoever else does so."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops.core.extras import extra
from dagster_mlops.core.files import exclusive
from dagster_mlops.core.memory import state_dir
from dagster_mlops.core.timestamps import MICROSECOND, utc
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast import upstream
from dagster_mlops.feast.offline.source import Window
from dagster_mlops.feast.online.faults import explained, has_table
from dagster_mlops.feast.online.serving import Written, newer_events_kept
from dagster_mlops.feast.repository import registry

if TYPE_CHECKING:
    from feast import FeatureStore


@contextmanager
def alone(store: "FeatureStore", repo: Path, view: str, timeout: float) -> Iterator[None]:
    """Nobody else loads `view` meanwhile: on this machine, and with a registry in Postgres, on any.

    Two writers would each miss what the other is loading, and either could put an older value over a newer one. The
    system, or the database, frees the lock of a process that was killed.

    Raises:
        FeatureError: somebody else held it for `timeout` seconds.
    """
    with exclusive(state_dir(repo) / f"{view}.lock", timeout, error=FeatureError):
        engine = getattr(store.registry, "write_engine", None)
        if engine is None or engine.dialect.name != "postgresql":
            yield
            return
        sql = extra("sqlalchemy", extra="feast")
        name = {"name": f"dagster_mlops/{store.project}/{view}"}
        # Autocommit: a session that is idle in a transaction may be ended by the server, and its lock with it.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sql.text(f"SET lock_timeout = {int(timeout * 1000)}"))
            try:
                connection.execute(sql.text("SELECT pg_advisory_lock(hashtextextended(:name, 0))"), name)
            except sql.exc.OperationalError as error:
                raise FeatureError(
                    f"another machine has been materializing {view!r} for {timeout:.0f} s. Wait for it or end it."
                ) from error
            try:
                yield
            finally:
                connection.execute(sql.text("SELECT pg_advisory_unlock(hashtextextended(:name, 0))"), name)


def materialize(store: "FeatureStore", view: str, window: Window) -> Written:
    """Load `window` into the online store and return how many keys were written. Call it inside :func:`alone`.

    The latest event of each key wins, whatever order windows come in: rows that arrived late, windows loaded again and
    values that were pushed meanwhile included. What Feast's own stores do is in
    :func:`~dagster_mlops.feast.online.newer_events_kept`. Where the view's table is gone, it is made again, and all
    that the registry has as loaded is loaded again first.

    Raises:
        FeatureError: the registry did not keep that the window is loaded; or the online store failed, and its remedy.
    """
    found = registry.feature_view(store, view)
    make_missing_table(store, found)
    name = _lost(view)
    if lost := json.loads(registry.get_tags(store, name).get("windows", "[]")):
        for start, end in lost:
            _load(store, view, Window(datetime.fromisoformat(start), datetime.fromisoformat(end)))
        registry.put_tags(store, name, {})
    return _load(store, view, window)


def make_missing_tables(store: "FeatureStore") -> None:
    """Make the tables that views of the registry have no longer, for the next :func:`materialize` to load again.

    ``feast apply`` makes no table for a view that the registry has already, or makes it without a word: what had been
    loaded would be missing ever after, while the registry has it as loaded.
    """
    for view in store.registry.list_all_feature_views(store.project):
        if getattr(view, "online", False) and hasattr(view, "materialization_intervals"):
            make_missing_table(store, view)


def make_missing_table(store: "FeatureStore", view: Any) -> None:
    """The same for one view."""
    online = upstream.online_store(store)
    with explained(store.config, [view.name], "looking for"):
        if has_table(online, store.config, view):
            return
        if windows := materialized_windows(view):
            pushed = ", and push again what is not in its source" if getattr(view, "stream_source", None) else ""
            dg.get_dagster_logger().warning(
                f"the online store has no table for feature view {view.name!r} any more. It is made again, and a "
                f"materialization loads again what had been loaded. Find out who deleted it{pushed}."
            )
            # Before the table is there: who is killed in between leaves what tells the next one.
            spans = [[window.start.isoformat(), window.end.isoformat()] for window in windows]
            registry.put_tags(store, _lost(view.name), {"windows": json.dumps(spans)})
        online.update(store.config, [], [view], [], [], True)


def _lost(view: str) -> str:
    """Where the registry has what of a view is to be loaded again."""
    return f"dagster_mlops/lost/{view}"


def _load(store: "FeatureStore", view: str, window: Window) -> Written:
    for _ in range(3):
        with newer_events_kept(store) as written:
            # Feast reads both ends of an interval; events at `end` belong to the next window.
            store.materialize(window.start, window.end - MICROSECOND, feature_views=[view])
        # `feast apply` in another process writes back the intervals that it read before ours was there.
        known = materialized_windows(registry.feature_view(store, view))
        if any(w.start <= window.start and window.end <= w.end for w in known):
            return written
    raise FeatureError(
        f"feature view {view!r} was loaded from {window.start} to {window.end}, but the registry forgot it three "
        "times: something keeps applying over it. End that, and materialize again."
    )


def materialized_windows(view: Any) -> list[Window]:
    """What of a view is online, as the registry has it: windows in order, those that touch or overlap as one."""
    merged: list[Window] = []
    for window in sorted(Window(utc(start), utc(end) + MICROSECOND) for start, end in view.materialization_intervals):
        if merged and window.start <= merged[-1].end:
            merged[-1] = Window(merged[-1].start, max(merged[-1].end, window.end))
        else:
            merged.append(window)
    return merged
