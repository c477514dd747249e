"""Feast feature views and training sets as assets, on a real repository (DuckDB, SQLite, SQL registry)."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest
from dagster.components.testing import create_defs_folder_sandbox

from dagster_mlops.errors import FeatureError
from dagster_mlops.feast import (
    FeastResource,
    FeatureRepositoryComponent,
    feature_view_assets,
    online_offline_parity_check,
    training_set_asset,
    training_set_checks,
)
from dagster_mlops.feast.repository.load import load_repository
from dagster_mlops.feast.tool import FeastTool
from dagster_mlops.provenance import Accessible, Dataset, Deleted, Faulty, FeatureView, Inaccessible, Ref, TrainingSet
from tests.support import known_warnings
from tests.support.modes import readable_by_others

pytestmark = [pytest.mark.usefixtures("warm_tools"), *known_warnings.DEPRECATED, *known_warnings.DAGSTER_BETA]

SETTINGS = """
project: flights
provider: local
registry: {registry_type: sql, path: "sqlite:///${FLIGHTS_STATE}/registry.db"}
online_store: {type: sqlite, path: "${FLIGHTS_STATE}/online.db"}
offline_store: {type: duckdb}
entity_key_serialization_version: 3
"""
DEFINITIONS = """
import os
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.data_format import ParquetFormat
from feast.types import Float64, Int64, String

def folder(name):
    path = os.environ["FLIGHTS_STATE"] + "/" + name
    return FileSource(name=name, path=path, file_format=ParquetFormat(), timestamp_field="event_timestamp")

