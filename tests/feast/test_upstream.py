"""Fails when Feast no longer needs one of our work-arounds."""

import inspect

import feast
from feast.infra.online_stores import online_store, sqlite
from feast.infra.utils.postgres import connection_utils

from dagster_mlops.feast import upstream
from tests.support import known_warnings

pytestmark = [*known_warnings.DEPRECATED, *known_warnings.UNCLOSED]


def test_a_feature_store_does_not_tell_its_online_store():
    public = {name for name in dir(feast.FeatureStore) if not name.startswith("_")}
    assert not public & {"online_store", "get_online_store"}, f"use it in place of {upstream.online_store}"


def test_an_online_store_does_not_tell_its_connection_or_the_events_alone():
    public = {name for name in dir(online_store.OnlineStore) if not name.startswith("_")}
    assert not public & {"connection", "get_connection", "connect", "get_conn", "read_timestamps"}, (
        f"use it in place of {upstream.sqlite_connection} and {upstream.postgres_connection}"
    )


def test_a_sqlite_store_cannot_be_closed():
    own = {name for name in vars(sqlite.SqliteOnlineStore) if not name.startswith("_")}
    assert not own & {"close", "close_connection", "disconnect"}, f"use it in place of {upstream.close_sqlite}"


def test_the_offline_store_of_postgres_does_not_tell_how_it_connects():
    own = {
        name
        for name, value in vars(connection_utils).items()
        if inspect.isfunction(value) and value.__module__ == connection_utils.__name__
    }
    assert not {name for name in own if not name.startswith("_")} & {"get_conn", "get_connection", "connect"}, (
        f"use it in place of {upstream.offline_postgres_connection}"
    )
    assert "_get_conn" in own
