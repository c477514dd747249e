"""An online store that is gone, down, full or read-only: said with its remedy, and right again with the next run."""

import gc
import os
import re
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import psycopg
import pytest
import redis
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64

from dagster_mlops.errors import FeatureError
from dagster_mlops.feast import FeastResource
from dagster_mlops.feast.online.materialization import alone, make_missing_tables, materialize, materialized_windows
from dagster_mlops.feast.repository.registry import feature_view
from tests.support import known_warnings
from tests.support.feast_loads import START, days
from tests.support.feast_servers import control, postgres, redis_process  # noqa: F401 - a fixture

pytestmark = [pytest.mark.usefixtures("warm_tools"), *known_warnings.DEPRECATED, *known_warnings.UNCLOSED]

SETTINGS = """
project: shop
provider: local
registry: {{registry_type: sql, path: "sqlite:///{root}/registry.db", cache_ttl_seconds: 0}}
online_store: {online}
offline_store: {{type: dagster_mlops.feast.offline_store.AsofOfflineStore}}
entity_key_serialization_version: 3
"""
ON_POSTGRES = (
    "{{type: postgres, host: 127.0.0.1, port: {port}, database: postgres, db_schema: public, user: postgres, "
    "password: secret, sslmode: disable}}"
)


class Shop:
    """A repository of one view with an event of each user a day; its registry is applied to here, which is quick."""

    def __init__(self, root: Path, online: str, users: int = 3):
        self.root, self.users = root, users
        (root / "feature_store.yaml").write_text(SETTINGS.format(root=root, online=online))
        events = [(user, START + timedelta(days=day), 10.0 * day + user) for day in (0, 1, 2) for user in range(users)]
        frame = pd.DataFrame(events, columns=pd.Index(["user", "event_timestamp", "amount"]))
        frame["event_timestamp"] = frame["event_timestamp"].astype("datetime64[us, UTC]")
        frame.to_parquet(root / "visits.parquet", index=False)
        user = Entity(name="user", join_keys=["user"], value_type=ValueType.INT64)
        source = FileSource(name="visits", path=str(root / "visits.parquet"), timestamp_field="event_timestamp")
        schema = [Field(name="amount", dtype=Float64)]
        visits = FeatureView(name="visits", entities=[user], ttl=timedelta(0), schema=schema, source=source)
        self.feast = FeastResource(repo=str(root))
        self.feast.store().apply([user, source, visits, FeatureService(name="usage", features=[visits])])

    def load(self, first: float, last: float) -> None:
        store = self.feast.store()
        with alone(store, self.root, "visits", 60):
            materialize(store, "visits", days(first, last))

    def amounts(self, *users: int) -> list[float | None]:
        frame = self.feast.online_features(pd.DataFrame({"user": users or range(self.users)}), "usage")
        return [None if pd.isna(value) else value for value in frame["amount"]]

    def loaded(self) -> list[Any]:
        return materialized_windows(feature_view(self.feast.store(), "visits"))


def _refused(act: Callable[[], Any], message: str, *, seconds: float = 30) -> str:
    begun = time.monotonic()
    with pytest.raises(FeatureError, match=message) as refusal:
        act()
    assert time.monotonic() - begun < seconds and "secret" not in str(refusal.value)
    return str(refusal.value)


# --- the table is missing


@pytest.fixture(params=["deleted file", "dropped table", "postgres"])
def robbed(request, tmp_path):
    """A shop, and what takes its online table away."""
    if request.param == "postgres":
        port = request.getfixturevalue("postgres")[1]

        def drop():
            with psycopg.connect(f"host=127.0.0.1 port={port} user=postgres dbname=postgres") as db:
                db.execute("DROP TABLE shop_visits")

        yield Shop(tmp_path, ON_POSTGRES.format(port=port)), drop
        drop()  # nothing of it for another test
        return

    def rob():
        if request.param == "deleted file":
            return (tmp_path / "online.db").unlink()
        with sqlite3.connect(tmp_path / "online.db") as db:
            db.execute("DROP TABLE shop_visits")
        db.close()

    yield Shop(tmp_path, f"{{type: sqlite, path: {tmp_path}/online.db}}"), rob


