"""A Feast repository that is in Postgres throughout: its sources, its registry and its online store."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import psycopg
import pytest
from click.testing import CliRunner
from feast.cli.cli import cli
from feast.driver_test_data import create_driver_hourly_stats_df

from dagster_mlops.errors import FeatureError
from dagster_mlops.feast import (
    FeastResource,
    feature_repository_defs,
    feature_view_assets,
    online_offline_parity_check,
    push_asset,
    training_set_asset,
    training_set_checks,
)
from dagster_mlops.feast.checks.online import feature_freshness_checks
from tests.support import known_warnings
from tests.support.feast_servers import postgres  # noqa: F401 - a fixture

pytestmark = [
    pytest.mark.usefixtures("warm_tools"),
    *known_warnings.DEPRECATED,
    *known_warnings.FEAST_EXPERIMENTAL,
    *known_warnings.UNCLOSED,
]

START = datetime(2024, 1, 1, tzinfo=UTC)
DAYS = dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-01-08")
DAY = timedelta(days=1)
SETTINGS = """
project: shop
provider: local
registry: {{registry_type: sql, path: "postgresql+psycopg://postgres:pw@127.0.0.1:{port}/shop", cache_ttl_seconds: 0}}
online_store: &postgres
    {{type: postgres, host: 127.0.0.1, port: {port}, database: shop, db_schema: public, user: postgres, password: pw,
      sslmode: disable}}
offline_store: *postgres
entity_key_serialization_version: 3
"""
DEFINITIONS = """
from datetime import timedelta
import pandas as pd
from feast import Entity, FeatureService, FeatureView, Field, PushSource, RequestSource, ValueType
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64, String

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
times = {"timestamp_field": "event_timestamp", "created_timestamp_column": "created"}
schema = [Field(name="amount", dtype=Float64), Field(name="pages", dtype=Int64), Field(name="browser", dtype=String)]
visits = FeatureView(name="visits", entities=[user], ttl=timedelta(days=3), schema=schema,
                     source=PostgreSQLSource(name="visits", table="visits", **times))
scores = FeatureView(
    name="scores", entities=[user], ttl=timedelta(days=30), schema=[Field(name="score", dtype=Float64)],
    source=PostgreSQLSource(name="scores", query="SELECT * FROM scores WHERE score >= 0", timestamp_field="at"),
)
live = FeatureView(
    name="live", entities=[user], ttl=timedelta(days=3), schema=[Field(name="clicks", dtype=Int64)],
    source=PushSource(name="clicks_push", batch_source=PostgreSQLSource(name="clicks", table="clicks", **times)),
)
request = RequestSource(name="basket", schema=[Field(name="items", dtype=Int64)])

