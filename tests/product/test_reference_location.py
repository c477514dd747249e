"""The reference code location on the real flights: it loads cheaply, sees nothing from the future, and loses no row."""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from dagster_mlops.feast import FeastResource
from tests.support import known_warnings

if TYPE_CHECKING:
    from assets import data, features, training
    from resources import FEATURE_REPO, STATE

ROOT = Path(__file__).resolve().parents[2]
TOOLS = {"mlflow", "feast", "evidently", "bentoml", "dvc", "kubernetes", "dagster_k8s", "pandas", "sklearn"}

pytestmark = [pytest.mark.usefixtures("warm_tools"), *known_warnings.DEPRECATED, *known_warnings.UNCLOSED]


@pytest.fixture(scope="module", autouse=True)
def _location(warm_tools: None) -> Iterator[None]:
    """Import the location for these tests: that asks Feast for its definitions, which takes seconds."""
    global FEATURE_REPO, STATE, data, features, training
    with TemporaryDirectory(prefix="dagster-mlops-") as state, pytest.MonkeyPatch.context() as patch:
        # The location reads this when it is imported, and writes below it.
        patch.setenv("DAGSTER_MLOPS_STATE", state)
        patch.syspath_prepend(ROOT)
        from assets import data, features, training
        from resources import FEATURE_REPO, STATE

        yield


def run(*command: str, **environment: str) -> subprocess.CompletedProcess:
    script = str(Path(sys.executable).with_name(command[0]))
    return subprocess.run(
        [script, *command[1:]],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="module")
def flown() -> pd.DataFrame:
    return data.with_instants(data.source_table("flights"), data.source_table("airports"))


@pytest.mark.usefixtures("cold_python")
@pytest.mark.parametrize("deployment", ["local", "cluster"])
def test_loading_the_location_imports_no_tool(deployment):
    code = f"import assets.definitions, sys; print(sorted({TOOLS} & set(sys.modules)))"
    done = run("python", "-c", code, DAGSTER_MLOPS_RESOURCES=deployment)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.usefixtures("cold_python")
def test_loading_the_location_leaves_the_work_to_the_steps():
    """A module costs a fifth of a millisecond, and half a one for each dataclass that it compiles."""
    work = {f"dagster_mlops.{module}" for module in (
        "dvc.history.comparison", "dvc.history.versions", "evaluation.evaluate", "evaluation.measure",
        "evaluation.plots", "evaluation.promotion_evidence", "evidently.performance", "evidently.quality",
        "feast.offline.source", "feast.online.reading", "feast.online.serving", "feast.rebuild.replay",
        "mlflow.registry.models", "mlflow.runs.lookup", "mlflow.training.run_facts", "mlflow.training.step",
        "monitoring.performance.judgement", "monitoring.plots", "monitoring.quality.examine",
        "serving.golden.golden_set", "serving.local.blue_green", "serving.local.envoy",
        "serving.local.state",
    )}  # fmt: skip
    assert all(importlib.util.find_spec(module) for module in work)
    code = f"""
import assets.definitions, sys
print(sorted({work} & set(sys.modules)))
ours = [module for name, module in sys.modules.items() if name.startswith("dagster_mlops.")]
classes = {{thing for module in ours for thing in vars(module).values() if isinstance(thing, type)}}
print(sorted(cls.__name__ for cls in classes if "__dataclass_params__" in vars(cls)))
"""
    done = run("python", "-c", code)
    modules, dataclasses = done.stdout.splitlines()
    assert modules == "[]", done.stdout + done.stderr
    # What the Feast repository is described with, tables of remedies, and the rule of the promotion.
    described = {"Advice", "Definition", "OnDemandViewDefinition", "Repository", "RepositoryConfig", "ViewDefinition"}
    described |= {"Better", "Improvement"}
    assert set(ast.literal_eval(dataclasses)) <= described