origin = Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING)
carrier = Entity(name="carrier", join_keys=["carrier"], value_type=ValueType.STRING)
origin_weather = FeatureView(
    name="origin_weather", entities=[origin], ttl=timedelta(hours=6), source=folder("weather"),
    schema=[Field(name="wind", dtype=Float64), Field(name="temp", dtype=Float64),
            Field(name="gusts", dtype=Int64), Field(name="sky", dtype=String)],
    description="Hourly weather at the origin.", owner="data team", tags={"tier": "gold", "note": "not a label!"},
)
carrier_punctuality = FeatureView(
    name="carrier_punctuality", entities=[carrier], ttl=timedelta(days=3), source=folder("punctuality"),
    schema=[Field(name="late_rate", dtype=Float64)], owner="ml@example.com",
)
traffic = FeatureView(
    name="traffic", entities=[origin], ttl=timedelta(days=3), source=folder("traffic"),
    schema=[Field(name="departures", dtype=Int64)],
)
delay = FeatureService(
    name="delay", features=[origin_weather[["temp", "wind", "sky", "gusts"]], carrier_punctuality]
)
"""
DUCKDB = "project: p\noffline_store: {type: duckdb}\n"
MONTHS = dg.MonthlyPartitionsDefinition("2013-01-01", end_date="2013-04-01")
FEATURES = ["temp", "wind", "sky", "gusts", "late_rate"]


def _write(state: Path, name: str, frame: pd.DataFrame) -> None:
    """One file for each month, as an IO manager that stores monthly partitions leaves them."""
    (state / name).mkdir(parents=True, exist_ok=True)
    for month, part in frame.groupby(frame["event_timestamp"].dt.strftime("%Y-%m")):
        part.to_parquet(state / name / f"{month}.parquet", index=False, coerce_timestamps="us")


def _hours(origins, step):
    times = pd.date_range("2013-01-01", "2013-03-31 23:00", freq=step, tz="UTC")
    return pd.MultiIndex.from_product([origins, times], names=["origin", "event_timestamp"]).to_frame(index=False)


def _make_repository(root: Path) -> tuple[Path, Path]:
    repo, state = root / "feature_repo", root / "state"
    repo.mkdir(parents=True)
    (repo / "feature_store.yaml").write_text(SETTINGS)
    (repo / "features.py").write_text(DEFINITIONS)
    # Ten-hour steps with a ttl of six hours: four hours of every ten have no weather.
    weather = _hours(["EWR", "JFK"], "10h").assign(sky="clear")
    weather["wind"] = weather.index * 0.5
    weather["temp"] = (weather.index * 7 % 31).astype(float)
    weather.loc[weather.index % 5 == 0, "temp"] = None
    weather["gusts"] = weather.index % 4
    _write(state, "weather", weather)
    carriers = _hours(["AA", "UA", "B6"], "1D").rename(columns={"origin": "carrier"})
    _write(state, "punctuality", carriers.assign(late_rate=carriers.index / 1000))
    traffic = _hours(["EWR", "JFK"], "7D")
    _write(state, "traffic", traffic.assign(departures=traffic.index))
    return repo, state


class World:
    """A Feast repository, its state folder, and a Dagster instance that remembers."""

    def __init__(self, root: Path, instance: dg.DagsterInstance):
        self.root, self.instance = root, instance
        self.repo, self.state = _make_repository(root)
        os.environ["FLIGHTS_STATE"] = str(self.state)
        self.feast = FeastResource(repo=str(self.repo))
        self.views = feature_view_assets(repo=self.repo, partitions_def=MONTHS, group_name="features")

    @property
    def resources(self):
        return {"feast": self.feast, "files": dg.FilesystemIOManager(base_dir=str(self.root / "io"))}

    def materialize(self, *names: str, month: str | None = None, assets=None, tags=None, raise_on_error=True):
        assets = assets or self.views
        keys = dg.AssetSelection.assets(*names) | dg.AssetSelection.checks_for_assets(*names)
        return dg.materialize(
            assets, selection=keys, partition_key=month, instance=self.instance, resources=self.resources,
            tags=tags, raise_on_error=raise_on_error,
        )  # fmt: skip

    def online(self, view: str, feature: str, **keys):
        rows = [dict(zip(keys, values, strict=True)) for values in zip(*keys.values(), strict=True)]
        return self.feast.store().get_online_features([f"{view}:{feature}"], rows).to_dict()[feature]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with dg.instance_for_test() as instance:
        world = World(tmp_path_factory.mktemp("feast"), instance)
        world.feast.apply()
        yield world
    del os.environ["FLIGHTS_STATE"]


def _moment(i: int) -> str:
    return f"2013-0{1 + i % 3}-{1 + i * 7 % 28:02d} {i % 24:02d}:30"


ENTITIES = pd.DataFrame(
    [
        # duplicates, an unknown origin, an event exactly at its ttl, one just after, one before all history
        ("f1", "JFK", "AA", "2013-02-03 17:25", 1),
        ("f2", "EWR", "UA", "2013-01-01 00:00", 0),
        ("f3", "JFK", "AA", "2013-02-03 17:25", 0),
        ("f4", "XXX", "B6", "2013-03-09 10:00", 0),
        ("f5", "EWR", "AA", "2013-01-01 06:00", 1),
        ("f6", "EWR", "AA", "2013-01-01 06:00:00.000001", 1),
        ("f7", "JFK", "ZZ", "2012-12-31 23:59", 0),
        *((f"g{i}", ["EWR", "JFK"][i % 2], ["AA", "UA", "B6"][i % 3], _moment(i), 0)
          for i in range(400)),
    ],
    columns=pd.Index(["flight", "origin", "carrier", "scheduled", "late"]),
    index=range(1000, 1407),
)  # fmt: skip
ENTITIES["scheduled"] = pd.to_datetime(ENTITIES["scheduled"], utc=True, format="ISO8601")


def _as_of_join(world: World):
    """The training set by hand: pandas alone, no Feast."""
    left = ENTITIES.reset_index(drop=True).reset_index(names="row").sort_values("scheduled", kind="stable")
    for table, key, ttl in (("weather", "origin", "6h"), ("punctuality", "carrier", "3D")):
        events = pd.concat(map(pd.read_parquet, sorted((world.state / table).glob("*.parquet"))))
        events = events.rename(columns={"event_timestamp": "scheduled"}).sort_values("scheduled")
        events["scheduled"] = events["scheduled"].astype("datetime64[ns, UTC]")
        left = pd.merge_asof(left, events, on="scheduled", by=key, tolerance=pd.to_timedelta(ttl))
    joined = left.sort_values("row").reset_index(drop=True)
    return joined[[*ENTITIES.columns, *FEATURES]].astype({"gusts": "float64"})


def _training_set(**options):
    @dg.asset(io_manager_key="files")
    def training_entities() -> dg.Output[pd.DataFrame]:
        stored = Dataset(
            path="entities.parquet", md5="0123456789abcdef", repo="/data", dagster_asset="training_entities"
        )
        return dg.Output(ENTITIES, metadata=stored.to_metadata())

    training_set = training_set_asset(
        name="training_set", feature_service="delay", entities=training_entities.key, timestamp_column="scheduled",
        io_manager_key="files", **options,
    )  # fmt: skip
    return [training_entities, training_set]


def _metadata(result: dg.ExecuteInProcessResult, asset: str):
    [event] = result.asset_materializations_for_node(asset)
    return event.metadata


def _record(kind, metadata):
    found = kind.from_metadata(metadata)
    assert found is not None
    return found


def test_definitions_load_without_feast_and_a_second_load_costs_milliseconds(world, cold_python):
    script = """
        import json, sys, time
        from dagster_mlops.feast import feature_view_assets
        start = time.process_time()
        assets = feature_view_assets(repo=sys.argv[1])
        seconds = time.process_time() - start
        print(json.dumps([seconds, sorted({"feast", "pandas", "numpy", "pyarrow"} & set(sys.modules))]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(world.repo)], capture_output=True, text=True
    )
    seconds, imported = json.loads(done.stdout)
    assert imported == [] and seconds < 0.5
    assert (world.repo / ".dagster_mlops" / ".gitignore").read_text() == "*\n"
    assert not list(world.repo.rglob("__pycache__"))


