"""All uses of Feast's private names (0.67), each with the reason why no public name can replace it.

`tests/feast/test_upstream.py` fails once Feast has a public name, so that the function here can be removed.
"""

from typing import Any

from dagster_mlops.core.extras import extra


def online_store(store: Any) -> Any:
    """The object by which a ``FeatureStore`` reads online features and writes them.

    ``FeatureStore`` has no public access to its provider:
    https://github.com/feast-dev/feast/blob/v0.67.0/sdk/python/feast/feature_store.py
    """
    return store._get_provider().online_store


def sqlite_connection(online: Any, config: Any) -> Any:
    """The ``sqlite3`` connection of a ``SqliteOnlineStore``; Feast reads event timestamps only with all values.

    https://github.com/feast-dev/feast/blob/v0.67.0/sdk/python/feast/infra/online_stores/sqlite.py
    """
    return online._get_conn(config)


def close_sqlite(online: Any) -> None:
    """Close the connection of a ``SqliteOnlineStore``, which opens another one for its next read.

    https://github.com/feast-dev/feast/blob/v0.67.0/sdk/python/feast/infra/online_stores/sqlite.py
    """
    if online._conn is not None:
        online._conn.close()
        online._conn = None


def postgres_connection(online: Any, config: Any) -> Any:
    """The psycopg connection of a ``PostgreSQLOnlineStore``, as a context manager; each statement commits by itself.

    https://github.com/feast-dev/feast/blob/v0.67.0/sdk/python/feast/infra/online_stores/postgres_online_store/postgres.py
    """
    return online._get_conn(config, autocommit=True)


def offline_postgres_connection(settings: Any) -> Any:
    """A psycopg connection by the settings of Feast's Postgres offline store.

    https://github.com/feast-dev/feast/blob/v0.67.0/sdk/python/feast/infra/utils/postgres/connection_utils.py
    """
    return extra("feast.infra.utils.postgres.connection_utils", extra="feast")._get_conn(settings)