@on_demand_feature_view(sources=[visits, request], schema=[Field(name="total", dtype=Float64)])
def basket(inputs: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({"total": inputs["amount"] * inputs["items"]})

usage = FeatureService(name="usage", features=[visits, scores, basket])
clicks = FeatureService(name="clicks", features=[live])
"""
# What a training set must be: the newest row at or before the moment, within the ttl, of several the last created.
JOINED = """
SELECT v.amount, v.pages, v.browser, s.score, v.amount * a.items AS total
FROM asked a
LEFT JOIN LATERAL (
    SELECT * FROM visits v WHERE v.user_id = a.user_id AND v.event_timestamp <= a.seen
    AND v.event_timestamp >= a.seen - interval '3 days' ORDER BY event_timestamp DESC, created DESC LIMIT 1
) v ON true
LEFT JOIN LATERAL (
    SELECT * FROM scores s WHERE score >= 0 AND s.user_id = a.user_id AND s.at <= a.seen
    AND s.at >= a.seen - interval '30 days' ORDER BY at DESC LIMIT 1
) s ON true
ORDER BY a.place
"""


class Shop:
    """The repository, and the database where everything is; the sessions of that have another time zone than UTC."""

    def __init__(self, root: Path, port: int):
        self.address, self.repo = f"host=127.0.0.1 port={port} user=postgres dbname=shop", root / "repo"
        with psycopg.connect(self.address.replace("dbname=shop", "dbname=postgres"), autocommit=True) as db:
            db.execute("CREATE DATABASE shop")
            db.execute("ALTER DATABASE shop SET timezone = 'America/New_York'")
        self.sql(
            "CREATE TABLE visits (user_id bigint, event_timestamp timestamptz, created timestamptz, amount float8, "
            "pages bigint, browser text)",
            "CREATE TABLE scores (user_id bigint, at timestamptz, score float8)",
            "CREATE TABLE clicks (user_id bigint, event_timestamp timestamptz, created timestamptz, clicks bigint)",
        )
        drawn = np.random.default_rng(7)
        self.visits = pd.DataFrame({"user_id": drawn.integers(0, 20, 500)})
        self.visits["event_timestamp"] = [START + timedelta(hours=int(h)) for h in drawn.integers(0, 150, 500)]
        self.visits["created"] = self.visits["event_timestamp"] + pd.to_timedelta(self.visits.index, unit="s")
        self.visits["amount"], self.visits["pages"] = drawn.random(500), self.visits.index.astype(object)
        self.visits.loc[self.visits.index % 9 == 0, "pages"] = None
        self.visits["browser"] = [["a", "b", None][n % 3] for n in self.visits.index]
        self.insert("visits", self.visits)
        moments = [START + timedelta(hours=7 * n) for n in range(60)]
        self.insert(
            "scores", pd.DataFrame({"u": [n % 20 for n in range(60)], "at": moments, "s": drawn.random(60) - 0.1})
        )
        self.insert("clicks", pd.DataFrame({"u": [1], "at": [START], "created": [START], "clicks": [1]}))
        self.repo.mkdir()
        (self.repo / "feature_store.yaml").write_text(SETTINGS.format(port=port))
        (self.repo / "features.py").write_text(DEFINITIONS)
        self.feast = FeastResource(repo=str(self.repo))

    def sql(self, *statements: str) -> list[tuple[Any, ...]]:
        """Run statements; the rows of the last, if it has any."""
        with psycopg.connect(self.address) as db:
            cursor = db.cursor()
            for statement in statements:
                cursor.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def insert(self, table: str, frame: pd.DataFrame) -> None:
        with psycopg.connect(self.address) as db, db.cursor().copy(f"COPY {table} FROM STDIN".encode()) as copy:
            for row in frame.astype(object).where(frame.notna(), None).itertuples(index=False):
                copy.write_row(tuple(row))

    def materialize(self, assets, **options) -> dg.ExecuteInProcessResult:
        files = dg.FilesystemIOManager(base_dir=str(self.repo.parent / "assets"))
        resources = {"feast": self.feast, "io_manager": files}
        return dg.materialize(assets, resources=resources, **options)

    def evaluate(self, result: dg.ExecuteInProcessResult) -> dict[str, Any]:
        return {found.check_name: found for found in result.get_asset_check_evaluations()}


@pytest.fixture(scope="module")
def shop(tmp_path_factory, postgres):  # noqa: F811
    made = Shop(tmp_path_factory.mktemp("shop"), postgres[1])
    assert made.feast.apply()
    assert not made.feast.apply(), "the registry knows what it was given"
    return made


@pytest.mark.thorough
def test_partitions_are_loaded_with_facts_and_what_is_joined_is_what_sql_says_and_is_served(shop):
    views = feature_view_assets(repo=shop.repo, views=["visits", "scores"], partitions_def=DAYS)
    for day in ("2024-01-05", "2024-01-01"):
        done = shop.materialize(views, partition_key=day)
    tags = {"dagster/asset_partition_range_start": "2024-01-01", "dagster/asset_partition_range_end": "2024-01-07"}
    done = shop.materialize(views, tags=tags)
    events = {e.partition: e.metadata for e in done.asset_materializations_for_node("visits")}
    day = shop.visits["event_timestamp"].dt.floor("D")
    for partition, metadata in events.items():
        rows = shop.visits[day == pd.Timestamp(partition, tz="UTC")]
        assert metadata["dagster/row_count"].value == len(rows)
        if len(rows):
            assert metadata["feast/mean/amount"].value == pytest.approx(rows["amount"].mean())
            assert metadata["feast/null_share/pages"].value == pytest.approx(rows["pages"].isna().mean())

    asked = pd.DataFrame({"place": range(300)})
    asked["user_id"] = (asked["place"] * 7) % 23  # three are unknown
    asked["seen"] = [START + timedelta(hours=(n * 31) % 190, minutes=n % 2) for n in asked["place"]]
    asked = pd.concat([asked, asked.iloc[:40]]).assign(items=lambda f: f["place"] % 5).sample(frac=1, random_state=1)
    asked = asked.assign(place=range(len(asked))).reset_index(drop=True)
    shop.sql("CREATE TABLE asked (place bigint, user_id bigint, seen timestamptz, items bigint)")
    shop.insert("asked", asked)

    @dg.asset
    def entities() -> pd.DataFrame:
        return asked

    training_set = training_set_asset(
        name="training_set",
        feature_service="usage",
        entities=entities.key,
        timestamp_column="seen",
        io_manager_key="io_manager",
    )
    checks = [
        *training_set_checks(
            asset="training_set",
            feature_service="usage",
            timestamp_column="seen",
            unique=["place"],
            max_null_share=0.9,
            blocking=False,
        ),
        online_offline_parity_check(asset="training_set", feature_service="usage", blocking=False),
    ]
    done = shop.materialize([entities, training_set, *checks])
    joined = done.output_for_node("training_set")
    wanted = pd.DataFrame(shop.sql(JOINED), columns=pd.Index(["amount", "pages", "browser", "score", "total"]))
    pd.testing.assert_frame_equal(joined[[*asked]], asked)
    assert list(joined) == [*asked, *wanted]
    for name in wanted:
        expected = wanted[name] if name == "browser" else wanted[name].astype("float64")
        pd.testing.assert_series_equal(joined[name], expected, check_dtype=name != "browser")
    found = shop.evaluate(done)
    failed = {name: verdict for name, verdict in found.items() if not verdict.passed}
    assert failed.keys() == {"no_leakage"} and failed["no_leakage"].severity == dg.AssetCheckSeverity.WARN
    assert "no value could be looked up: visits: its source is a PostgreSQL" in (failed["no_leakage"].description or "")
    parity = found["online_offline_parity"].metadata
    assert parity["feast/compared_values"].value > 100 and parity["feast/different_values"].value == 0

    shop.sql("UPDATE shop_visits SET event_ts = event_ts - interval '1 hour'")
    assert not shop.evaluate(shop.materialize([entities, training_set, checks[-1]]))["online_offline_parity"].passed
    # Feast makes the table again, and empty; one partition brings back all that had been loaded.
    shop.sql("DROP TABLE shop_visits")
    assert shop.feast.apply(force=True)
    assert shop.sql("SELECT count(*) FROM shop_visits") == [(0,)]
    shop.materialize(views, partition_key="2024-01-02")
    assert shop.evaluate(shop.materialize([entities, training_set, checks[-1]]))["online_offline_parity"].passed


@pytest.mark.thorough
def test_a_push_is_served_and_one_to_a_store_that_feast_cannot_write_to_is_refused_before_anything_is_written(shop):
    now = pd.Timestamp.now(tz="UTC").floor("s")
    rows = pd.DataFrame({"user_id": [1, 2, 1], "clicks": [5, 6, 4]})
    rows["event_timestamp"] = [now, now, now - timedelta(minutes=1)]
    rows = rows.assign(created=now)

    @dg.asset
    def recent() -> pd.DataFrame:
        return rows

    both = push_asset(name="clicks_now", push_source="clicks_push", rows=recent.key, to="online_and_offline")
    with pytest.raises(FeatureError, match="cannot write to the offline store 'postgres': push them with to='online'"):
        shop.materialize([recent, both])
    users = pd.DataFrame({"user_id": [1, 2, 3]})
    assert shop.feast.online_features(users, "clicks")["clicks"].isna().all()

    pushed = push_asset(name="clicks_now", push_source="clicks_push", rows=recent.key)
    for _ in range(2):
        [event] = shop.materialize([recent, pushed]).asset_materializations_for_node("clicks_now")
        assert event.metadata["feast/online_writes"].value == 2
    shop.insert("clicks", rows[["user_id", "event_timestamp", "created", "clicks"]])
    served = shop.feast.online_features(users, "clicks", at=now)["clicks"]
    offline = shop.feast.historical_features(users.assign(event_timestamp=now), "clicks")["clicks"]
    assert served.fillna(-1).tolist() == offline.fillna(-1).tolist() == [5, 6, -1]
    freshness = feature_freshness_checks(asset=dg.AssetKey("live"))
    defs = dg.Definitions(asset_checks=freshness, resources={"feast": shop.feast})
    found = shop.evaluate(defs.resolve_implicit_global_asset_job_def().execute_in_process())
    assert {name: verdict.description for name, verdict in found.items() if not verdict.passed} == {}
    after = shop.feast.online_features(users, "clicks", at=now + timedelta(days=3, seconds=1))
    assert after["clicks"].isna().all(), "expired, though the database has another clock"


@pytest.fixture(scope="module")
def drivers(tmp_path_factory, postgres):  # noqa: F811
    """The repository of `feast init -t postgres`, untouched but for the address, which the template asks for."""
    root, port = tmp_path_factory.mktemp("template"), str(postgres[1])
    # Not the upload that the template offers: its example data has columns that psycopg cannot write.
    answers = ["127.0.0.1", port, "postgres", "public", "postgres", "secret", "disable", "n", ""]
    options = ["init", "-t", "postgres", "--repo-path", str(root / "drivers"), "drivers"]
    made = CliRunner().invoke(cli, options, input="\n".join(answers))
    assert made.exit_code == 0, made.output
    return root / "drivers" / "feature_repo"


def test_the_postgres_template_is_a_graph_that_materializes_and_serves(drivers, postgres):  # noqa: F811
    hour = datetime.now().replace(microsecond=0, second=0, minute=0)
    stats = create_driver_hourly_stats_df([1001, 1002, 1003], hour - timedelta(days=3), hour)
    columns = ["event_timestamp", "driver_id", "conv_rate", "acc_rate", "avg_daily_trips", "created"]
    address = f"host=127.0.0.1 port={postgres[1]} user=postgres dbname=postgres"
    with psycopg.connect(address) as db:
        db.execute(
            "CREATE TABLE feast_driver_hourly_stats (event_timestamp timestamptz, driver_id bigint, conv_rate float4, "
            "acc_rate float4, avg_daily_trips int, created timestamptz)"
        )
        with db.cursor().copy("COPY feast_driver_hourly_stats FROM STDIN") as copy:
            for row in stats[columns].itertuples(index=False):
                copy.write_row(tuple(row))

    defs = feature_repository_defs(repo=drivers)
    assets = [asset for asset in defs.assets or () if isinstance(asset, dg.AssetsDefinition)]
    done = dg.materialize(assets, resources=defs.resources)
    for view in ("driver_hourly_stats", "driver_hourly_stats_fresh"):
        [event] = done.asset_materializations_for_node(view)
        assert event.metadata["dagster/row_count"].value == len(stats)
    feast = FeastResource(repo=str(drivers))
    asked = pd.DataFrame({"driver_id": [1003, 1001, 7], "val_to_add": [1, 2, 3], "val_to_add_2": [10, 20, 30]})
    for service in ("driver_activity_v1", "driver_activity_v2", "driver_activity_v3"):
        offline = feast.historical_features(asked.assign(event_timestamp=pd.Timestamp.now(tz="UTC")), service)
        online = feast.online_features(asked, service)
        pd.testing.assert_frame_equal(online, offline.drop(columns="event_timestamp"), rtol=1e-6)
        assert online["conv_rate"].notna().tolist() == [True, True, False]
