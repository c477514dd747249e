"""When the events happened that an online store holds, read without their values where the store can."""

from collections.abc import Iterable, Iterator
from datetime import datetime, tzinfo
from itertools import islice
from typing import Any

from dagster_mlops.core.extras import extra
from dagster_mlops.core.tables import sql_name
from dagster_mlops.core.timestamps import utc
from dagster_mlops.feast import upstream

_KEYS_PER_READ = 1000  # a statement of SQLite has a variable per key
_ROWS_PER_KEY = 20  # how many rows SQLite passes over in the time that it looks for one key


def stored_moments(online: Any, config: Any, view: Any, entity_keys: Iterable[Any]) -> list[datetime | None]:
    """The moment of the event, in UTC, that the store `online` holds of each of `entity_keys`, or None.

    Feast itself reads events with their values, from SQLite those of all features, and from Postgres those of features
    it is told: which may be new, so that no event has them yet.
    """
    # The very classes: one that is derived from them may keep its rows elsewhere.
    read = {"SqliteOnlineStore": _in_sqlite, "PostgreSQLOnlineStore": _in_postgres}.get(
        type(online).__name__, _by_feast
    )
    serialize = extra("feast.infra.key_encoding_utils", extra="feast").serialize_entity_key
    version = config.entity_key_serialization_version
    remaining, moments = iter(entity_keys), []
    while part := list(islice(remaining, _KEYS_PER_READ)):
        keys = [serialize(key, entity_key_serialization_version=version) for key in part]
        named = dict(zip(keys, part, strict=True))
        found = {key: utc(moment) for key, moment in read(online, config, view, named) if moment is not None}
        moments += [found.get(key) for key in keys]
    return moments


def none_is_newer(online: Any, config: Any, view: Any, moment: datetime, keys: int) -> bool:
    """Whether it is quickly known, compared to a look at each of `keys`, that no stored event is after `moment`.

    So it is where windows are loaded one after the other. False where it is not known.
    """
    if type(online).__name__ != "SqliteOnlineStore":
        return False
    connection, table = upstream.sqlite_connection(online, config), sql_name(table_of(config, view))
    [size] = connection.execute(f"SELECT max(rowid) FROM {table}").fetchone()
    if size is None:
        return True
    if size > _ROWS_PER_KEY * keys:
        return False
    # SQLite gives the event_ts of the row that has the maximum. Feast's type converter goes by the column's name.
    newest, _ = connection.execute(f"SELECT event_ts, max(event_ts) FROM {table}").fetchone()
    return newest is None or utc(newest) <= moment


def session_zone(online: Any, config: Any) -> tzinfo | None:
    """The time zone in which a Postgres store takes the moments that Feast writes to it; None for other stores.

    Feast writes UTC without saying so, which Postgres takes for the time zone of the session, and reads a moment back
    that is hours off: where the session's clock stands at that moment is the UTC that was meant. Which zone that is
    says the database, its role, or ``PGTZ``, for whoever writes and whoever reads.
    """
    if type(online).__name__ != "PostgreSQLOnlineStore":
        return None
    with upstream.postgres_connection(online, config) as connection:
        return connection.info.timezone


def _in_sqlite(online: Any, config: Any, view: Any, part: dict[bytes, Any]) -> Iterator[tuple[bytes, datetime | None]]:
    table = sql_name(table_of(config, view))
    query = (
        f"SELECT entity_key, event_ts, max(event_ts) FROM {table} "  # of the same row: see above
        f"WHERE entity_key IN ({', '.join('?' * len(part))}) GROUP BY entity_key"
    )
    for key, moment, _ in upstream.sqlite_connection(online, config).execute(query, [*part]):
        yield key, moment


def _in_postgres(
    online: Any, config: Any, view: Any, part: dict[bytes, Any]
) -> Iterator[tuple[bytes, datetime | None]]:
    sql = extra("psycopg.sql", extra="feast")
    # Cast to the session's clock, the moment is what was meant: see `session_zone`.
    query = sql.SQL(
        "SELECT entity_key, max(event_ts)::timestamp FROM {} WHERE entity_key = ANY(%s) GROUP BY entity_key"
    ).format(sql.Identifier(table_of(config, view)))
    with upstream.postgres_connection(online, config) as connection, connection.cursor() as cursor:
        cursor.execute(query, ([*part],))
        yield from ((bytes(key), moment) for key, moment in cursor.fetchall())


def _by_feast(online: Any, config: Any, view: Any, part: dict[bytes, Any]) -> Iterator[tuple[bytes, datetime | None]]:
    read = online.online_read(config, view, [*part.values()], [view.features[0].name])
    yield from zip(part, (moment for moment, _ in read), strict=True)


def table_of(config: Any, view: Any) -> str:
    """The name of the table that holds a view in the stores which have tables."""
    helpers = extra("feast.infra.online_stores.helpers", extra="feast")
    return helpers.compute_table_id(config.project, view, config.registry.enable_online_feature_view_versioning)