def test_an_asset_carries_what_feast_says_of_its_feature_view(world):
    specs = {asset.key.to_user_string(): next(iter(asset.specs)) for asset in world.views}
    assert set(specs) == {"origin_weather", "carrier_punctuality", "traffic"}
    weather = specs["origin_weather"]
    assert weather.description == "Hourly weather at the origin." and weather.group_name == "features"
    assert weather.kinds == {"feast"} and weather.owners == ["team:data-team"] and weather.tags["feast/tier"] == "gold"
    assert specs["carrier_punctuality"].owners == ["ml@example.com"]
    columns = {column.name: column.type for column in weather.metadata["dagster/column_schema"].columns}
    assert columns == {
        "origin": "join key, string", "event_timestamp": "timestamp",
        "wind": "Float64", "temp": "Float64", "gusts": "Int64", "sky": "String",
    }  # fmt: skip


def test_an_unknown_view_is_refused_at_load(world):
    with pytest.raises(FeatureError, match=r"no feature view wether \(it has: carrier_punctuality, origin_weather"):
        feature_view_assets(repo=world.repo, views=["wether"])


def test_a_changed_environment_variable_is_read_again(world, monkeypatch):
    monkeypatch.setenv("FLIGHTS_STATE", "/elsewhere")
    assert load_repository(world.repo).views[0].source.startswith("/elsewhere/")
    monkeypatch.undo()
    start = time.monotonic()
    assert load_repository(world.repo).views[0].source.startswith(str(world.state))
    assert time.monotonic() - start < 1, "what another environment said is remembered"


def test_a_repository_that_does_not_import_is_refused_with_feasts_message_and_the_place(tmp_path):
    (tmp_path / "feature_store.yaml").write_text(DUCKDB + "registry: registry.db\n")
    (tmp_path / "views.py").write_text("from feast import Entity\nEntity(join_keys=['origin'])\n")
    with pytest.raises(FeatureError, match=r"TypeError: .*'name' \(at .*views\.py:2\)"):
        feature_view_assets(repo=tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (DUCKDB + "registry: {registry_type: sql, path: 'sqlite:///r.db'}\n", "absolute path"),
        (DUCKDB + "registry: ${NOT_SET_ANYWHERE}/r.db\n", "NOT_SET_ANYWHERE"),
        ("offline_store: {type: duckdb}\n", "names no project"),
        (None, "is not a Feast repository"),
    ],
)  # fmt: skip
def test_settings_that_go_wrong_later_are_refused_with_the_edit_that_mends_them(tmp_path, settings, message):
    if settings:
        (tmp_path / "feature_store.yaml").write_text(settings)
    with pytest.raises(FeatureError, match=message):
        FeastResource(repo=str(tmp_path)).store()


