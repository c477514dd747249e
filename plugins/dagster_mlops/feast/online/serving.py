"""Writes of the online store that keep newer values."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dagster_mlops.core.timestamps import utc
from dagster_mlops.feast import upstream
from dagster_mlops.feast.lazy import FeatureStore
from dagster_mlops.feast.online.stores import explained, none_is_newer, stored_event_times


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