@pytest.mark.parametrize(
    "command",
    [
        ["dagster", "definitions", "validate", "-w", "workspace.yaml"],
        ["dg", "check", "defs"],
        ["dg", "check", "toml"],
        ["dg", "list", "components"],
    ],
    ids=" ".join,
)
def test_dagsters_own_checks_are_clean(command, tmp_path):
    done = run(*command, DAGSTER_HOME=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Error" not in done.stderr


def test_the_sample_instance_and_the_cloud_file_load(tmp_path):
    from dagster_cloud_cli.config.models import load_dagster_cloud_yaml

    shutil.copy(ROOT / "resources" / "dagster.yaml", tmp_path)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.run_monitoring_enabled
    [location] = load_dagster_cloud_yaml((ROOT / "dagster_cloud.yaml").read_text()).locations
    assert location.code_source and location.code_source.module_name == "assets.definitions"


def test_arrivals_come_after_departures_and_the_time_in_the_air(flown):
    landed = flown.dropna(subset=["arrived"])
    taxiing = (landed["arrived"] - landed["departed"]).dt.total_seconds() / 60 - landed["air_time"]
    assert taxiing.min() >= 0
    assert taxiing.max() < 300


def test_every_flight_belongs_to_the_month_of_its_partition(flown):
    starts = pd.to_datetime(flown["scheduled"]).dt.tz_convert(data.NEW_YORK).dt.month
    assert (starts == flown["month"]).all()


@pytest.mark.parametrize(
    "cutoff",
    [
        "2013-02-09 17:40",
        pytest.param("2013-02-13 23:59", marks=pytest.mark.thorough),
        pytest.param("2013-02-20 06:15", marks=pytest.mark.thorough),
    ],
)
def test_no_feature_knows_what_happens_after_its_time_stamp(flown, cutoff):
    """Garble each outcome that was not known at the cutoff: up to it, every feature must stay what it is."""
    now, month = pd.Timestamp(cutoff, tz=data.NEW_YORK).tz_convert("UTC"), "2013-02-01"
    window = flown[flown["month"].isin([1, 2])]
    garbled = window.copy()
    noise = np.random.default_rng(1)
    for known, outcome in (("departed", "dep_delay"), ("arrived", "arr_delay")):
        unknown = ~(window[known] <= now)  # includes flights that never depart or arrive
        garbled.loc[unknown, outcome] = noise.integers(-30, 600, unknown.sum())
        later = now + pd.to_timedelta(noise.integers(1, 10_000, unknown.sum()), unit="m")
        garbled.loc[unknown, known] = later.astype("datetime64[us, UTC]")
    tables = (features.carrier_table, features.route_table, features.congestion_table)
    for table in tables:
        honest, fooled = (
            frame[frame["event_timestamp"] <= now].sort_values(list(frame.columns[:2]), ignore_index=True)
            for frame in (table(window, month), table(garbled, month))
        )
        assert len(honest) > 500
        keys = list(honest.columns[:2])
        pd.testing.assert_frame_equal(honest, fooled.merge(honest[keys], on=keys, how="right"))


def test_weather_is_not_used_before_it_was_published():
    weather = data.source_table("weather")
    observed = pd.to_datetime(weather["time_hour"], utc=True)
    assert ((features.weather_table(weather)["event_timestamp"] - observed) >= pd.Timedelta("1h")).all()


def test_the_model_sees_no_outcome(flown):
    """Nothing but the feature service and what a caller knows gets into the model."""
    entities = training.departures(data.source_table("flights").head(1000), data.source_table("airports"))
    outcomes = {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "departed", "arrived", "late"}
    assert not outcomes & set(training.model_inputs(entities).columns)


@pytest.fixture(scope="module")
def year(flown) -> dict[str, pd.DataFrame]:
    """The feature tables of the whole year, where the feature repository looks for them."""
    weather = data.source_table("weather")
    tables: dict[str, list[pd.DataFrame]] = {}
    for number, month in enumerate(data.MONTHS.get_partition_keys(), start=1):
        window = flown[flown["month"].isin([number - 1, number])]
        for name, table in {
            "carrier_punctuality": features.carrier_table(window, month),
            "route_punctuality": features.route_table(window, month),
            "origin_congestion": features.congestion_table(window, month),
            "origin_weather": features.weather_table(weather[weather["month"] == number]),
        }.items():
            tables.setdefault(name, []).append(table)
            folder = STATE / "data" / "source" / name
            folder.mkdir(parents=True, exist_ok=True)
            table.to_parquet(folder / f"{month}.parquet", index=False)
    planes = features.plane_table(data.source_table("planes"))
    (STATE / "data" / "source" / "plane_attributes").mkdir(parents=True)
    planes.to_parquet(STATE / "data" / "source" / "plane_attributes" / "planes.parquet", index=False)
    return {**{name: pd.concat(parts) for name, parts in tables.items()}, "plane_attributes": planes}


VIEWS = {
    "origin_weather": ("origin", timedelta(hours=3)),
    "carrier_punctuality": ("carrier", timedelta(hours=3)),
    "route_punctuality": ("route", timedelta(days=2)),
    "origin_congestion": ("origin", timedelta(hours=1)),
    "plane_attributes": ("tailnum", timedelta(days=1000)),
}


def as_of(entities: pd.DataFrame, tables: dict[str, pd.DataFrame], *, expire: bool = True) -> pd.DataFrame:
    """The training set by hand: for each row the last value at or before its time, not older than the view's ttl."""
    joined = entities.assign(row=range(len(entities))).sort_values("event_timestamp", kind="stable")
    for view, (key, ttl) in VIEWS.items():
        table = tables[view].sort_values("event_timestamp", kind="stable")
        tolerance = pd.to_timedelta(ttl) if expire else None
        joined = pd.merge_asof(joined, table, on="event_timestamp", by=key, tolerance=tolerance)
    return joined.sort_values("row", ignore_index=True).drop(columns="row")


@pytest.mark.thorough
def test_the_training_set_is_a_hand_written_as_of_join_for_all_flights_in_order(year):
    flights = data.source_table("flights")
    entities = training.departures(flights, data.source_table("airports"))
    feast = FeastResource(repo=FEATURE_REPO)
    feast.apply()

    found = feast.historical_features(entities, "arrival_delay")

    assert len(found) == 336_776
    assert (found["flight_id"] == flights["flight_id"]).all()
    wanted = as_of(entities, year)
    wanted["departure_minute"] = (flights["sched_dep_time"] // 100 * 60 + flights["sched_dep_time"] % 100).astype(float)
    wanted["departure_weekday"] = pd.to_datetime(flights[["year", "month", "day"]]).dt.dayofweek.astype(float)
    wanted["planned_speed"] = wanted["distance"] / wanted["scheduled_minutes"]
    pd.testing.assert_frame_equal(found[wanted.columns], wanted, check_dtype=False, rtol=0, atol=0)


@pytest.mark.thorough
def test_online_features_equal_offline_ones_for_1000_sampled_entities(year):
    feast = FeastResource(repo=FEATURE_REPO)
    feast.apply()
    start, end = (datetime(*day, tzinfo=UTC) for day in ((2012, 12, 30), (2013, 12, 20, 17)))
    feast.store().materialize(start, end)
    entities = training.departures(data.source_table("flights"), data.source_table("airports"))
    sample = entities.sample(1000, random_state=3).drop(columns=["late"]).reset_index(drop=True)

    online = feast.online_features(sample.drop(columns=["event_timestamp"]), "arrival_delay")
    now = sample.assign(event_timestamp=pd.Timestamp(end).as_unit("us"))
    offline, unexpired = as_of(now, year, expire=False), as_of(now, year)

    names = [name for view in VIEWS for name in year[view].columns if name not in ("event_timestamp", VIEWS[view][0])]
    assert len(online) == 1000
    pd.testing.assert_frame_equal(online[names], offline[names], check_dtype=False, rtol=0, atol=0)
    # Past a view's ttl, Feast's SQLite store still answers, e.g. for routes that nobody flies any more.
    assert (online[names].notna() & unexpired[names].isna()).any(axis=1).mean() < 0.01