def test_a_month_is_materialized_and_says_what_was_in_it(world):
    result = world.materialize("origin_weather", month="2013-02-01")
    metadata = _metadata(result, "origin_weather")
    february = [t for t in pd.date_range("2013-01-01", "2013-03-31 23:00", freq="10h") if t.month == 2]
    assert metadata["dagster/row_count"].value == 2 * len(february)
    assert metadata["feast/online_writes"].value == 2
    assert (
        metadata["feast/null_share/temp"].value == pytest.approx(0.2, abs=0.01)
        and metadata["feast/null_share/wind"].value == 0.0
    )
    record = _record(FeatureView, metadata)
    assert (record.start, record.end) == ("2013-02-01T00:00:00+00:00", "2013-03-01T00:00:00+00:00")
    assert record.dagster_partition == "2013-02-01"
    assert readable_by_others(world.state / "registry.db", world.state / "online.db") == []


def test_an_older_month_after_a_newer_one_leaves_the_newer_values_online(world):
    world.materialize("traffic", month="2013-03-01")
    newest = world.online("traffic", "departures", origin=["EWR", "JFK"])
    world.materialize("traffic", month="2013-01-01")
    assert world.online("traffic", "departures", origin=["EWR", "JFK"]) == newest == [12, 25]


def test_unchanged_rows_keep_the_data_version_and_changed_rows_do_not(world):
    def version() -> str:
        [event] = world.materialize("traffic", month="2013-02-01").asset_materializations_for_node("traffic")
        return event.tags["dagster/data_version"]

    first, again = version(), version()
    file = world.state / "traffic" / "2013-02.parquet"
    before = pd.read_parquet(file)
    before.assign(departures=before["departures"] + 1).to_parquet(file, coerce_timestamps="us")
    changed = version()
    before.to_parquet(file, coerce_timestamps="us")
    assert first == again == version() != changed


def test_one_run_over_many_months_says_of_each_what_was_in_it(world):
    span = {"dagster/asset_partition_range_start": "2013-01-01", "dagster/asset_partition_range_end": "2013-03-01"}
    result = world.materialize("origin_weather", tags=span)
    events = {e.partition: e.metadata for e in result.asset_materializations_for_node("origin_weather")}
    assert {month: _record(FeatureView, m).start[:10] for month, m in events.items()} == {k: k for k in events}
    assert len(events) == 3 and sum(m["dagster/row_count"].value for m in events.values()) == 432


def test_without_partitions_everything_up_to_now_is_materialized(world):
    [asset] = feature_view_assets(repo=world.repo, views=["carrier_punctuality"])
    metadata = _metadata(world.materialize("carrier_punctuality", assets=[asset]), "carrier_punctuality")
    assert metadata["dagster/row_count"].value == 270 and str(metadata["feast/start"].value).startswith(
        "2013-01-01T00:00"
    )
    assert world.online("carrier_punctuality", "late_rate", carrier=["AA"]) == [0.089]


def test_a_source_that_is_not_there_is_an_error_that_names_it(world):
    (world.state / "traffic").rename(world.state / "gone")
    try:
        with pytest.raises(
            FeatureError,
            match=r"'traffic' cannot read its source .*/traffic(.|\n)*Materialize the assets that write it",
        ):
            world.materialize("traffic", month="2013-01-01")
    finally:
        (world.state / "gone").rename(world.state / "traffic")


def test_the_training_set_equals_a_hand_written_as_of_join_row_for_row(world):
    result = world.materialize("training_entities", "training_set", assets=_training_set())
    found = result.output_for_node("training_set")
    expected = _as_of_join(world)
    pd.testing.assert_frame_equal(found.fillna({"sky": "-"}), expected.fillna({"sky": "-"}))
    assert list(found["flight"]) == list(ENTITIES["flight"]) and list(found.index) == list(range(len(ENTITIES)))
    assert found["wind"].isna().any() and found["wind"].notna().any()
    by_flight = found.set_index("flight")
    assert by_flight.loc["f5", "wind"] == 0.0 and pd.isna(by_flight.loc["f6", "wind"])  # at the ttl, and just after


def test_a_training_set_knows_its_entities_its_views_and_their_definitions(world):
    world.materialize("origin_weather", month="2013-01-01")
    assets = [*_training_set(deps=world.views), *world.views]
    metadata = _metadata(world.materialize("training_entities", "training_set", assets=assets), "training_set")
    record = _record(TrainingSet, metadata)
    assert record.entity_hash == "0123456789abcdef" and record.rows == len(ENTITIES) and len(record.registry_hash) == 64
    upstream = {str(ref) for ref in record.upstream}
    assert "dvc:dataset:entities.parquet@0123456789abcdef" in upstream
    assert any(ref.startswith("feast:feature_view:flights/origin_weather@") for ref in upstream)
    assert metadata["feast/features"].value == FEATURES
    assert FeastTool().resolve(record.ref) == Accessible(record)


