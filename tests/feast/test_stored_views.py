"""Stored on-demand views, views without entities, one feature name twice, and join keys in the request."""

import dataclasses
import re
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from dagster_mlops.errors import FeatureError
from dagster_mlops.feast import (
    FeastResource,
    feature_repository_defs,
    feature_view_assets,
    online_offline_parity_check,
    training_set_asset,
    training_set_checks,
)
from dagster_mlops.feast.offline.source import Window
from dagster_mlops.feast.online.materialization import materialize
from dagster_mlops.feast.rebuild.snapshot import get as get_snapshot
from dagster_mlops.feast.repository.definitions import refuse_uncomputable
from dagster_mlops.feast.repository.load import load_repository
from dagster_mlops.provenance import TrainingSet, records_in
from tests.support import known_warnings

pytestmark = [
    pytest.mark.usefixtures("warm_tools"),
    *known_warnings.DEPRECATED,
    *known_warnings.UNCLOSED,
    *known_warnings.FEAST_EXPERIMENTAL,
]

START = datetime(2024, 1, 1, tzinfo=UTC)
SETTINGS = """
project: rides
provider: local
registry: {{registry_type: sql, path: "sqlite:///{root}/registry.db"}}
online_store: {{type: sqlite, path: {root}/online.db}}
offline_store: {{type: dagster_mlops.feast.offline_store.AsofOfflineStore}}
entity_key_serialization_version: 3
"""
DEFINITIONS = """
from datetime import timedelta
import pandas as pd
from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.data_format import ParquetFormat
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Array, Float64, Int64, String, UnixTimestamp

def file(name):
    path = {root!r} + f"/{{name}}.parquet"
    return FileSource(name=name, path=path, file_format=ParquetFormat(), timestamp_field="at")

driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
city = Entity(name="city", join_keys=["city_id"], value_type=ValueType.STRING)
trips = FeatureView(
    name="trips", entities=[driver], ttl=timedelta(days=9), source=file("trips"),
    schema=[Field(name="rate", dtype=Float64), Field(name="done", dtype=Int64)],
)
visits = FeatureView(
    name="visits", entities=[driver, city], source=file("visits"), schema=[Field(name="stops", dtype=Int64)],
)
air = FeatureView(name="air", entities=[city], source=file("air"), schema=[Field(name="temp", dtype=Float64)])
market = FeatureView(name="market", entities=[], source=file("market"), schema=[Field(name="fuel", dtype=Float64)])

@on_demand_feature_view(
    entities=[driver], sources=[trips], write_to_online_store=True,
    schema=[Field(name="double_rate", dtype=Float64), Field(name="next_done", dtype=Int64)],
)
def doubled(inputs: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({{"double_rate": inputs["rate"] * 2, "next_done": inputs["done"] + 1}})

@on_demand_feature_view(
    entities=[driver], sources=[trips], write_to_online_store=True, mode="python",
    schema=[Field(name="words", dtype=Array(String)), Field(name="label", dtype=String)],
)
def worded(inputs):
    return {{"words": [[str(v)] for v in inputs["done"]], "label": [f"d{{v}}" for v in inputs["done"]]}}

@on_demand_feature_view(
    entities=[driver, city], sources=[trips, visits, market], write_to_online_store=True,
    schema=[Field(name="cost", dtype=Float64)],
)
def costs(inputs: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({{"cost": inputs["rate"] * inputs["stops"] + inputs["fuel"]}})

quote = RequestSource(name="quote", schema=[Field(name="driver_id", dtype=Int64), Field(name="price", dtype=Float64)])

@on_demand_feature_view(sources=[trips, quote], schema=[Field(name="offer", dtype=Float64)])
def offers(inputs: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({{"offer": inputs["rate"] * inputs["price"] + inputs["driver_id"]}})

@on_demand_feature_view(sources=[quote], schema=[Field(name="fee", dtype=Float64)], mode="python")
def fees(inputs):
    return {{"fee": [price + key for price, key in zip(inputs["price"], inputs["driver_id"])]}}

@on_demand_feature_view(sources=[market], schema=[Field(name="half", dtype=Float64)])
def halves(inputs: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({{"half": inputs["fuel"] / 2}})

def ends():
    return [air.with_name(end).with_join_key_map({{"city_id": f"{{end}}_id"}}) for end in ("start", "stop")]

stored = FeatureService(name="stored", features=[doubled, worded, trips])
priced = FeatureService(name="priced", features=[costs])
global_only = FeatureService(name="global_only", features=[market])
global_computed = FeatureService(name="global_computed", features=[market, halves])
quoted = FeatureService(name="quoted", features=[offers, fees, trips[["done"]]])
fee_and_trips = FeatureService(name="fee_and_trips", features=[fees, trips[["rate"]]])
routes = FeatureService(name="routes", features=ends())
routes_and_trips = FeatureService(name="routes_and_trips", features=[*ends(), trips, doubled, halves])
"""


def _days(*days: float) -> pd.Series:
    return pd.Series([START + timedelta(days=day) for day in days]).astype("datetime64[us, UTC]")


