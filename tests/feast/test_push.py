"""Pushed features: the newest event of a key is served, whatever pushes or materializes after it."""

import os
import random
import sqlite3
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dagster_mlops.errors import FeatureError
from dagster_mlops.feast import FeastResource, PushTarget, push, push_asset, write_to_view
from dagster_mlops.feast.offline.source import Window
from dagster_mlops.feast.online.materialization import alone, materialize
from dagster_mlops.feast.online.serving import newer_events_kept
from dagster_mlops.feast.tool import FeastTool
from dagster_mlops.provenance import Accessible, Dataset, FeatureView, records_in
from tests.support import known_warnings
from tests.support.feast_pushes import push_file
from tests.support.feast_servers import postgres_socket, redis_address  # noqa: F401 - fixtures
from tests.support.warm_python import processes

pytestmark = [pytest.mark.usefixtures("warm_tools"), *known_warnings.DEPRECATED, *known_warnings.UNCLOSED]

KILLS = int(os.environ.get("DAGSTER_MLOPS_KILLS", "2"))
START = datetime(2024, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
SETTINGS = """
project: shop
provider: local
registry: {{registry_type: sql, path: "sqlite:///{root}/registry.db", cache_ttl_seconds: 0}}
online_store: {online}
offline_store: {{type: dagster_mlops.feast.offline_store.AsofOfflineStore}}
entity_key_serialization_version: 3
"""
DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, ValueType
from feast.data_format import ParquetFormat
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Array, Float64, Int64, String, UnixTimestamp

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
stored = FileSource(name="visits", path={path!r}, file_format=ParquetFormat(), timestamp_field="event_timestamp")
pushed = PushSource(name="visits_push", batch_source=stored)
visits = FeatureView(
    name="visits", entities=[user], ttl=timedelta(days=2), source=pushed,
    schema=[Field(name="amount", dtype=Float64), Field(name="pages", dtype=Int64),
            Field(name="browser", dtype=String), Field(name="tags", dtype=Array(String))],
)
pages = FeatureView(
    name="pages", entities=[user], ttl=timedelta(days=2), source=pushed, schema=[Field(name="pages", dtype=Int64)],
)
plain = FeatureView(name="plain", entities=[user], source=stored, schema=[Field(name="amount", dtype=Float64)])
usage = FeatureService(name="usage", features=[visits])

@on_demand_feature_view(
    sources=[plain], schema=[Field(name="twice", dtype=Float64)], mode="python", write_to_online_store=True
)
def doubled(inputs):
    return {{"twice": [2 * amount for amount in inputs["amount"]]}}
"""


def events(rows: list[tuple[int, float, float]]) -> pd.DataFrame:
    """A frame of events (user, days since START, amount)."""
    user, days, amount = zip(*rows, strict=True)
    frame = pd.DataFrame({"user_id": user, "amount": amount})
    frame["event_timestamp"] = pd.to_datetime([START + DAY * day for day in days]).as_unit("us")
    return frame.assign(
        pages=[int(value) for value in amount], browser="firefox", tags=[[str(value)] for value in amount]
    )


class Shop:
    """A Feast repository whose two views are pushed to, on an online store of the given kind."""

    def __init__(self, root: Path, online: str = ""):
        self.folder, self.repo = root / "visits", root / "repo"
        self.folder.mkdir()
        self.repo.mkdir()
        online = online or f"{{type: sqlite, path: {root}/online.db}}"
        (self.repo / "feature_store.yaml").write_text(SETTINGS.format(root=root, online=online))
        (self.repo / "features.py").write_text(DEFINITIONS.format(path=str(self.folder)))
        events([(9, 0.0, 9.0)]).to_parquet(self.folder / "first.parquet", index=False)
        self.feast = FeastResource(repo=str(self.repo))
        self.feast.apply()

    def amounts(self, *users: int) -> list[float | None]:
        frame = self.feast.online_features(pd.DataFrame({"user_id": users}), "usage")
        return [None if pd.isna(value) else value for value in frame["amount"]]


@pytest.fixture(scope="module")
def applied(tmp_path_factory):
    return Shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture
def shop(applied):
    """The applied shop with nothing online and one row offline, as it was: an apply takes seconds."""
    for file in applied.folder.glob("*.parquet"):
        file.unlink()
    events([(9, 0.0, 9.0)]).to_parquet(applied.folder / "first.parquet", index=False)
    _nothing_online(applied)
    return applied


def _nothing_online(shop: Shop) -> None:
    with sqlite3.connect(shop.folder.parent / "online.db") as db:
        for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            db.execute(f'DELETE FROM "{table}"')
    db.close()


@pytest.fixture(params=["sqlite", "redis", "postgres"])
def any_shop(request, tmp_path):
    if request.param == "sqlite":
        return request.getfixturevalue("shop")
    if request.param == "redis":
        return Shop(tmp_path, f"{{type: redis, connection_string: '{request.getfixturevalue('redis_address')}'}}")
    socket = request.getfixturevalue("postgres_socket")
    account = "database: postgres, user: postgres, password: x, sslmode: disable"
    return Shop(tmp_path, f"{{type: postgres, host: {socket}, {account}}}")


def test_neither_a_push_nor_a_materialization_puts_an_older_event_over_a_newer_one(any_shop):
    shop = any_shop
    store = shop.feast.store()
    with alone(store, shop.repo, "visits", 60), newer_events_kept(store) as written:
        store.push("visits_push", events([(1, 3, 30.0), (1, 2, 20.0), (2, 3, 31.0)]))
        assert (written.keys, written.kept_newer) == (4, 0)  # two keys in each of two views
        store.push("visits_push", events([(1, 1, 10.0), (2, 4, 40.0), (3, 1, 11.0)]))
        assert (written.keys, written.kept_newer) == (8, 2)
    assert shop.amounts(1, 2, 3) == [30.0, 40.0, 11.0]

    events([(1, 2.5, 25.0), (2, 4, 44.0), (4, 1, 12.0)]).to_parquet(shop.folder / "later.parquet", index=False)
    with newer_events_kept(store) as written:
        store.materialize(START, START + 5 * DAY, feature_views=["visits"])
    assert written.kept_newer == 1
    assert shop.amounts(1, 2, 4) == [30.0, 44.0, 12.0]  # of equal moments the last to come
    if "redis" not in (shop.repo / "feature_store.yaml").read_text():
        store.push("visits_push", events([(1, 1, 10.0)]))
        assert shop.amounts(1) == [10.0], "what Feast does by itself"


def test_moments_compare_in_a_database_whose_time_zone_is_not_utc(any_shop, monkeypatch):
    monkeypatch.setenv("PGTZ", "America/New_York")  # what libpq asks for; Feast writes UTC without saying so
    shop = any_shop
    store = shop.feast.store()
    for day, amount, kept in ((1, 10.0, 0), (1.1, 11.0, 0), (1.05, 12.0, 2)):  # in each of two views
        with alone(store, shop.repo, "visits", 60), newer_events_kept(store) as written:
            store.push("visits_push", events([(77, day, amount)]))
        assert written.kept_newer == kept
    assert shop.amounts(77) == [11.0]


@settings(
    max_examples=int(os.environ.get("DAGSTER_MLOPS_EXAMPLES", "4")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_order_of_pushes_and_loads_ends_with_the_newest_event_of_each_key(data, shop):
    days = data.draw(st.lists(st.integers(1, 40), min_size=2, max_size=10, unique=True))
    known = [(data.draw(st.integers(1, 2)), day / 4, float(day)) for day in days]
    cut = data.draw(st.integers(1, len(known)))
    events(known[:cut]).to_parquet(shop.folder / "first.parquet", index=False)
    _nothing_online(shop)
    newest: dict[int, tuple[float, float]] = {}
    for step in data.draw(st.lists(st.sampled_from(["push", "load"]), min_size=2, max_size=5)):
        if step == "push":
            came = data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=4))
            push(shop.feast.store(), shop.repo, "visits_push", pa.Table.from_pandas(events(came)), batch_size=2)
        else:
            first = data.draw(st.integers(0, 8))
            window = Window(START + first * DAY, START + (first + data.draw(st.integers(1, 6))) * DAY)
            came = [event for event in known[:cut] if window.start <= START + event[1] * DAY < window.end]
            store = shop.feast.store()
            with alone(store, shop.repo, "visits", 60):
                materialize(store, "visits", window)
        for user, day, amount in came:
            newest[user] = max(newest.get(user, (0.0, 0.0)), (day, amount))
    assert shop.amounts(1, 2) == [newest[user][1] if user in newest else None for user in (1, 2)]


# --- push_asset


def _push(shop: Shop, frame, *, to: PushTarget = "online", **options):
    @dg.asset(io_manager_key="memory")
    def recent():
        stored = Dataset(path="recent.parquet", md5="0123456789abcdef", repo="/data", dagster_asset="recent")
        return dg.Output(frame, metadata=stored.to_metadata())

    given: dict[str, Any] = {"push_source": "visits_push", **options}
    asset = push_asset(name="visits_now", rows=recent.key, to=to, **given)
    return dg.materialize(
        [recent, asset],
        resources={"feast": shop.feast, "memory": dg.InMemoryIOManager()},
    )


def _metadata(result) -> dict:
    [made] = [e for e in result.get_asset_materialization_events() if e.asset_key.path == ["visits_now"]]
    return made.materialization.metadata


@pytest.mark.parametrize("kind", ["pandas", "arrow", "polars"])
def test_a_frame_of_any_kind_is_pushed_to_every_view_of_its_source_and_recorded(shop, kind):
    frame = events([(1, 1, 10.0), (2, 2, 20.0), (1, 3, 30.0)])
    given = {
        "pandas": lambda: frame,
        "arrow": lambda: pa.Table.from_pandas(frame),
        "polars": lambda: pl.from_pandas(frame),
    }[kind]()
    metadata = _metadata(_push(shop, given, batch_size=2))
    assert shop.amounts(1, 2) == [30.0, 20.0]
    assert shop.feast.store().get_online_features(["pages:pages"], [{"user_id": 1}]).to_dict()["pages"] == [30]
    assert metadata["dagster/row_count"].value == 3 and metadata["feast/kept_newer"].value == 0
    assert metadata["feast/last_event"].value == (START + 3 * DAY).timestamp()
    records = {record.name: record for record in records_in(metadata) if isinstance(record, FeatureView)}
    assert set(records) == {"pages", "visits"} and records["visits"].rows == 3
    assert [str(ref) for ref in records["visits"].upstream] == ["dvc:dataset:recent.parquet@0123456789abcdef"]
    assert FeastTool().resolve(records["visits"].ref) == Accessible(records["visits"])


def test_rows_are_written_to_one_view_that_has_no_push_source(shop):
    frame = events([(1, 1, 10.0), (2, 2, 20.0)])
    wanted = {"push_source": None, "feature_view": "plain"}
    metadata = _metadata(_push(shop, frame, to="online_and_offline", **wanted))
    assert metadata["feast/views"].value == ["plain"] and metadata["feast/offline_writes"].value == 2
    assert "feast/push_source" not in metadata
    [record] = [record for record in records_in(metadata) if isinstance(record, FeatureView)]
    assert record.name == "plain" and FeastTool().resolve(record.ref) == Accessible(record)
    older = events([(1, 0.5, 5.0), (2, 3, 30.0)])
    assert _metadata(_push(shop, older, **wanted))["feast/kept_newer"].value == 1
    rows = [{"user_id": 1}, {"user_id": 2}]
    assert shop.feast.store().get_online_features(["plain:amount"], rows).to_dict()["amount"] == [10.0, 30.0]
    assert shop.amounts(1, 2) == [None, None], "no other view got them"
    with pytest.raises(FeatureError, match=r"no feature view 'nothing'"):
        write_to_view(shop.feast.store(), shop.repo, "nothing", pa.Table.from_pandas(frame))
    with pytest.raises(FeatureError, match=r"'doubled' has no source of its own"):
        write_to_view(shop.feast.store(), shop.repo, "doubled", pa.Table.from_pandas(frame))
    for view in (None, "plain"):
        with pytest.raises(FeatureError, match="needs either push_source=… or feature_view=…"):
            push_asset(name="x", rows=dg.AssetKey("y"), push_source=view and "visits_push", feature_view=view)


def test_a_repeated_push_changes_nothing_and_adds_no_row_offline_twice(shop):
    frame = events([(1, 1, 10.0), (2, 2, 20.0)])
    first = _metadata(_push(shop, frame, to="online_and_offline"))
    assert first["feast/offline_writes"].value == 2, "two views share the source, and the rows are there once"
    again = _metadata(_push(shop, frame, to="online_and_offline"))
    assert again["feast/offline_writes"].value == 0
    more = events([(1, 1, 10.0), (2, 2, 21.0), (3, 0.5, 5.0)])
    assert _metadata(_push(shop, more, to="offline"))["feast/offline_writes"].value == 2
    stored = pd.read_parquet(shop.folder)
    assert sorted(stored["amount"]) == [5.0, 9.0, 10.0, 20.0, 21.0]
    assert shop.amounts(1, 2, 3) == [10.0, 20.0, None], "offline alone is not online"


def test_rows_that_do_not_fit_the_views_are_refused_before_any_is_written(shop):
    good = events([(1, 1, 10.0), (2, 2, 20.0)])
    wrong = {
        r"columns browser are missing": good.drop(columns="browser"),
        r"'pages' is (large_)?string and must be int64": good.assign(pages=["1", "2"]),
        r"'amount' is bool and must be double": good.assign(amount=[True, False]),
        r"'pages' is double and must be int64 .*truncated": good.assign(pages=[1.5, 2.0]),
        r"'event_timestamp' is int64 and must be timestamp": good.assign(event_timestamp=[1, 2]),
        r"'user_id' is missing in 1 rows": good.assign(user_id=[1, None]),
        r"'event_timestamp' is missing in 1 rows": good.assign(event_timestamp=[good["event_timestamp"][0], pd.NaT]),
        r"all values of pages are missing": good.assign(pages=pd.array([None, None], dtype="Int64")),
    }
    for problem, frame in wrong.items():
        with pytest.raises(FeatureError, match=problem):
            _push(shop, frame)
    with pytest.raises(FeatureError, match="has exactly the columns"):
        _push(shop, good.assign(extra=1), to="online_and_offline")
    assert shop.amounts(1, 2) == [None, None] and len(pd.read_parquet(shop.folder)) == 1
    with pytest.raises(FeatureError, match=r"push source 'nobody'.*\(push sources in use: visits_push\)"):
        push(shop.feast.store(), shop.repo, "nobody", pa.Table.from_pandas(good))
    with pytest.raises(FeatureError, match="is not one of"):
        push_asset(name="x", push_source="visits_push", rows=dg.AssetKey("y"), to="everywhere")  # pyright: ignore[reportArgumentType]


def test_missing_values_and_times_without_a_zone_are_pushed_as_they_are_meant(shop):
    frame = events([(1, 1, 10.0), (2, 2, 20.0)]).assign(pages=[None, 7], browser=[None, "opera"])
    frame["event_timestamp"] = frame["event_timestamp"].dt.tz_localize(None).astype("datetime64[ns]")
    _push(shop, frame)
    served = shop.feast.online_features(pd.DataFrame({"user_id": [1, 2]}), "usage", at=START + 2 * DAY)
    assert served["pages"].tolist()[1] == 7.0 and pd.isna(served["pages"][0]) and served["browser"][0] is None
    assert _metadata(_push(shop, frame.head(0)))["feast/online_writes"].value == 0


def test_a_killed_push_loses_nothing_and_a_repeated_one_ends_as_if_nothing_had_happened(shop, tmp_path):
    users, took = range(300), 2.0
    for attempt in range(KILLS + 1):
        frame = events([(user, 1.0 + attempt, 1000.0 * (attempt + 1) + user) for user in users])
        frame.to_parquet(tmp_path / "rows.parquet", index=False)
        process = processes.Process(target=push_file, args=(shop.repo, tmp_path / "rows.parquet"))
        begun = time.monotonic()
        process.start()
        if attempt:  # the first one says how long a whole push takes
            time.sleep(random.uniform(0, took))
            process.kill()
        process.join(120)
        took = took if attempt else time.monotonic() - begun
        old, new = 1000.0 * attempt, 1000.0 * (attempt + 1)
        values = shop.amounts(*users)
        assert all(value in (old + user, new + user) for user, value in zip(users, values, strict=True)), attempt
        push(shop.feast.store(), shop.repo, "visits_push", pa.Table.from_pandas(frame), to="online_and_offline")
        assert shop.amounts(*users) == [new + user for user in users]
        stored = pd.read_parquet(shop.folder)
        assert len(stored) == 1 + 300 * (attempt + 1) and not stored.duplicated(["user_id", "event_timestamp"]).any()
