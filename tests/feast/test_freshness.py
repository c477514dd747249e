"""Checks of how old features are, and of the server that serves them, on a real repository and a real server."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from dagster_mlops.feast import FeastResource
from dagster_mlops.feast.checks.online import feature_freshness_checks
from dagster_mlops.feast.checks.server import feature_server_health_check
from dagster_mlops.feast.offline.source import Window
from dagster_mlops.feast.online.materialization import alone, materialize
from tests.support import known_warnings
from tests.support.http_servers import QuietHandler, QuietServer, serving

pytestmark = [pytest.mark.usefixtures("warm_tools"), *known_warnings.DEPRECATED, *known_warnings.UNCLOSED]

HOUR = timedelta(hours=1)
SETTINGS = """
project: shop
provider: local
registry: {{registry_type: sql, path: "sqlite:///{root}/registry.db"}}
online_store: {{type: sqlite, path: "{root}/online.db"}}
offline_store: {{type: dagster_mlops.feast.offline_store.AsofOfflineStore}}
entity_key_serialization_version: 3
"""
DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, ValueType
from feast.types import Float64

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
source = FileSource(name="visits", path="{root}/visits.parquet", timestamp_field="event_timestamp")
schema = [Field(name="amount", dtype=Float64)]
visits = FeatureView(name="visits", entities=[user], ttl=timedelta(hours=2), source=source, schema=schema)
ageless = FeatureView(name="ageless", entities=[user], source=source, schema=schema)
anyone = FeatureView(name="anyone", entities=[], source=source, schema=schema)
unserved = FeatureView(name="unserved", entities=[user], source=source, schema=schema, online=False)
live = FeatureView(
    name="live", entities=[user], source=PushSource(name="live_push", batch_source=source), schema=schema
)
usage = FeatureService(name="usage", features=[visits])
"""


class Shop:
    """A repository whose views read one file of visits, with the events that are given as (user, hours ago)."""

    def __init__(self, root):
        self.root, self.repo = root, root / "repo"
        self.now = datetime.now(UTC).replace(microsecond=0)
        self.repo.mkdir()
        (self.repo / "feature_store.yaml").write_text(SETTINGS.format(root=root))
        (self.repo / "views.py").write_text(DEFINITIONS.format(root=root))
        self.write((1, 5.0))
        self.feast = FeastResource(repo=str(self.repo))
        self.feast.apply()

    def write(self, *events: tuple[int, float]) -> None:
        times = pd.to_datetime([self.now - HOUR * ago for _, ago in events], utc=True).as_unit("us")
        users = pd.Series([user for user, _ in events], dtype="int64")
        frame = pd.DataFrame({"user_id": users, "event_timestamp": times, "amount": 1.0})
        frame.astype({"amount": "float64"}).to_parquet(self.root / "visits.parquet", index=False)

    def load(self, view, ago, until=0.0):
        store = self.feast.store()
        with alone(store, self.repo, view, 60):
            materialize(store, view, Window(self.now - HOUR * ago, self.now - HOUR * until))

    def evaluate(self, view, **options):
        check = feature_freshness_checks(asset=dg.AssetKey(["features", view]), **options)
        return evaluations(check, {"feast": self.feast})


def evaluations(checks, resources=None):
    """What checks say of an asset, by name."""
    defs = dg.Definitions(asset_checks=checks, resources=resources or {})
    job = defs.resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(instance=instance, raise_on_error=False)
    return {found.check_name: found for found in result.get_asset_check_evaluations()}


def number(found, name) -> Any:
    return found.metadata[name].value


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return Shop(tmp_path_factory.mktemp("shop"))


def test_features_are_fresh_as_long_as_their_ttl_or_the_given_lag(shop):
    shop.write((1, 5.0), (2, 1.5))
    verdict = shop.evaluate("visits")["features_fresh"]
    assert verdict.passed and 5400 <= number(verdict, "feast/lag_seconds") < 6000
    assert verdict.metadata["feast/max_lag_seconds"].value == 7200.0
    warned = shop.evaluate("visits", warn_lag=HOUR)["features_fresh"]
    assert not warned.passed and warned.severity == dg.AssetCheckSeverity.WARN
    late = shop.evaluate("visits", max_lag=HOUR, warn_lag=HOUR)["features_fresh"]
    assert not late.passed and late.severity == dg.AssetCheckSeverity.ERROR
    assert "at most 1:00:00 is allowed. Materialize the assets" in (late.description or "")
    shop.write((1, 5.0))
    expired = shop.evaluate("visits")["features_fresh"]
    assert not expired.passed and "its ttl is 2:00:00, so all have expired" in (expired.description or "")
    assert shop.evaluate("ageless")["features_fresh"].passed, "a view without a ttl is only measured"


def test_the_online_store_is_up_to_date_when_it_serves_the_newest_event(shop):
    for view in ("ageless", "anyone"):
        shop.write((1, 5.0), (2, 3.0))
        never = shop.evaluate(view)["online_up_to_date"]
        assert not never.passed and "Rematerialize the partition of that time" in (never.description or "")
        shop.load(view, 6, until=2)
        loaded = shop.evaluate(view)["online_up_to_date"]
        assert loaded.passed and loaded.metadata["feast/staleness_seconds"].value == 0.0
        shop.write((1, 5.0), (2, 3.0), (3, 1.0))
        behind = shop.evaluate(view)["online_up_to_date"]
        assert not behind.passed and behind.metadata["feast/staleness_seconds"].value == pytest.approx(3600, abs=1)
        assert shop.evaluate(view, max_staleness=2 * HOUR)["online_up_to_date"].passed
    assert shop.evaluate("unserved")["online_up_to_date"].passed