class Rides:
    """A repository with data of three days, and its assets."""

    def __init__(self, root: Path):
        self.root, self.repo = root, root / "repo"
        self.repo.mkdir()
        (self.repo / "feature_store.yaml").write_text(SETTINGS.format(root=root))
        (self.repo / "features.py").write_text(DEFINITIONS.format(root=str(root)))
        trips = pd.DataFrame({"driver_id": [1, 2, 1, 2], "rate": [1.0, 2.0, 3.0, None], "done": [1, 2, 3, 4]})
        visits = pd.DataFrame({"driver_id": [1, 2], "city_id": ["a", "b"], "stops": [5, 6]})
        self.write("trips", trips, 0.5, 0.6, 1.5, 2.5)
        self.write("visits", visits, 0.1, 1.1)
        self.write("air", pd.DataFrame({"city_id": ["a", "b"], "temp": [10.0, 20.0]}), 0.2, 0.3)
        self.write("market", pd.DataFrame({"fuel": [0.25, 0.5]}), 0.4, 2.1)
        self.feast = FeastResource(repo=str(self.repo))

    def write(self, name: str, frame: pd.DataFrame, *days: float) -> None:
        frame.assign(at=_days(*days)).to_parquet(self.root / f"{name}.parquet", index=False)

    def offline(self, rows: pd.DataFrame, service: str, **options) -> pd.DataFrame:
        at = rows.assign(event_timestamp=START + timedelta(days=3))
        return self.feast.historical_features(at, service, **options).drop(columns="event_timestamp")

    def doubled(self, *drivers: int) -> list[float | None]:
        online = self.feast.online_features(pd.DataFrame({"driver_id": drivers}), "stored")
        return [None if pd.isna(value) else value for value in online["double_rate"]]


@pytest.fixture(scope="module")
def rides(tmp_path_factory) -> Rides:
    """The repository, with every asset materialized."""
    rides = Rides(tmp_path_factory.mktemp("rides"))
    assert dg.materialize(feature_view_assets(repo=rides.repo), resources={"feast": rides.feast}).success
    return rides


@pytest.mark.thorough
@pytest.mark.parametrize("service", ["stored", "priced"])
def test_a_stored_on_demand_view_is_online_what_it_is_offline(rides, service):
    rows = pd.DataFrame({"driver_id": [1, 2, 3]})
    if service == "priced":
        rows = rows.assign(city_id=["a", "b", "c"])
    online = rides.feast.online_features(rows, service)
    # An entity without any event is not stored, and its features are computed of nothing offline.
    pd.testing.assert_frame_equal(online.head(2), rides.offline(rows.head(2), service))
    assert online.loc[2, list(online.columns.difference(rows.columns))].isna().all()


def test_the_parity_gate_compares_stored_views(rides):
    @dg.asset
    def training_set():
        return rides.offline(pd.DataFrame({"driver_id": [1, 2]}), "stored")

    checks = [
        online_offline_parity_check(asset=training_set, feature_service=service, name=service)
        for service in ("stored", "priced", "global_only", "global_computed")
    ]
    result = dg.materialize([training_set, *checks], resources={"feast": rides.feast}, raise_on_error=False)
    for evaluation in result.get_asset_check_evaluations():
        assert evaluation.passed, (evaluation.check_name, evaluation.description, evaluation.metadata)


def test_windows_of_a_stored_view_may_be_loaded_in_any_order_and_late_rows_count(rides):
    store = rides.feast.store()
    day = [Window(START + timedelta(days=i), START + timedelta(days=i + 1)) for i in range(3)]
    rides.feast.online_features(pd.DataFrame({"driver_id": [1]}), "stored")
    with sqlite3.connect(rides.root / "online.db") as db:
        db.execute("DELETE FROM rides_doubled")
    db.close()
    assert [materialize(store, "doubled", day[i]).keys for i in (2, 0, 1)] == [1, 1, 1]
    assert rides.doubled(1, 2) == [6.0, None], "driver 2 has a newer event, without a rate"
    assert materialize(store, "doubled", day[0]).kept_newer == 2
    assert rides.doubled(1, 2) == [6.0, None]


def test_values_of_stored_views_expire_as_those_that_they_are_computed_from(rides):
    rows = pd.DataFrame({"driver_id": [1, 2]})
    late = START + timedelta(days=11)
    online = rides.feast.online_features(rows, "stored", at=late)
    offline = rides.feast.historical_features(rows.assign(event_timestamp=late), "stored")
    pd.testing.assert_frame_equal(online, offline.drop(columns="event_timestamp"))
    assert online["double_rate"].isna().all() and online["next_done"].tolist()[1] == 5.0


