"""Materialization and online reads on every store that can run here: SQLite, Redis and Postgres, each a real server."""

import gc
import os
import random
import signal
import time
import uuid
import warnings
from datetime import UTC, datetime, timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dagster_mlops.errors import FeatureError
from dagster_mlops.feast import FeastResource, feature_view_assets
from dagster_mlops.feast.offline.source import Window, describe_windows
from dagster_mlops.feast.online.materialization import alone, materialized_windows
from dagster_mlops.feast.repository.registry import feature_view
from tests.support import known_warnings
from tests.support.feast_loads import START, apply, days, load
from tests.support.feast_servers import postgres_socket, redis_address  # noqa: F401 - fixtures
from tests.support.warm_python import processes

pytestmark = [pytest.mark.usefixtures("warm_tools"), *known_warnings.DEPRECATED, *known_warnings.UNCLOSED]

KILLS = int(os.environ.get("DAGSTER_MLOPS_KILLS", "2"))
STORES = ("sqlite", "redis", "postgres")
DAY = timedelta(days=1)
# Repeated by another test, or by another store that differs in nothing that the test looks at.
NO_REDIS = pytest.mark.parametrize(
    "shop", ["sqlite", pytest.param("redis", marks=pytest.mark.thorough), "postgres"], indirect=True
)
DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.data_format import ParquetFormat
from feast.types import Float64, Int64, String

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
visits = FeatureView(
    name="visits", entities=[user], ttl=timedelta(days=2),
    source=FileSource(name="visits", path={path!r}, file_format=ParquetFormat(), timestamp_field="event_timestamp"),
    schema=[Field(name=name, dtype=dtype) for name, dtype in
            [("zeal", Float64), ("amount", Float64), ("pages", Int64), ("browser", String)]],
)
usage = FeatureService(name="usage", features=[visits[["pages", "zeal", "browser", "amount"]]])
"""


@pytest.fixture(autouse=True)
def _connections_end(request):
    """Feast closes no connection, and Postgres has a hundred: they go with the garbage."""
    yield
    if "postgres" in request.node.name:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


@pytest.fixture(params=STORES)
def shop(request, tmp_path):
    return Shop(tmp_path, request.param, request)


@pytest.fixture
def sqlite_shop(request, tmp_path):
    return Shop(tmp_path, "sqlite", request)


class Shop:
    """A Feast repository with one view, `visits` of a user, on an online store of the given kind."""

    def __init__(self, root: Path, kind: str, request):
        self.kind, self.project = kind, f"p{uuid.uuid4().hex[:8]}"
        self.folder, self.repo = root / f"{self.project}-visits", root / self.project
        self.folder.mkdir()
        self.repo.mkdir()
        registry, online, offline = f"sqlite:///{root}/{self.project}.db", "", "type: duckdb"
        if kind == "sqlite":
            online = f"type: sqlite\n    path: {root}/{self.project}-online.db"
        elif kind == "redis":
            # Each entity's newest event is written once and under our lock, so that no older one has to be kept out.
            online = f"type: redis\n    connection_string: {request.getfixturevalue('redis_address')}"
        else:
            socket = request.getfixturevalue("postgres_socket")
            registry = f"postgresql+psycopg://postgres@/postgres?host={socket}"
            account = "database: postgres\n    user: postgres\n    password: x\n    sslmode: disable"
            online = f"type: postgres\n    host: {socket}\n    {account}"
        (self.repo / "feature_store.yaml").write_text(
            f"project: {self.project}\nprovider: local\nregistry:\n    registry_type: sql\n    path: {registry}\n"
            f"    cache_ttl_seconds: 0\nonline_store:\n    {online}\noffline_store:\n    {offline}\n"
            "entity_key_serialization_version: 3\n"
        )
        (self.repo / "features.py").write_text(DEFINITIONS.format(path=str(self.folder)))
        self.resource = FeastResource(repo=str(self.repo))

    def write(self, name: str, events: list[tuple[int, float, float]]) -> None:
        """A file of events (user, days since START, amount)."""
        user, days, amount = zip(*events, strict=True)
        frame = pd.DataFrame({"user_id": user, "amount": amount})
        frame["event_timestamp"] = pd.to_datetime([START + DAY * d for d in days]).as_unit("us")
        frame = frame.assign(zeal=frame["amount"] / 2, pages=frame["amount"].astype(int), browser="b")
        frame.to_parquet(self.folder / f"{name}.parquet", index=False, coerce_timestamps="us")

    def apply(self) -> None:
        """What `feast apply` does, in a process that need not import Feast first."""
        process = processes.Process(target=apply, args=(self.repo,))
        process.start()
        process.join(120)
        assert process.exitcode == 0

    def load(self, first: float, last: float) -> None:
        load(self.repo, first, last)

    def amounts(self, users: list[int], **options) -> list[float | None]:
        frame = self.resource.online_features(pd.DataFrame({"user_id": users}), "usage", **options)
        assert list(frame) == ["user_id", "pages", "zeal", "browser", "amount"]
        return [None if pd.isna(value) else value for value in frame["amount"]]

    def online_windows(self) -> list[Window]:
        return materialized_windows(feature_view(self.resource.store(), "visits"))


def test_an_older_window_never_overwrites_newer_values(shop):
    shop.write("a", [(1, 0.5, 10.0), (2, 0.5, 20.0), (1, 1.5, 11.0)])
    shop.apply()
    shop.load(1, 2)
    assert shop.amounts([1, 2]) == [11.0, None]
    shop.load(0, 1)
    assert shop.amounts([1, 2, 3]) == [11.0, 20.0, None]
    assert shop.online_windows() == [days(0, 2)]


def test_a_late_row_comes_online_only_if_it_is_the_newest_of_its_entity(shop):
    shop.write("a", [(1, 0.5, 10.0), (1, 1.5, 11.0), (2, 0.2, 20.0)])
    shop.apply()
    shop.load(0, 1)
    shop.load(1, 2)
    shop.write("late", [(1, 0.7, 99.0), (2, 0.9, 21.0)])
    shop.load(0, 1)
    assert shop.amounts([1, 2]) == [11.0, 21.0]


def test_a_corrected_value_of_the_same_moment_comes_online(shop):
    shop.write("a", [(1, 0.5, 10.0)])
    shop.apply()
    shop.load(0, 1)
    shop.write("a", [(1, 0.5, 12.0)])
    shop.load(0, 1)
    assert shop.amounts([1]) == [12.0]


def test_older_events_lose_although_the_newer_ones_lack_a_feature_that_was_added(shop):
    shop.write("a", [(1, 0.5, 10.0), (1, 1.5, 11.0)])
    definitions = (shop.repo / "features.py").read_text()
    (shop.repo / "features.py").write_text(definitions.replace('("zeal", Float64), ', ""))
    (shop.repo / "features.py").write_text((shop.repo / "features.py").read_text().replace('"zeal", ', ""))
    shop.apply()
    shop.load(1, 2)
    (shop.repo / "features.py").write_text(definitions)  # in front of the others
    shop.apply()
    shop.load(0, 1)
    assert shop.amounts([1]) == [11.0]
    shop.load(1, 2)
    assert shop.amounts([1]) == [11.0]


@NO_REDIS
def test_values_that_had_expired_at_a_moment_are_missing_as_they_are_offline(shop):
    shop.write("a", [(1, 0.5, 10.0), (2, 2.0, 20.0)])
    shop.apply()
    shop.load(0, 3)
    assert shop.amounts([1, 2]) == [10.0, 20.0]
    for moment in (2.4, 2.5, 2.6):
        at = START + DAY * moment
        asked = pd.DataFrame({"user_id": [1, 2], "event_timestamp": [at, at]})
        offline = shop.resource.historical_features(asked, "usage")["amount"]
        assert shop.amounts([1, 2], at=at) == [None if pd.isna(value) else value for value in offline]
    with pytest.raises(FeatureError, match="has no time zone"):
        shop.amounts([1], at=datetime(2024, 1, 2))


def _start_load(shop: Shop, first: float, last: float) -> BaseProcess:
    process = processes.Process(target=load, args=(shop.repo, first, last))
    process.start()
    return process


def _same_in_parallel(shop: Shop, events, windows) -> None:
    shop.write("a", events)
    shop.apply()
    loads = [_start_load(shop, first, last) for first, last in windows]
    for process in loads:
        process.join(120)
    assert [process.exitcode for process in loads] == [0] * len(windows)
    covered = [e for e in events if any(first <= e[1] < last for first, last in shopdays(shop))]
    newest = {user: amount for user, _, amount in sorted(covered, key=lambda event: event[1])}
    users = sorted({user for user, _, _ in events})
    assert shop.amounts(users) == [newest.get(user) for user in users]


def shopdays(shop: Shop) -> list[tuple[float, float]]:
    return [((w.start - START) / DAY, (w.end - START) / DAY) for w in shop.online_windows()]


@pytest.mark.parametrize(
    "shop",
    [pytest.param(store, marks=pytest.mark.thorough) for store in ("sqlite", "postgres")] + ["redis"],
    indirect=True,
)
def test_overlapping_backfills_in_parallel_end_as_one_serial_run(shop):
    events = [(n % 7, n * 0.11, float(n)) for n in range(60)]
    windows = [(4, 6), (0, 2), (1, 5), (3, 4)]
    _same_in_parallel(shop, events, windows)
    assert shopdays(shop) == [(0, 6)]


@settings(
    max_examples=int(os.environ.get("DAGSTER_MLOPS_EXAMPLES", "2")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_overlapping_windows_in_any_order_end_as_one_serial_run(data, tmp_path, request):
    moment = st.integers(0, 40).map(lambda n: n / 4)
    moments = data.draw(st.lists(moment, min_size=1, max_size=12, unique=True))
    events = [(data.draw(st.integers(0, 2)), day, float(n)) for n, day in enumerate(moments)]
    spans = st.tuples(moment, moment).filter(lambda s: s[0] < s[1])
    _same_in_parallel(Shop(tmp_path, "sqlite", request), events, data.draw(st.lists(spans, min_size=1, max_size=4)))


@pytest.mark.parametrize(
    "shop",
    ["sqlite", *(pytest.param(store, marks=pytest.mark.thorough) for store in ("redis", "postgres"))],
    indirect=True,
)
def test_a_killed_load_is_not_recorded_and_a_re_run_ends_as_if_nothing_had_happened(shop):
    users = range(200)
    shop.write("a", [(user, 0.5, float(user)) for user in users])
    shop.write("b", [(user, 1.5, 1000.0 + user) for user in users])
    shop.apply()
    shop.load(0, 1)
    begun = time.monotonic()
    process = _start_load(shop, 1, 2)
    process.join(120)
    whole = time.monotonic() - begun
    for attempt in range(KILLS):
        shop.write("b", [(user, 1.5, 1000.0 * (attempt + 2) + user) for user in users])
        process = _start_load(shop, 1, 2)
        time.sleep(random.uniform(0, whole * 1.1))
        if process.pid and process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        values = shop.amounts(list(users))
        # Old or new, each whole: no value is lost or made up, and none is older than before.
        assert all(v in (1000.0 * n + u for n in range(1, attempt + 3)) for u, v in zip(users, values, strict=True))
        shop.load(1, 2)
        assert shop.amounts(list(users)) == [1000.0 * (attempt + 2) + user for user in users]


def test_a_load_that_never_finished_leaves_the_watermark_where_it_was(sqlite_shop):
    shop = sqlite_shop
    shop.write("a", [(1, 0.5, 10.0)])
    shop.apply()
    shop.load(0, 1)
    (shop.folder / "b.parquet").write_bytes(b"no parquet")
    with pytest.raises(Exception, match=r"(?i)parquet|magic|invalid"):
        shop.load(1, 2)
    assert shop.online_windows() == [days(0, 1)]
    shop.write("b", [(1, 1.5, 11.0)])
    shop.load(1, 2)
    assert shop.amounts([1]) == [11.0] and shop.online_windows() == [days(0, 2)]


@NO_REDIS
def test_an_apply_keeps_the_watermark(shop):
    shop.write("a", [(1, 0.5, 10.0)])
    shop.apply()
    shop.load(0, 1)
    assert shop.resource.apply(force=True)
    definitions = (shop.repo / "features.py").read_text()
    (shop.repo / "features.py").write_text(definitions.replace("ttl=timedelta(days=2)", "ttl=timedelta(days=9)"))
    assert shop.resource.apply()
    assert shop.online_windows() == [days(0, 1)] and shop.amounts([1]) == [10.0]


def test_applies_during_loads_lose_neither_values_nor_the_watermark(sqlite_shop):
    shop = sqlite_shop
    shop.write("a", [(day, day + 0.5, float(day)) for day in range(4)])
    shop.apply()
    applies = [processes.Process(target=apply, args=(shop.repo,)) for _ in range(3)]
    loads = [processes.Process(target=load, args=(shop.repo, day, day + 1)) for day in range(4)]
    both = [process for pair in zip(loads, [*applies, None], strict=True) for process in pair if process]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert {process.exitcode for process in both} == {0}
    assert shop.amounts(list(range(4))) == [0.0, 1.0, 2.0, 3.0]
    assert shop.online_windows() == [days(0, 4)]


@NO_REDIS
def test_two_who_load_the_same_view_take_turns_and_one_who_waits_too_long_is_told_why(shop):
    shop.write("a", [(1, 0.5, 10.0)])
    shop.apply()
    store = shop.resource.store()
    # Another machine has another folder for its locks; only a registry in Postgres is common to both.
    elsewhere = shop.repo if shop.kind != "postgres" else shop.repo.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    with alone(store, shop.repo, "visits", 60):
        second = alone(shop.resource.store(), elsewhere, "visits", 0.5)
        with pytest.raises(FeatureError, match=r"held by process|another machine"), second:
            raise AssertionError("two at once")
    with alone(store, elsewhere, "visits", 0.5):
        pass


def test_a_window_is_summed_up_as_pandas_would(sqlite_shop):
    shop = sqlite_shop
    frame = pd.DataFrame({"user_id": [1, 2, 2, 3], "amount": [1.5, None, 4.0, -2.0], "pages": [1, 2, 2, 9]})
    frame["event_timestamp"] = pd.to_datetime([START, START, START + DAY, START + DAY * 2]).as_unit("us")
    frame = frame.assign(zeal=float("nan"), browser=["a", None, "b", "c"])
    frame.to_parquet(shop.folder / "a.parquet", index=False)
    shop.apply()
    store = shop.resource.store()
    view = feature_view(store, "visits")
    first, empty, rest = describe_windows(store, view, [days(0, 1), days(1, 1.5), days(1.5, 3)])
    facts = {fact.feature: fact for fact in first.features}
    assert (first.rows, empty.rows, rest.rows) == (2, 1, 1)
    assert (facts["amount"].null_share, facts["amount"].mean, facts["amount"].std) == (0.5, 1.5, None)
    assert facts["zeal"].null_share == 1.0 and facts["zeal"].mean is None
    assert (facts["pages"].smallest, facts["pages"].largest, facts["pages"].mean) == (1.0, 2.0, 1.5)
    assert (facts["browser"].null_share, facts["browser"].distinct, facts["browser"].mean) == (0.5, 1, None)
    # The hash is that of the rows, not of their files and their order.
    (shop.folder / "a.parquet").unlink()
    for name, part in (("z", frame.iloc[[3, 1]]), ("y", frame.iloc[[2, 0]])):
        part.to_parquet(shop.folder / f"{name}.parquet", index=False)
    again = describe_windows(store, view, [days(0, 1), days(1, 1.5), days(1.5, 3)])
    assert [fact.content_hash for fact in again] == [f.content_hash for f in (first, empty, rest)]
    frame.assign(pages=[1, 2, 2, 8]).to_parquet(shop.folder / "z.parquet", index=False)
    assert describe_windows(store, view, [days(1.5, 3)])[0].content_hash != rest.content_hash


@pytest.mark.parametrize(("day", "hours"), [("2024-03-31", 23), ("2024-10-27", 25)])
def test_a_day_on_which_clocks_change_is_loaded_as_long_as_it_is(sqlite_shop, day, hours):
    shop = sqlite_shop
    days_of_berlin = dg.DailyPartitionsDefinition("2024-01-01", timezone="Europe/Berlin")
    midnight = days_of_berlin.time_window_for_partition_key(day).start.astimezone(UTC).replace(tzinfo=None)
    times = pd.date_range(midnight - timedelta(hours=1), periods=27, freq="h").as_unit("us")  # naive, hence UTC
    frame = pd.DataFrame({"user_id": range(27), "event_timestamp": times, "amount": 1.0, "zeal": 1.0})
    frame.assign(pages=1, browser="b").to_parquet(shop.folder / "a.parquet", index=False)
    [asset] = feature_view_assets(repo=shop.repo, partitions_def=days_of_berlin)
    result = dg.materialize([asset], resources={"feast": shop.resource}, partition_key=day)
    [event] = result.get_asset_materialization_events()
    assert event.materialization.metadata["dagster/row_count"].value == hours
    amounts = shop.amounts(list(range(27)))
    assert [user for user, amount in enumerate(amounts) if amount is not None] == list(range(1, hours + 1))
    [window] = shop.online_windows()
    assert window.end - window.start == timedelta(hours=hours)