@pytest.mark.thorough
def test_online_features_come_in_the_services_order_in_every_process(world):
    world.materialize("origin_weather", month="2013-03-01")
    script = """
        import json, sys
        import pandas as pd
        from dagster_mlops.feast import FeastResource
        rows = pd.DataFrame({"origin": ["JFK", "XXX", "EWR"], "carrier": "AA", "extra": [1, 2, 3]}, index=[7, 8, 9])
        frame = FeastResource(repo=sys.argv[1]).online_features(rows, "delay")
        print(json.dumps([list(frame.columns), frame["wind"].isna().tolist(), list(frame.index)]))
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), str(world.repo)]
    other = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "1"}
    )
    told = json.loads(other.stdout.splitlines()[-1])
    assert told == [["origin", "carrier", "extra", *FEATURES], [False, True, False], [0, 1, 2]]


def test_a_missing_key_column_and_a_column_named_like_a_feature_are_refused(world):
    with pytest.raises(FeatureError, match=r"needs the columns origin, .*it has: flight"):
        world.feast.historical_features(ENTITIES.drop(columns="origin"), "delay", timestamp_column="scheduled")
    with pytest.raises(FeatureError, match="already has columns of 'delay': wind"):
        world.feast.historical_features(ENTITIES.assign(wind=1), "delay", timestamp_column="scheduled")
    with pytest.raises(FeatureError, match=r"no feature service 'dealy' \(it has: delay\)"):
        world.feast.historical_features(ENTITIES, "dealy")


def test_no_entity_rows_give_no_rows_with_the_same_columns(world):
    empty = world.feast.historical_features(ENTITIES.head(0), "delay", timestamp_column="scheduled")
    assert list(empty.columns) == [*ENTITIES.columns, *FEATURES] and empty["wind"].dtype == "float64"


def test_parity_holds_after_materializing_and_breaks_when_the_online_store_is_wrong(world):
    check = online_offline_parity_check(asset="training_set", feature_service="delay")
    assets = [*_training_set(), check]
    for view, month in (("origin_weather", "2013-03-01"), ("carrier_punctuality", "2013-03-01")):
        world.materialize(view, month=month)

    def verdict():
        names = ["training_entities", "training_set"]
        [evaluation] = world.materialize(*names, assets=assets, raise_on_error=False).get_asset_check_evaluations()
        return evaluation

    good = verdict()
    assert good.passed and good.metadata["feast/compared_values"].value == 2 * 4 + 3, good.metadata
    wrong = pd.DataFrame({"origin": ["JFK"], "event_timestamp": [pd.Timestamp("2013-03-31", tz="UTC")], "wind": [-9.0],
                          "temp": [1.0], "gusts": [1], "sky": ["clear"]})  # fmt: skip
    world.feast.store().write_to_online_store("origin_weather", wrong)
    bad = verdict()
    assert not bad.passed and bad.blocking
    rows = {row.data["feature"]: row.data for row in bad.metadata["feast/parity"].records}
    assert rows["origin_weather:wind"]["different"] == 1 and "online -9.0" in rows["origin_weather:wind"]["example"]
    world.materialize("origin_weather", month="2013-03-01")
    assert verdict().passed


def test_a_training_set_with_gaps_or_repeated_rows_fails_its_checks(world):
    def evaluate(**options):
        assets = [*_training_set(), *training_set_checks(asset="training_set", **options)]
        result = world.materialize("training_entities", "training_set", assets=assets, raise_on_error=False)
        return {e.check_name: e for e in result.get_asset_check_evaluations()}

    good = evaluate(max_null_share=0.6, unique=["flight"])
    assert good["null_shares"].passed and good["no_duplicates"].passed
    bad = evaluate(max_null_share={"wind": 0.01}, unique=["origin", "scheduled"])
    assert not bad["null_shares"].passed and "wind (" in bad["null_shares"].description
    assert bad["no_duplicates"].metadata["feast/duplicates"].value >= 1
    broken = evaluate(max_null_share={"no_such_column": 0.1})
    assert not broken["null_shares"].passed and "no_such_column" in broken["null_shares"].metadata["feast/error"].value


def _window(world, view):
    """The record of a view's first window, after materializing it."""
    return _record(FeatureView, _metadata(world.materialize(view, month="2013-01-01"), view))


