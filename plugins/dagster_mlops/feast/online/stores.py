"""Online stores as they are: event timestamps without their values, tables, and errors with their remedies."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, tzinfo
from itertools import islice
from typing import Any

from dagster_mlops.core.advice import Advice, advice
from dagster_mlops.core.extras import extra
from dagster_mlops.core.tables import sql_name
from dagster_mlops.core.timestamps import utc
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast import upstream
from dagster_mlops.provenance import mask_credentials

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
    table = sql_name(table_of(config, view))
    # The local time of the session's zone is the intended UTC: see `session_zone`.
    query = f"SELECT entity_key, max(event_ts)::timestamp FROM {table} WHERE entity_key = ANY(%s) GROUP BY entity_key"
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


_CLIENTS = {"sqlite3", "psycopg", "psycopg_pool", "redis"}
_SQLITE, _REDIS = "https://www.sqlite.org/rescode.html", "https://redis.io/docs/latest/operate/oss_and_stack/management"
REMEDIES = (
    Advice(
        "the table is missing, so the store was deleted or replaced after the last apply. Materialize the view's "
        "asset, which recreates the table and loads all windows that the registry records as loaded "
        "(FeastResource.apply(force=True) recreates it, too, and leaves the loading to the next materialization).",
        pattern="no such table",
        types="UndefinedTable",
    ),
    Advice(
        "this process may not write there: grant its user write access (SQLite needs it for the folder, too), or "
        "point feature_store.yaml at the primary.",
        pattern="readonly|read only|NOPERM|ReadOnly",
        types="ReadOnlyError ReadOnlySqlTransaction InsufficientPrivilege NoPermissionError",
        link=f"{_REDIS}/security/acl/",
    ),
    Advice(
        "there is no space left: free some, or give the store more.",
        pattern="disk is full|disk I/O error|No space left|OOM",
        types="DiskFull OutOfMemoryError",
    ),
    Advice(
        "its folder is missing, or this process may not read it: create it, or correct online_store.path.",
        pattern="unable to open",
        link=f"{_SQLITE}#cantopen",
    ),
    Advice(
        "the file is damaged: delete it, and materialize the assets of its views, which reloads what was loaded.",
        pattern="not a database|malformed",
        link=f"{_SQLITE}#corrupt",
    ),
    Advice("another process keeps writing to the file: stop it.", pattern="locked", link=f"{_SQLITE}#busy"),
    Advice(
        "it cannot be reached: start it, or correct its address under online_store in feature_store.yaml.",
        types="ConnectionError TimeoutError psycopg.OperationalError ConnectionTimeout PoolTimeout InterfaceError",
    ),
)
"""Remedies for errors of the clients of SQLite, Postgres and Redis."""


@contextmanager
def explained(config: Any, views: Iterable[str], doing: str) -> Iterator[None]:
    """Turn errors of the clients of SQLite, Postgres and Redis into an error that names the store and the remedy.

    Raises:
        FeatureError: In place of the client's own error, which is its cause.
    """
    try:
        yield
    except Exception as error:
        client = type(error).__module__.partition(".")[0]
        if client not in _CLIENTS:
            raise
        summary = f"{client}.{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        remedy = advice(error, REMEDIES)
        hint = "Then repeat it: unfinished writes are not recorded." if doing == "writing" else ""
        failure = f"{doing} feature views {', '.join(views)} failed in the online store {_place(config)}: "
        raise FeatureError(
            " ".join(filter(None, [f"{failure}{mask_credentials(summary)}{';' if remedy else '.'}", remedy, hint]))
        ) from error


def has_table(online: Any, config: Any, view: Any) -> bool:
    """True if the store has the table of a view, needs none, or is of an unknown kind."""
    table = table_of(config, view)
    if type(online).__name__ == "SqliteOnlineStore":
        query = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?"
        return bool(upstream.sqlite_connection(online, config).execute(query, [table]).fetchone()[0])
    if type(online).__name__ == "PostgreSQLOnlineStore":
        with upstream.postgres_connection(online, config) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT to_regclass(%s) IS NOT NULL", [sql_name(table)])
            return cursor.fetchone()[0]
    return True


def bound_waiting(settings: Any) -> None:
    """Give a Redis client timeouts; without them it waits forever for a server that does not answer."""
    address = getattr(settings, "connection_string", None)
    if getattr(settings, "type", None) == "redis" and address and "socket_timeout=" not in address:
        settings.connection_string = f"{address},socket_timeout=60,socket_connect_timeout=10"


def _place(config: Any) -> str:
    """The store as feature_store.yaml names it, without passwords."""
    settings = config.online_store
    kind = getattr(settings, "type", "")
    if path := getattr(settings, "path", None):
        return f"{kind} ({path})"
    if address := getattr(settings, "connection_string", None):
        return f"{kind} ({', '.join(part for part in str(address).split(',') if '=' not in part)})"
    if host := getattr(settings, "host", None):
        return f"{kind} ({host}:{getattr(settings, 'port', '')}/{getattr(settings, 'database', '')})"
    return str(kind)
