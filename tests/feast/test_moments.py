"""The moments of what is online: what is quickly known of them is what a look at each key says."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from feast import Entity, FeatureStore, FeatureView, Field, RepoConfig, ValueType
from feast.infra.offline_stores.file_source import FileSource
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Float64, String
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dagster_mlops.core.timestamps import utc
from dagster_mlops.feast.online.stores import none_is_newer, stored_event_times
from tests.support import known_warnings

pytestmark = [*known_warnings.DEPRECATED, *known_warnings.UNCLOSED]

# Around the hours in which New York's clocks change, a fraction of a second apart, and before 1970.
BASES = [datetime(2024, 3, 10, 2, 15), datetime(2024, 11, 3, 1, 15), datetime(1969, 12, 31, 23, 59, 59)]
MOMENTS = st.builds(
    lambda base, minutes, micros, zone: (base + timedelta(minutes=minutes, microseconds=micros)).replace(tzinfo=zone),
    st.sampled_from(BASES),
    st.sampled_from([0, 0, 15, 60, 75, 1440]),
    st.sampled_from([0, 0, 1, 999_999, 1_000_000, 2_500_000]),
    st.sampled_from([None, UTC, ZoneInfo("Asia/Kathmandu")]),
)
EVENTS = st.lists(st.tuples(st.integers(0, 4), MOMENTS), max_size=6)


@pytest.fixture(params=[pytest.param("UTC", marks=pytest.mark.thorough), "America/New_York"])
def zone(request, monkeypatch):
    """The time zone of the machine, by which Feast's SQLite store counts its seconds."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


@pytest.fixture(params=[False, True], ids=["plain", "versioned"])
def store(request, tmp_path):
    config: Any = {
        "registry": {"path": str(tmp_path / "registry.db"), "enable_online_feature_view_versioning": request.param},
        "online_store": {"type": "sqlite", "path": str(tmp_path / "online.db")},
    }
    store = FeatureStore(config=RepoConfig(project="p", provider="local", entity_key_serialization_version=3, **config))
    user = Entity(name="user", join_keys=["user"], value_type=ValueType.INT64)
    source = FileSource(name="visits", path=str(tmp_path), timestamp_field="at")
    schema = [Field(name="amount", dtype=Float64), Field(name="browser", dtype=String)]
    view = FeatureView(name="visits", entities=[user], schema=schema, source=source)
    store._get_provider().online_store.update(store.config, [], [view], [], [], partial=True)
    return store, view


def _row(user: int, moment: datetime) -> Any:
    key = EntityKey(join_keys=["user"], entity_values=[Value(int64_val=user)])
    return key, {"amount": Value(double_val=1.0), "browser": Value(string_val="b")}, moment, None


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stored=EVENTS, given=EVENTS.filter(bool))
def test_when_it_is_quickly_known_that_nothing_newer_is_stored_each_key_says_so(zone, store, stored, given):
    feast, view = store
    online: Any = feast._get_provider().online_store
    table = online._get_conn(feast.config).execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchone()[0]
    with online._get_conn(feast.config) as connection:
        connection.execute(f'DELETE FROM "{table}"')
    assert none_is_newer(online, feast.config, view, utc(given[0][1]), len(given)), "the table is empty"
    online.online_write_batch(feast.config, view, [_row(*event) for event in stored], None)

    first = min(utc(moment) for _, moment in given)
    found = stored_event_times(online, feast.config, view, (_row(*event)[0] for event in given))
    every = stored_event_times(online, feast.config, view, (_row(user, first)[0] for user in range(5)))
    quick = none_is_newer(online, feast.config, view, first, len(given))
    if quick:
        assert all(there is None or there <= utc(moment) for (_, moment), there in zip(given, found, strict=True))
    # And it is known whenever it is so: what is stored is small.
    assert quick == all(there is None or there <= first for there in every)
    if zone == "UTC":
        last = {user: moment for user, moment in stored}
        whole = [utc(last[user]).replace(microsecond=0) if user in last else None for user, _ in given]
        before_1970 = [m is not None and m.year < 1970 for m in whole]  # cut off towards 1970, not downwards
        assert all(a == b for a, b, old in zip(found, whole, before_1970, strict=True) if not old)


def test_a_large_table_is_looked_up_key_by_key(store):
    feast, view = store
    online: Any = feast._get_provider().online_store
    moment = datetime(2024, 1, 1, tzinfo=UTC)
    online.online_write_batch(feast.config, view, [_row(user, moment) for user in range(30)], None)
    assert none_is_newer(online, feast.config, view, moment, 30)
    assert not none_is_newer(online, feast.config, view, moment, 1), "a look at one key costs less"
    assert not none_is_newer(online, feast.config, view, moment - timedelta(seconds=1), 30)