def test_a_table_that_is_gone_is_named_and_the_next_load_of_any_window_brings_all_back_that_was_loaded(robbed):
    shop, rob = robbed
    shop.load(0, 1)
    shop.load(2, 3)
    rob()
    message = _refused(
        shop.amounts, r"reading feature views visits failed in the online store \w+ \(.*the table is missing"
    )
    assert "Materialize the view's asset" in message
    shop.load(1, 2)
    assert shop.amounts() == [20.0, 21.0, 22.0] and shop.loaded() == [days(0, 3)]
    # An apply makes the table alone, and who is killed then leaves word of what is still to be loaded.
    rob()
    make_missing_tables(shop.feast.store())
    assert shop.amounts() == [None] * 3
    (shop.root / "visits.parquet").rename(shop.root / "away")
    with pytest.raises(Exception, match="visits"):
        shop.load(0, 1)
    (shop.root / "away").rename(shop.root / "visits.parquet")
    shop.load(0, 1)
    assert shop.amounts() == [20.0, 21.0, 22.0]


# --- the server is gone


KILLS = min(int(os.environ.get("DAGSTER_MLOPS_KILLS", "1")), 3)  # one for each day of the shop
MANY = 20_000  # keys, so that a load takes a while


def _while(happening: Callable[[], bool], act: Callable[[], Any]) -> threading.Thread:
    """Act in a thread as soon as something happens."""

    def wait_and_act():
        until = time.monotonic() + 60
        while time.monotonic() < until and not happening():
            time.sleep(0.001)
        act()

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    return thread


def _cut_short(load: Callable[[], Any], message: str) -> bool:
    """Whether a load was refused, for that reason; of itself it may be quicker than whoever stops its server."""
    try:
        load()
    except FeatureError as error:
        assert re.search(message, str(error)), error
        return True
    return False


@pytest.mark.thorough
def test_a_redis_that_is_killed_during_a_load_moves_no_watermark_and_the_next_run_is_right(tmp_path, free_port):
    port, kills = free_port(), 0
    server = redis_process(tmp_path, port)
    client = redis.Redis(port=port)
    try:
        for attempt in range(KILLS + 5):
            (tmp_path / str(attempt)).mkdir()
            shop = Shop(tmp_path / str(attempt), f"{{type: redis, connection_string: '127.0.0.1:{port}'}}", users=MANY)
            shop.load(0, 1)
            client.flushall()
            killer = _while(lambda: bool(client.dbsize()), server.kill)
            # It has tried to connect again, as it does where the server was down to begin with.
            killed = _cut_short(lambda shop=shop: shop.load(1, 2), "redis.ConnectionError.*refused.*start it")
            killer.join()
            server.wait(10)
            server = redis_process(tmp_path, port)
            if killed:
                assert shop.loaded() == [days(0, 1)]
                shop.load(1, 2)
                assert shop.loaded() == [days(0, 2)]
                assert shop.amounts() == [10.0 + user for user in range(MANY)]
                client.flushall()
                kills += 1
            if kills == KILLS:
                return
        raise AssertionError(f"{kills} loads were cut short")
    finally:
        client.close()
        server.kill()
        server.wait(10)


@pytest.mark.skipif(KILLS == 1, reason="waits for 10 s; set DAGSTER_MLOPS_KILLS to 2 or 3")
def test_a_redis_that_hangs_ends_a_load_in_bounded_time(tmp_path, free_port):
    port = free_port()
    shop = Shop(tmp_path, f"{{type: redis, connection_string: '127.0.0.1:{port},socket_timeout=1'}}")
    server = redis_process(tmp_path, port)
    try:
        server.send_signal(signal.SIGSTOP)
        _refused(lambda: shop.load(0, 1), "redis.TimeoutError.*start it, or correct its address.*unfinished writes")
        server.send_signal(signal.SIGCONT)
        shop.load(0, 1)
        assert shop.amounts() == [0.0, 1.0, 2.0]
    finally:
        server.kill()
        server.wait(10)