def test_an_apply_is_skipped_until_the_definitions_change_and_keeps_what_is_known_of_a_view(world):
    traffic, weather = (_window(world, view) for view in ("traffic", "origin_weather"))
    record = FeastTool().resolve(weather.ref)
    assert record == Accessible(weather) and weather.start.startswith("2013-01-01")
    assets = _training_set()
    trained = world.materialize("training_entities", "training_set", assets=assets)
    training = _record(TrainingSet, _metadata(trained, "training_set"))
    assert world.feast.apply() is False

    definitions = world.repo / "features.py"
    without_traffic = re.sub(r"\ntraffic = FeatureView\((.|\n)*?\n\)", "", DEFINITIONS)
    definitions.write_text(without_traffic.replace("timedelta(hours=6)", "timedelta(hours=7)"))
    try:
        assert world.feast.apply() is True
        resolver = FeastTool()
        assert resolver.resolve(weather.ref) == record
        assert world.feast.store().get_feature_view("origin_weather").materialization_intervals
        assert resolver.resolve(training.ref) == Accessible(training), "what it was made from is kept"
        gone = resolver.resolve(traffic.ref)
        assert isinstance(gone, Deleted) and gone.record == traffic
    finally:
        definitions.write_text(DEFINITIONS)
        world.feast.apply()
    assert FeastTool().resolve(training.ref) == Accessible(training)


def test_a_lost_registry_is_inaccessible_and_a_damaged_record_faulty(world, monkeypatch, tmp_path):
    ref = _window(world, "origin_weather").ref
    assert isinstance(FeastTool().resolve(Ref("feast", "feature_view", "x/y", at=str(tmp_path))), Inaccessible)
    monkeypatch.setenv("FLIGHTS_STATE", str(tmp_path))
    lost = FeastTool().resolve(ref)
    assert isinstance(lost, Inaccessible) and "registry.db" in lost.reason and not list(tmp_path.iterdir())
    shutil.copy(world.state / "registry.db", tmp_path / "registry.db")
    with sqlite3.connect(tmp_path / "registry.db") as db:
        name = f"dagster_mlops/feature_view/{ref.id}"
        [(text,)] = db.execute(
            "select saved_dataset_proto from saved_datasets where saved_dataset_name = ?", [name]
        ).fetchall()
        db.execute(
            "update saved_datasets set saved_dataset_proto = ? where saved_dataset_name = ?",
            [text.replace(b'"schema":2', b'"schema":7'), name],
        )
    db.close()
    assert isinstance(FeastTool().resolve(ref), Faulty)


def test_a_repository_becomes_assets_in_yaml(world):
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(
            component_cls=FeatureRepositoryComponent,
            defs_path="features",
            defs_yaml_contents={
                "type": "dagster_mlops.feast.FeatureRepositoryComponent",
                "attributes": {
                    "repo": str(world.repo),
                    "views": ["origin_weather"],
                    "partitions": {"every": "month", "start": "2013-01-01", "end": "2013-04-01"},
                    "deps": {"origin_weather": ["features/weather"]},
                    "group_name": "features",
                    "training_sets": [
                        {
                            "name": "training_set",
                            "feature_service": "delay",
                            "entities": "training_entities",
                            "io_manager_key": "io_manager",
                        }
                    ],
                },
            },
        )
        with sandbox.load_component_and_build_defs(path) as (_, built):
            defs = dg.Definitions.merge(built, dg.Definitions([dg.AssetSpec("training_entities")]))
            graph = defs.resolve_asset_graph()
            assert graph.get(dg.AssetKey("origin_weather")).parent_keys == {dg.AssetKey(["features", "weather"])}
            training = graph.get(dg.AssetKey("training_set"))
            assert training.parent_keys == {dg.AssetKey("origin_weather"), dg.AssetKey("training_entities")}
            assert defs.resources and defs.resources["feast"].repo == str(world.repo)
