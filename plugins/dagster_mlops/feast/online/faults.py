"""Errors of online stores, with their remedies."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from dagster_mlops.core.advice import Advice, advice
from dagster_mlops.core.extras import extra
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast import upstream
from dagster_mlops.feast.online.event_times import table_of
from dagster_mlops.provenance import mask_credentials

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
        quoted = extra("psycopg.sql", extra="feast").Identifier(table)
        with upstream.postgres_connection(online, config) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT to_regclass(%s) IS NOT NULL", [quoted.as_string(connection)])
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