def test_a_watermark_beyond_what_was_loaded_does_not_make_the_online_store_up_to_date(shop):
    shop.write((1, 5.0))
    shop.load("visits", 6, until=-20)
    assert shop.evaluate("visits")["online_up_to_date"].passed
    shop.write((1, 5.0), (1, 1.0))
    behind = shop.evaluate("visits")["online_up_to_date"]
    assert not behind.passed and behind.metadata["feast/staleness_seconds"].value == 4 * 3600
    shop.write((1, 5.0), (7, 1.0))
    unknown = shop.evaluate("visits")["online_up_to_date"]
    assert not unknown.passed and "user_id=7" in (unknown.description or "")


def test_a_pushed_event_makes_a_view_up_to_date_that_was_never_materialized(shop):
    shop.write((1, 1.0))
    row = pd.DataFrame({"user_id": [1], "amount": [2.0], "event_timestamp": [shop.now - HOUR]})
    shop.feast.store().push("live_push", row)
    verdict = shop.evaluate("live")["online_up_to_date"]
    assert verdict.passed and verdict.metadata["feast/staleness_seconds"].value == 0.0


def test_a_check_that_cannot_read_its_source_has_failed(shop):
    (shop.root / "visits.parquet").write_bytes(b"no parquet")
    found = shop.evaluate("ageless")
    assert not found["features_fresh"].passed and not found["online_up_to_date"].passed
    assert "cannot read its source" in (found["features_fresh"].description or "")
    shop.write()
    assert "has no events yet" in (shop.evaluate("ageless")["features_fresh"].description or "")
    assert "no feature view 'gone'" in (shop.evaluate("gone")["features_fresh"].description or "")


# --- the server


def health(url, **options):
    options = {"feature_service": "usage", "entities": {"user_id": [1, 2]}, **options}
    check = feature_server_health_check(asset=dg.AssetKey("visits"), url=url, **options)
    return evaluations([check])["feature_server_health"]


@pytest.fixture(scope="module")
def served(shop, free_port):
    port = free_port()
    shop.write((1, 5.0))
    shop.load("visits", 6)
    code = f"from feast.cli.cli import cli; cli(['serve', '-h', '127.0.0.1', '-p', '{port}', '-w', '1'])"
    log = shop.root / "serve.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=shop.repo, stdout=out, stderr=out, start_new_session=True
        )
        try:
            for _ in range(600):
                if health(f"http://127.0.0.1:{port}", timeout=2).metadata.get("feast/health_ms"):
                    break
                assert process.poll() is None, log.read_text()
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def test_a_feature_server_that_answers_is_healthy(served):
    found = health(served, timeout=20)
    assert found.passed, found.description
    assert number(found, "feast/health_ms") > 0 and number(found, "feast/read_ms") > 0
    assert number(found, "feast/present_share") == 0.5, "user 2 was never online"
    strict = health(served, timeout=20, min_present=0.9)
    assert not strict.passed and "50 % of the sampled values are there" in (strict.description or "")
    slow = health(served, timeout=20, max_latency=timedelta(microseconds=1))
    assert not slow.passed and slow.severity == dg.AssetCheckSeverity.WARN


def test_a_feature_server_without_the_feature_service_is_unhealthy(served):
    found = health(served, timeout=20, feature_service="usagee")
    assert not found.passed and "usagee" in (found.description or "")


def test_nothing_listening_is_unhealthy_and_the_password_of_its_address_stays_secret(free_port):
    with pytest.warns(UserWarning, match="holds a credential as text"):
        found = health(f"http://ml:secret@127.0.0.1:{free_port()}")
    assert not found.passed and "refused" in (found.description or "") and "secret" not in str(found)


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("error", "500"),
        ("broken read", "500"),
        ("hanging", "within 1.0 s"),
        ("trickling", "within 1.0 s"),
        ("no json", "answered without features"),
    ],
)
def test_a_server_that_goes_wrong_is_unhealthy_in_bounded_time(behaviour, message):
    class Handler(QuietHandler):
        def do_GET(self):
            self.answer(500 if behaviour == "error" else 200)

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(500 if behaviour == "broken read" else 200)

        def answer(self, status):
            if behaviour == "hanging":
                done.wait(20)
            self.send_response(status)
            body = b"fine" if behaviour == "no json" else json.dumps({"detail": "x"}).encode()
            self.send_header("Content-Length", "1000" if behaviour == "trickling" else str(len(body)))
            self.end_headers()
            for _ in range(100 if behaviour == "trickling" else 0):
                try:
                    self.wfile.write(b" ")
                    self.wfile.flush()
                except OSError:
                    return
                if done.wait(0.2):
                    return
            self.wfile.write(body)

    done = threading.Event()
    with serving(QuietServer(Handler)) as server:
        begun = time.monotonic()
        try:
            found = health(server.url, timeout=1.0)
        finally:
            done.set()
    assert not found.passed and message in (found.description or "")
    assert time.monotonic() - begun < 15, "and not the 20 s that the server takes"
