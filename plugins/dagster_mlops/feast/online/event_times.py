"""Event timestamps in an online store, read without the events' values where the store supports it."""

from collections.abc import Iterable, Iterator
from datetime import datetime, tzinfo
from itertools import islice
from typing import Any

from dagster_mlops.core.extras import extra
from dagster_mlops.core.tables import sql_name
from dagster_mlops.core.timestamps import utc
from dagster_mlops.feast import upstream

_KEYS_PER_READ = 1000  # a SQLite statement has one variable per key
_ROWS_PER_KEY = 20  # rows that SQLite scans in the time that it needs to look up one key


def stored_event_times(online: Any, config: Any, view: Any, entity_keys: Iterable[Any]) -> list[datetime | None]:
    """The event timestamp, in UTC, that the store `online` holds for each of `entity_keys`, or None.

    Feast itself reads events with their values: from SQLite those of all features, and from Postgres those of named
    features, which may be new, so that no event has them yet.
    """
    # Exactly these classes: a subclass may keep its rows elsewhere.
    read = {"SqliteOnlineStore": _in_sqlite, "PostgreSQLOnlineStore": _in_postgres}.get(
        type(online).__name__, _by_feast
    )
    serialize = extra("feast.infra.key_encoding_utils", extra="feast").serialize_entity_key
    version = config.entity_key_serialization_version
    remaining, event_times = iter(entity_keys), []
    while part := list(islice(remaining, _KEYS_PER_READ)):
        keys = [serialize(key, entity_key_serialization_version=version) for key in part]
        pairs = read(online, config, view, dict(zip(keys, part, strict=True)))
        times_by_key = {key: utc(time) for key, time in pairs if time is not None}
        event_times += [times_by_key.get(key) for key in keys]
    return event_times


def none_is_newer(online: Any, config: Any, view: Any, event_time: datetime, keys: int) -> bool:
    """True if no stored event is after `event_time`, where that is cheaper to tell than to look up each of `keys`.

    This is so where windows are loaded one after the other. False also means not known.
    """
    if type(online).__name__ != "SqliteOnlineStore":
        return False
    connection, table = upstream.sqlite_connection(online, config), sql_name(table_of(config, view))
    [size] = connection.execute(f"SELECT max(rowid) FROM {table}").fetchone()
    if size is None:
        return True
    if size > _ROWS_PER_KEY * keys:
        return False
    # SQLite returns event_ts of the row with the maximum. Feast's type converter depends on the column's name.
    newest, _ = connection.execute(f"SELECT event_ts, max(event_ts) FROM {table}").fetchone()
    return newest is None or utc(newest) <= event_time


def session_zone(online: Any, config: Any) -> tzinfo | None:
    """The time zone in which a Postgres store interprets the timestamps that Feast writes; None for other stores.

    Feast writes UTC without a time zone. Postgres interprets it in the session's time zone, so that the timestamp read
    back is hours off; its local time in the session's zone is the intended UTC. The database, its role or ``PGTZ``
    sets that zone, for writers and readers.
    """
    if type(online).__name__ != "PostgreSQLOnlineStore":
        return None
    with upstream.postgres_connection(online, config) as connection:
        return connection.info.timezone


def _in_sqlite(online: Any, config: Any, view: Any, part: dict[bytes, Any]) -> Iterator[tuple[bytes, datetime | None]]:
    table = sql_name(table_of(config, view))
    query = (
        f"SELECT entity_key, event_ts, max(event_ts) FROM {table} "  # of the same row: see none_is_newer
        f"WHERE entity_key IN ({', '.join('?' * len(part))}) GROUP BY entity_key"
    )
    for key, event_time, _ in upstream.sqlite_connection(online, config).execute(query, [*part]):
        yield key, event_time


def _in_postgres(
    online: Any, config: Any, view: Any, part: dict[bytes, Any]
) -> Iterator[tuple[bytes, datetime | None]]:
    sql = extra("psycopg.sql", extra="feast")
    # The local time of the session's zone is the intended UTC: see `session_zone`.
    query = sql.SQL(
        "SELECT entity_key, max(event_ts)::timestamp FROM {} WHERE entity_key = ANY(%s) GROUP BY entity_key"
    ).format(sql.Identifier(table_of(config, view)))
    with upstream.postgres_connection(online, config) as connection, connection.cursor() as cursor:
        cursor.execute(query, ([*part],))
        yield from ((bytes(key), event_time) for key, event_time in cursor.fetchall())


def _by_feast(online: Any, config: Any, view: Any, part: dict[bytes, Any]) -> Iterator[tuple[bytes, datetime | None]]:
    read = online.online_read(config, view, [*part.values()], [view.features[0].name])
    yield from zip(part, (event_time for event_time, _ in read), strict=True)


def table_of(config: Any, view: Any) -> str:
    """The name of a view's table, in stores with tables."""
    helpers = extra("feast.infra.online_stores.helpers", extra="feast")
    return helpers.compute_table_id(config.project, view, config.registry.enable_online_feature_view_versioning)