def test_a_redis_client_gives_up_on_a_server_that_hangs_unless_a_user_says_when(tmp_path):
    for given, set_ in (("r:1", "socket_timeout=60"), ("r:1,socket_timeout=5", "socket_timeout=5")):
        config = SETTINGS.format(root=tmp_path, online=f"{{type: redis, connection_string: '{given}'}}")
        (tmp_path / "feature_store.yaml").write_text(config)
        settings: Any = FeastResource(repo=str(tmp_path)).store().config.online_store
        assert set_ in settings.connection_string


@pytest.mark.thorough  # Redis has the same, above
def test_a_postgres_that_is_down_or_stops_during_a_load_moves_no_watermark_and_the_next_run_is_right(
    tmp_path,
    postgres,  # noqa: F811
):
    server, port = postgres
    writing = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'INSERT INTO \"shop_visits%'"
    for attempt in range(5):
        (tmp_path / str(attempt)).mkdir()
        shop = Shop(tmp_path / str(attempt), ON_POSTGRES.format(port=port), users=MANY)
        shop.load(0, 1)
        with psycopg.connect(f"host=127.0.0.1 port={port} user=postgres dbname=postgres", autocommit=True) as db:
            stopper = _while(
                lambda db=db: db.execute(writing).fetchone() != (0,), lambda: control(server, "stop", port)
            )
            stopped = _cut_short(lambda shop=shop: shop.load(1, 2), "writing feature views visits failed.*psycopg")
            stopper.join()
        if stopped:
            break
        control(server, "start", port)
    else:
        raise AssertionError("no load was cut short")
    try:
        _refused(lambda: shop.load(1, 2), "postgres .*refused.*start it, or correct its address")
        _refused(lambda: shop.amounts(1), "reading feature views visits.*refused")
    finally:
        control(server, "start", port)
    assert shop.loaded() == [days(0, 1)] and shop.amounts() == [float(user) for user in range(MANY)]
    shop.load(1, 2)
    assert shop.amounts() == [10.0 + user for user in range(MANY)]


# --- the disk


@pytest.fixture
def small_disk(tmp_path):
    """An empty file system of 1 MB."""
    place = _made(tmp_path / "small")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting is not permitted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_full_disk_and_a_read_only_one_lose_nothing_and_the_next_run_finishes(tmp_path, small_disk):
    shop = Shop(tmp_path, f"{{type: sqlite, path: {small_disk}/online.db}}", users=500)
    shop.load(0, 1)
    with pytest.raises(OSError, match="No space"), (small_disk / "filler").open("wb") as filler:
        while True:
            filler.write(b"x" * 4096)
            filler.flush()
    _refused(lambda: shop.load(1, 2), "writing feature views visits failed.*there is no space left.*unfinished")
    assert shop.loaded() == [days(0, 1)] and shop.amounts() == [float(user) for user in range(500)]
    (small_disk / "filler").unlink()
    gc.collect()  # Feast's own connections, which may write
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    _refused(lambda: shop.load(1, 2), "readonly database; this process may not write there")
    assert shop.amounts() == [float(user) for user in range(500)]
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    shop.load(1, 2)
    assert shop.amounts() == [10.0 + user for user in range(500)] and shop.loaded() == [days(0, 2)]


def test_a_damaged_file_is_named_and_once_deleted_all_is_loaded_again(tmp_path):
    shop = Shop(tmp_path, f"{{type: sqlite, path: {tmp_path}/online.db}}")
    shop.load(0, 2)
    (tmp_path / "online.db").write_bytes(b"damaged" * 1000)
    _refused(shop.amounts, "the file is damaged: delete it")
    _refused(lambda: shop.load(2, 3), "the file is damaged: delete it")
    (tmp_path / "online.db").unlink()
    shop.load(0, 1)
    assert shop.amounts() == [10.0, 11.0, 12.0]