@pytest.mark.parametrize(
    ("view", "reason"),
    [
        ("entities=[driver], sources=[trips, quote]", r"takes request data \(quote\)"),
        ("entities=[driver], sources=[air]", "computed from air by city_id"),
        ("entities=[driver, city], sources=[trips, air]", "one of these must have all of its join keys"),
        ("entities=[driver], sources=[trips], mode='python', singleton=True", "is a singleton"),
    ],
)
def test_a_stored_view_that_cannot_be_computed_is_refused_when_definitions_load(view, reason, rides):
    on_demand = next(v for v in load_repository(rides.repo).on_demand_views if v.name == "doubled")
    names = dict(part.split("=", 1) for part in re.split(r", (?=\w+=)", view))
    keys = {"driver": "driver_id", "city": "city_id"}
    sources = names["sources"].strip("[]").split(", ")
    odd = dataclasses.replace(
        on_demand,
        join_keys=[keys[name] for name in names["entities"].strip("[]").split(", ")],
        views=[name for name in sources if name != "quote"],
        requests=[name for name in sources if name == "quote"],
        singleton="singleton" in names,
    )
    with pytest.raises(FeatureError, match=f"'doubled' is stored online.*{reason}.*views="):
        refuse_uncomputable(odd, load_repository(rides.repo))


def test_the_graph_shows_stored_views_as_assets_below_their_sources(rides):
    graph = feature_repository_defs(repo=rides.repo).resolve_asset_graph()
    key = dg.AssetKey("costs")
    assert graph.get(key).is_materializable and not graph.get(dg.AssetKey("offers")).is_materializable
    assert graph.get(key).parent_keys == {dg.AssetKey(name) for name in ("trips", "visits", "market")}
    only_trips = feature_repository_defs(repo=rides.repo, views=["trips"]).resolve_asset_graph()
    assert only_trips.get(dg.AssetKey("trips")).is_materializable and not only_trips.get(key).is_materializable


# Views without entities


@pytest.mark.parametrize("service", ["global_only", "global_computed"])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_service_of_views_without_entities_is_read_online(service, rows, rides):
    frame = pd.DataFrame(index=range(rows))
    online = rides.feast.online_features(frame, service)
    assert online["fuel"].tolist() == [0.5] * rows
    pd.testing.assert_frame_equal(online, rides.offline(frame, service))
    named = pd.DataFrame({"row": range(rows)})
    assert rides.feast.online_features(named, service)["row"].tolist() == [*range(rows)]


# A join key that is request data, too


@pytest.mark.parametrize("service", ["quoted", "fee_and_trips"])
def test_a_join_key_may_be_request_data_online_as_offline(service, rides):
    rows = pd.DataFrame({"driver_id": [2, 1, 9], "price": [10.0, 20.0, 30.0]})
    online = rides.feast.online_features(rows, service)
    pd.testing.assert_frame_equal(online, rides.offline(rows, service))
    assert online["fee"].tolist() == [12.0, 21.0, 39.0]
    if service == "quoted":
        assert online["offer"].tolist()[1] == 61.0
        late = rides.feast.online_features(rows, service, at=START + timedelta(days=20))
        assert late["offer"].isna().all() and late["fee"].tolist() == [12.0, 21.0, 39.0]


# One feature name twice


def _route_rows(service: str) -> pd.DataFrame:
    rows = pd.DataFrame({"start_id": ["a", "b"], "stop_id": ["b", "c"]})
    return rows if service == "routes" else rows.assign(driver_id=[1, 2])


@pytest.mark.parametrize("service", ["routes", "routes_and_trips"])
def test_a_service_may_have_one_feature_of_two_entities(service, rides):
    rows = _route_rows(service)
    online = rides.feast.online_features(rows, service, full_feature_names=True)
    assert online["start__temp"].tolist() == [10.0, 20.0] and online["stop__temp"].tolist()[0] == 20.0
    assert pd.isna(online["stop__temp"][1])
    pd.testing.assert_frame_equal(online, rides.offline(rows, service, full_feature_names=True))
    with pytest.raises(FeatureError, match=r"'temp' more than once, of start, stop.*full_feature_names=True"):
        rides.feast.online_features(rows, service)
    with pytest.raises(FeatureError, match="full_feature_names=True"):
        rides.offline(rows, service)


def test_a_training_set_of_one_feature_for_two_entities_is_checked_and_recorded(rides):
    @dg.asset
    def rows() -> pd.DataFrame:
        return _route_rows("routes_and_trips").assign(event_timestamp=START + timedelta(days=3), late=[True, False])

    routes = training_set_asset(
        name="routes", feature_service="routes_and_trips", entities=rows, full_feature_names=True
    )
    checks = training_set_checks(
        asset=routes, feature_service="routes_and_trips", label="late", max_null_share=1, unique=["driver_id"]
    )
    result = dg.materialize([rows, routes, *checks], resources={"feast": rides.feast}, raise_on_error=False)
    evaluations = {e.check_name: e for e in result.get_asset_check_evaluations()}
    metadata: Any = result.asset_materializations_for_node("routes")[0].metadata
    assert metadata["feast/features"].value[:2] == ["start__temp", "stop__temp"]
    leakage = evaluations["no_leakage"]
    origins: Any = leakage.metadata["feast/origins"]
    assert leakage.passed
    assert {row.data["feature view"] for row in origins.records} >= {"start", "stop"}
    [record] = [r for r in records_in(metadata) if isinstance(r, TrainingSet)]
    snapshot = get_snapshot(rides.feast.store(), record.snapshot)
    assert snapshot is not None and snapshot.full_feature_names
