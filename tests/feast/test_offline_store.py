"""The as-of offline store, used as Feast's users do: same values as Feast's own DuckDB store, and no row lost."""

import os
import subprocess
import sys
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from zoneinfo import ZoneInfo

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from feast import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    PushSource,
    RepoConfig,
    RequestSource,
    ValueType,
)
from feast.data_format import DeltaFormat, ParquetFormat
from feast.data_source import PushMode
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.feature_logging import LoggingConfig
from feast.infra.offline_stores.file_source import FileLoggingDestination, SavedDatasetFileStorage
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Bool, Float64, String
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.point_in_time.writing import write
from tests.support import feast_writers as writers
from tests.support import known_warnings
from tests.support.warm_python import processes

pytestmark = [pytest.mark.usefixtures("warm_tools"), *known_warnings.DEPRECATED, *known_warnings.FEAST_EXPERIMENTAL]

STORE = "dagster_mlops.feast.offline_store.AsofOfflineStore"
EXAMPLES = int(os.environ.get("DAGSTER_MLOPS_EXAMPLES", "15"))
NOON = datetime(2024, 3, 10, 12, tzinfo=UTC)

driver = Entity(name="driver", join_keys=["driver"], value_type=ValueType.INT64)
city = Entity(name="city", join_keys=["city"], value_type=ValueType.STRING)


def at(*minutes: float | None, tz: str | None = "UTC") -> pd.Series:
    """Moments so many minutes after noon, to the microsecond."""
    moments = pd.Series([None if m is None else NOON + timedelta(minutes=m) for m in minutes], dtype="object")
    known = pd.to_datetime(moments, utc=True).astype("datetime64[us, UTC]")
    return known.dt.tz_localize(None) if tz is None else known.dt.tz_convert(tz)


def feast_store(
    folder: Path, offline: str | dict, objects: list
) -> Any:  # a FeatureStore, with the answers of the store under test
    offline = {"type": offline} if isinstance(offline, str) else offline
    config = RepoConfig(
        project="p",
        provider="local",
        registry=str(folder / f"{offline['type']}.db"),
        online_store={"type": "sqlite", "path": str(folder / "online.db")},
        offline_store=offline,
        entity_key_serialization_version=3,
        repo_path=folder,
    )
    store = FeatureStore(config=config)
    store.apply(objects)
    return store


def view(source: Any, *, ttl: timedelta = timedelta(0), name: str = "trips", entities=(driver,), **types) -> Any:
    schema = [Field(name=feature, dtype=dtype) for feature, dtype in (types or {"rate": Float64}).items()]
    return FeatureView(name=name, entities=list(entities), ttl=ttl, schema=schema, source=source)


def trips(folder: Path, frame: pd.DataFrame, name: str = "trips", **more) -> FileSource:
    path = folder / f"{name}.parquet"
    frame.to_parquet(path, index=False)
    return FileSource(name=name, path=str(path), file_format=ParquetFormat(), timestamp_field="event_timestamp", **more)


# --- the same values as Feast


@st.composite
def worlds(draw):
    """Feature rows of two views and entity rows, on a grid so coarse that ties and exact bounds are frequent."""
    minute = st.integers(0, 6).map(lambda i: i * 10.0)
    drivers, cities = st.sampled_from([1, 1, 1, 2, None]), st.sampled_from(["a", "a", "b", None])
    tz = st.sampled_from(["UTC", None, "America/New_York"])
    tables = []
    for keys in (("driver",), ("driver", "city")):
        # Of rows that agree in key, instant and creation none is right, so there are none.
        rows = draw(st.lists(st.tuples(drivers, cities, minute, minute), max_size=20, unique_by=lambda row: row[:4]))
        rows = list({tuple(row[:1] if len(keys) == 1 else row[:2]) + row[2:]: row for row in rows}.values())
        frame = pd.DataFrame(rows, columns=pd.Index(["driver", "city", "m", "c"]))
        frame["event_timestamp"] = at(*frame["m"], tz=draw(tz)) if rows else at(0)[:0]
        frame["created"] = at(*frame["c"], tz=draw(tz)) if rows else at(0)[:0]
        frame["rate"] = [None if draw(st.booleans()) and i % 3 == 0 else float(i) for i in range(len(rows))]
        frame["driver"] = frame["driver"].astype("Int64")
        frame["city"] = frame["city"].astype("string")
        frame["rate"] = frame["rate"].astype("float64")
        tables.append(frame[["driver", "city", "event_timestamp", "created", "rate"]])
    asked = draw(st.lists(st.tuples(drivers, cities, minute), min_size=8, max_size=24))
    entities = pd.DataFrame(asked, columns=pd.Index(["driver", "city", "m"]))
    entities["event_timestamp"] = at(*entities.pop("m"), tz=draw(tz))
    entities["driver"] = entities["driver"].astype("Int64")
    entities["city"] = entities["city"].astype("string")
    entities["row"] = range(len(entities))
    ttls = [timedelta(minutes=draw(st.sampled_from([0, 10, 30, 1000]))) for _ in tables]
    return tables, entities, ttls, draw(st.booleans())


@given(world=worlds())
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # a run of Feast's takes too long to look for the smallest example
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_every_value_is_the_one_of_feasts_own_duckdb_store(world, tmp_path_factory):
    tables, entities, ttls, known_only = world
    folder = tmp_path_factory.mktemp("world")
    sources = [trips(folder, t, f"t{i}", created_timestamp_column="created") for i, t in enumerate(tables)]
    objects = [
        driver,
        city,
        view(sources[0], ttl=ttls[0], name="one"),
        view(sources[1], ttl=ttls[1], name="two", entities=[driver, city]),
    ]
    answers = []
    for kind in ("duckdb", {"type": STORE, "chunk_rows": 5}):
        job = feast_store(folder, kind, objects).get_historical_features(
            entity_df=entities.copy(),
            features=["one:rate", "two:rate"],
            full_feature_names=True,
            filter_by_created_timestamp=known_only,
        )
        answers.append(job.to_df())
    theirs, ours = answers
    assert list(ours["row"]) == list(entities["row"])  # nothing lost, nothing moved
    pd.testing.assert_frame_equal(
        theirs.sort_values("row", ignore_index=True)[["row", "one__rate", "two__rate"]],
        ours[["row", "one__rate", "two__rate"]],
        check_dtype=False,
    )


# --- what Feast's own stores lose or cannot do


def rates(**more):
    """Two drivers' rates, the first one's noon value corrected later."""
    return pd.DataFrame(
        {
            "driver": [1, 1, 1, 2],
            "event_timestamp": at(0, 0, 60, 0),
            "created": at(30, 5, 60, 0),
            "rate": [1.5, 1.0, 2.0, 9.0],
            **more,
        }
    )


def asked(*rows: tuple, **more) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=pd.Index(["driver", "m"]))
    return frame.assign(event_timestamp=at(*frame.pop("m")), **more)


def test_every_row_comes_back_in_its_order_with_its_columns_and_types(tmp_path):
    store = feast_store(tmp_path, STORE, [driver, view(trips(tmp_path, rates()))])
    entities = asked((2, 5), (1, 60), (7, 60), (1, 60), (None, 60), (1, -1))
    entities["driver"] = entities["driver"].astype("Int64")
    entities["kind"] = pd.Categorical(["a", "b", "a", None, "b", "a"])
    entities["tags"] = [["x"], [], None, ["y", "z"], ["x"], ["x"]]
    answer = store.get_historical_features(entity_df=entities, features=["trips:rate"])
    frame = answer.to_df()
    assert frame["rate"].fillna(-1).tolist() == [9.0, 2.0, -1, 2.0, -1, -1]
    assert frame["kind"].dtype == entities["kind"].dtype
    assert answer.to_arrow().column("driver").to_pylist() == [2, 1, 7, 1, None, 1]
    assert answer.to_arrow().column("tags").to_pylist()[3] == ["y", "z"]
    assert list(frame.columns) == [*entities.columns, "rate"]


def test_no_entity_row_gives_no_row_but_every_column(tmp_path):
    store = feast_store(tmp_path, STORE, [driver, view(trips(tmp_path, rates()))])
    answer = store.get_historical_features(entity_df=asked((1, 0))[:0], features=["trips:rate"])
    assert answer.to_df().empty
    assert answer.to_arrow().column_names == ["driver", "event_timestamp", "rate"]


def test_the_value_created_last_wins_unless_it_was_not_known_yet(tmp_path):
    source = trips(tmp_path, rates(), created_timestamp_column="created")
    store = feast_store(tmp_path, STORE, [driver, view(source)])

    def known(**more):
        job = store.get_historical_features(entity_df=asked((1, 10), (1, 40)), features=["trips:rate"], **more)
        return job.to_df()["rate"].tolist()

    assert known() == [1.5, 1.5]
    assert known(filter_by_created_timestamp=True) == [1.0, 1.5]


def test_a_late_correction_of_an_old_value_does_not_hide_the_newer_one(tmp_path):
    frame = pd.DataFrame(
        {
            "driver": 1,
            "event_timestamp": at(0, 10, 0),
            "created": at(0, 10, 30),
            "rate": [1.0, 2.0, 1.1],
        }
    )
    source = trips(tmp_path, frame, created_timestamp_column="created")
    store = feast_store(tmp_path, STORE, [driver, view(source, ttl=timedelta(minutes=40))])
    job = store.get_historical_features(
        entity_df=asked((1, 5), (1, 20), (1, 45), (1, 50), (1, 51)),
        features=["trips:rate"],
        filter_by_created_timestamp=True,
    )
    assert job.to_df()["rate"].fillna(-1).tolist() == [1.0, 2.0, 2.0, 2.0, -1]


def test_a_view_without_entities_gives_each_row_the_latest_value(tmp_path):
    source = trips(tmp_path, rates().query("driver == 1").drop(columns="driver"))
    store = feast_store(tmp_path, STORE, [view(source, entities=())])
    job = store.get_historical_features(entity_df=asked((1, 10), (2, 70)), features=["trips:rate"])
    assert job.to_df()["rate"].tolist()[1] == 2.0
    store.materialize(NOON - timedelta(days=1), NOON + timedelta(days=1))
    assert store.get_online_features(["trips:rate"], [{"anyone": 1}]).to_dict()["rate"] == [2.0]


def test_columns_renamed_keys_mapped_and_views_renamed_are_found(tmp_path):
    frame = rates().rename(columns={"rate": "conv", "event_timestamp": "seen"})
    path = tmp_path / "t.parquet"
    frame.to_parquet(path)
    source = FileSource(path=str(path), timestamp_field="seen", field_mapping={"conv": "rate"})
    trips_view = view(source)
    store = feast_store(tmp_path, STORE, [driver, trips_view])
    # Feast cannot compare a service's views of one name unless each has an alias.
    mine, other = trips_view.with_name("mine"), trips_view.with_name("other").with_join_key_map({"driver": "rider"})
    service = FeatureService(name="both", features=[mine, other])
    store.apply([service])
    job = store.get_historical_features(
        entity_df=asked((1, 70)).assign(rider=2), features=service, full_feature_names=True
    )
    assert job.to_df()[["mine__rate", "other__rate"]].values.tolist() == [[2.0, 9.0]]


@pytest.mark.parametrize("mode", ["pandas", "python"])
def test_on_demand_features_are_added_whole_or_piece_by_piece(tmp_path, mode):
    request = RequestSource(name="request", schema=[Field(name="weight", dtype=Float64)])
    trips_view = view(trips(tmp_path, rates()))

    def weighing(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"weighted": inputs["rate"] * inputs["weight"]})

    def weighing_lists(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"weighted": [r and r * w for r, w in zip(inputs["rate"], inputs["weight"], strict=True)]}

    weigh: Any = on_demand_feature_view(
        name="weighing",
        sources=[trips_view, request],
        schema=[Field(name="weighted", dtype=Float64)],
        mode=mode,
    )(weighing if mode == "pandas" else weighing_lists)

    store = feast_store(tmp_path, {"type": STORE, "chunk_rows": 2}, [driver, trips_view, weigh])
    entities = asked((1, 70), (2, 70), (1, 0), (2, 1), (1, 61), weight=[1.0, 2, 3, 4, 5])
    job = store.get_historical_features(entity_df=entities, features=["trips:rate", "weighing:weighted"])
    pieces = list(job.to_tables())
    assert [piece.num_rows for piece in pieces] == [2, 2, 1]
    assert pa.concat_tables(pieces).to_pandas()["weighted"].tolist()[::2] == [2.0, 3 * job.to_df()["rate"][2], 10.0]


# --- refused before anything runs


def test_what_is_missing_or_does_not_compare_is_told_before_anything_is_joined(tmp_path):
    store = feast_store(tmp_path, STORE, [driver, view(trips(tmp_path, rates()))])

    def ask(entities, features=("trips:rate",)):
        store.get_historical_features(entity_df=entities, features=list(features))

    with pytest.raises(FeatureError, match="joined by driver, which the entity rows lack"):
        ask(asked((1, 0)).rename(columns={"driver": "rider"}))
    with pytest.raises(FeatureError, match="driver is VARCHAR in the entity rows and BIGINT in source 'trips'"):
        ask(asked((1, 0)).astype({"driver": "string"}))
    with pytest.raises(FeatureError, match="two columns rate"):
        ask(asked((1, 0), rate=1.0))
    with pytest.raises(FeatureError, match="int is not a table"):
        ask(3)
    with pytest.raises(FeatureError, match="cannot be read"):
        ask("SELECT * FROM nowhere")
    rates(rate=["a", "b", "c", "d"]).to_parquet(tmp_path / "trips.parquet")
    with pytest.raises(FeatureError, match="trips:rate is declared as Float64"):
        ask(asked((1, 0)))
    rates().drop(columns="rate").to_parquet(tmp_path / "trips.parquet")
    with pytest.raises(FeatureError, match="lacks the columns rate"):
        ask(asked((1, 0)))
    (tmp_path / "trips.parquet").unlink()
    with pytest.raises(FeatureError, match="no file at"):
        ask(asked((1, 0)))


def test_a_feature_that_ends_like_a_column_of_pandas_is_answered(tmp_path):
    """Feast's own DuckDB store does not find features ending in ``_y`` of views with a creation time."""
    source = trips(tmp_path, rates(rate_y=[15.0, 10.0, 20.0, 90.0]), created_timestamp_column="created")
    store = feast_store(tmp_path, STORE, [driver, view(source, rate=Float64, rate_y=Float64)])
    job = store.get_historical_features(entity_df=asked((1, 5), (2, 5)), features=["trips:rate", "trips:rate_y"])
    assert job.to_df()[["rate", "rate_y"]].values.tolist() == [[1.5, 15.0], [9.0, 90.0]]


def test_what_an_answer_cannot_give_says_what_to_use(tmp_path):
    store = feast_store(tmp_path, STORE, [driver, view(trips(tmp_path, rates()))])
    job = store.get_historical_features(entity_df=asked((1, 0)), features=["trips:rate"])
    with pytest.raises(FeatureError, match="several queries"):
        job.to_sql()
    with pytest.raises(FeatureError, match="Name the location"):
        job.to_remote_storage()


def test_feasts_own_command_applies_and_materializes_without_dagster_having_run(tmp_path):
    trips(tmp_path, rates())
    (tmp_path / "feature_store.yaml").write_text(
        "project: p\nprovider: local\nregistry: registry.db\nonline_store: {type: sqlite, path: online.db}\n"
        f"offline_store:\n  type: {STORE}\n  memory_limit: 1GB\n  chunk_rows: 1000\n"
        "entity_key_serialization_version: 3\n"
    )
    (tmp_path / "features.py").write_text(
        "from datetime import timedelta\n"
        "from feast import Entity, FeatureView, Field, FileSource, ValueType\n"
        "from feast.data_format import ParquetFormat\n"
        "from feast.types import Float64\n"
        "driver = Entity(name='driver', join_keys=['driver'], value_type=ValueType.INT64)\n"
        "source = FileSource(name='trips', path='trips.parquet', file_format=ParquetFormat(),\n"
        "    timestamp_field='event_timestamp')\n"
        "trips = FeatureView(name='trips', entities=[driver], ttl=timedelta(days=2), source=source,\n"
        "    schema=[Field(name='rate', dtype=Float64)])\n"
    )
    program = (  # both commands in one process: Feast takes seconds to import
        "from feast.cli.cli import cli\n"
        "cli(['apply'], standalone_mode=False)\n"
        "cli(['materialize', '2024-03-10T00:00:00', '2024-03-11T00:00:00'], standalone_mode=False)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    store = FeatureStore(repo_path=str(tmp_path))
    online = store.get_online_features(["trips:rate"], [{"driver": 1}, {"driver": 2}]).to_dict()
    assert online["rate"] == [2.0, 9.0]
    job = store.get_historical_features(entity_df=asked((1, 70), (2, 70)), features=["trips:rate"])
    assert job.to_df()["rate"].tolist() == [2.0, 9.0]


# --- where sources are and what they are written in


def s3_options(endpoint: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }


@pytest.fixture(scope="module")
def s3(free_port):
    """An S3 endpoint in a process of its own, with a bucket."""
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(endpoint, timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        disk = pafs.S3FileSystem(
            endpoint_override=endpoint,
            access_key="test",
            secret_key="test",
            region="us-east-1",
            allow_bucket_creation=True,
        )
        disk.create_dir("lake")
        yield endpoint, disk
    finally:
        server.terminate()
        server.wait(20)


LAYOUTS = [
    "file",
    "file://",
    "relative",
    "folder",
    "glob",
    "csv",
    "delta",
    "s3 file",
    "s3 folder",
    "s3 glob",
    "s3 delta",
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sources_are_read_wherever_and_in_whatever_they_are(tmp_path, layout, request, monkeypatch):
    frame = rates()
    halves = [pa.Table.from_pandas(part, preserve_index=False) for part in (frame[:2], frame[2:])]
    name, more = layout.replace("://", "").replace(" ", "_"), {}
    place = str(tmp_path / name)
    if layout.startswith("s3"):
        endpoint, disk = request.getfixturevalue("s3")
        for variable, value in s3_options(endpoint).items():
            monkeypatch.setenv(variable, value)
        place, more = f"s3://lake/{name}", {"s3_endpoint_override": endpoint}
        folder = f"lake/{name}"
    else:
        disk, folder = pafs.LocalFileSystem(), place
    if layout in {"file", "file://", "relative", "s3 file"}:
        pq.write_table(pa.concat_tables(halves), f"{folder}.parquet", filesystem=disk)
        place = {"file://": f"file://{place}.parquet", "relative": f"{name}.parquet"}.get(layout, f"{place}.parquet")
    elif layout == "csv":
        place += ".csv"
        frame.to_csv(place, index=False)
    elif "delta" in layout:
        options = s3_options(more["s3_endpoint_override"]) if more else None
        for half in halves:
            write_deltalake(place, half, mode="append", storage_options=options)
    else:
        disk.create_dir(folder)
        for i, half in enumerate(halves):
            pq.write_table(half, f"{folder}/part-{i}.parquet", filesystem=disk)
        place += "/part-*.parquet" if "glob" in layout else ""
    kind = DeltaFormat() if "delta" in layout else None if layout == "csv" else ParquetFormat()
    source = FileSource(
        name="t",
        path=place,
        file_format=kind,
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
        **more,
    )
    store = feast_store(tmp_path, STORE, [driver, view(source)])
    job = store.get_historical_features(entity_df=asked((1, 70), (1, 1), (2, 0)), features=["trips:rate"])
    assert job.to_df()["rate"].tolist() == [2.0, 1.5, 9.0]
    store.materialize(NOON - timedelta(hours=1), NOON + timedelta(hours=2))
    online = store.get_online_features(["trips:rate"], [{"driver": 1}, {"driver": 2}]).to_dict()
    assert online["rate"] == [2.0, 9.0]


@pytest.mark.parametrize("where", ["local", "s3"])
@pytest.mark.parametrize("stamp", ["{:%Y-%m-%d %H:%M:%S}", "{:%Y-%m-%dT%H:%M:%S.%fZ}", "new york"])
def test_csv_columns_have_the_same_types_and_moments_on_disk_and_in_s3(tmp_path, where, stamp, request, monkeypatch):
    def written(moment: datetime) -> str:
        if stamp == "new york":
            return moment.astimezone(ZoneInfo("America/New_York")).isoformat()
        return stamp.format(moment)

    text = "driver,event_timestamp,note,zip,open,rate\n"
    text += f'1,{written(NOON)},"say ""no"", {{x}}\nor not",00501,true,1.5\n'
    text += f"2,{written(NOON + timedelta(minutes=30))},,10001,,\n"
    place, more = tmp_path / "t.csv", {}
    place.write_text(text)
    if where == "s3":
        endpoint, disk = request.getfixturevalue("s3")
        for variable, value in s3_options(endpoint).items():
            monkeypatch.setenv(variable, value)
        with disk.open_output_stream("lake/typed/t.csv") as stream:
            stream.write(text.encode())
        place, more = "s3://lake/typed/t.csv", {"s3_endpoint_override": endpoint}
    source = FileSource(name="t", path=str(place), timestamp_field="event_timestamp", **more)
    types = {"note": String, "zip": String, "open": Bool, "rate": Float64}
    store = feast_store(tmp_path, STORE, [driver, view(source, **cast(Any, types))])
    job = store.get_historical_features(
        entity_df=asked((1, 0), (1, -1), (2, 30), (2, 29)), features=[f"trips:{name}" for name in types]
    )
    told = [tuple(row[name] for name in types) for row in job.to_arrow().to_pylist()]
    nothing = (None, None, None, None)
    assert told == [('say "no", {x}\nor not', "00501", True, 1.5), nothing, (None, "10001", None, None), nothing]


@pytest.mark.parametrize("kind", ["query", "path", "s3", "arrow", "dataset", "polars", "lazy"])
def test_entity_rows_come_from_memory_a_file_or_a_query(tmp_path, kind, request, monkeypatch):
    store = feast_store(tmp_path, {"type": STORE, "chunk_rows": 100}, [driver, view(trips(tmp_path, rates()))])
    entities = asked(*[(1 + i % 2, i) for i in range(350)], row=range(350))
    path = tmp_path / "entities.parquet"
    table = pa.Table.from_pandas(entities, preserve_index=False)
    pq.write_table(table, path, row_group_size=40)
    if kind == "s3":
        endpoint, disk = request.getfixturevalue("s3")
        for variable, value in s3_options(endpoint).items():
            monkeypatch.setenv(variable, value)
        pq.write_table(table, "lake/entities.parquet", filesystem=disk)
    given_as = {
        "query": f"SELECT * FROM '{path}' WHERE row < 350;",
        "path": str(path),
        "s3": "s3://lake/entities.parquet",
        "arrow": table,
        "dataset": ds.dataset(path),
        "polars": pl.from_arrow(table),
        "lazy": pl.scan_parquet(path),
    }
    job = store.get_historical_features(entity_df=given_as[kind], features=["trips:rate"])
    answer = job.to_df()
    assert answer["row"].tolist() == list(range(350))
    expected = [(1.0 if i < 60 else 2.0) if i % 2 == 0 else 9.0 for i in range(350)]
    assert [a in (e, 1.5) for a, e in zip(answer["rate"], expected, strict=True)] == [True] * 350
    assert job.metadata.min_event_timestamp == NOON


# --- materializing, writing, saving


def test_materializing_keeps_the_latest_row_within_the_range(tmp_path):
    source = trips(tmp_path, rates(), created_timestamp_column="created")
    store = feast_store(tmp_path, STORE, [driver, view(source)])

    def online():
        return store.get_online_features(["trips:rate"], [{"driver": 1}, {"driver": 2}]).to_dict()["rate"]

    store.materialize(NOON - timedelta(hours=1), NOON)  # the end counts
    assert online() == [1.5, 9.0]
    store.materialize_incremental(NOON + timedelta(hours=2))
    assert online() == [2.0, 9.0]


def test_of_rows_that_nothing_tells_apart_the_same_one_is_joined_and_materialized(tmp_path):
    twice = pd.DataFrame({"driver": 1, "event_timestamp": at(*[0] * 200), "rate": [float(i % 50) for i in range(200)]})
    store = feast_store(tmp_path, STORE, [driver, view(trips(tmp_path, twice))])
    job = store.get_historical_features(entity_df=asked((1, 10)), features=["trips:rate"])
    store.config.materialization_config.pull_latest_features = True  # else Feast takes any of them, in pandas
    store.materialize(NOON - timedelta(hours=1), NOON + timedelta(hours=1))
    online = store.get_online_features(["trips:rate"], [{"driver": 1}]).to_dict()["rate"]
    assert job.to_df()["rate"].tolist() == online == [49.0]


def test_pushed_rows_are_appended_to_the_source(tmp_path):
    batch = trips(tmp_path, rates().drop(columns="created"))
    store = feast_store(tmp_path, STORE, [driver, view(PushSource(name="pushed", batch_source=batch))])
    row = pd.DataFrame({"driver": [1], "event_timestamp": at(90), "rate": [5.0]})
    store.push("pushed", row, to=PushMode.OFFLINE)
    job = store.get_historical_features(entity_df=asked((1, 100), (2, 100)), features=["trips:rate"])
    assert job.to_df()["rate"].tolist() == [5.0, 9.0]
    assert sorted(file.name for file in tmp_path.glob("*trips*")) == ["trips.parquet"]
    with pytest.raises(FeatureError, match="Give exactly these"):
        store._get_provider().ingest_df_to_offline_store(
            store.get_feature_view("trips"), pa.Table.from_pandas(row.assign(more=1), preserve_index=False)
        )


@pytest.mark.parametrize("place", ["saved.parquet", "saved", "delta"])
def test_a_saved_dataset_is_read_back_and_not_overwritten_by_mistake(tmp_path, place):
    store = feast_store(tmp_path, {"type": STORE, "chunk_rows": 2}, [driver, view(trips(tmp_path, rates()))])
    entities = asked((1, 70), (2, 0), (7, 0), (1, 61))
    storage = SavedDatasetFileStorage(
        path=str(tmp_path / place), file_format=DeltaFormat() if place == "delta" else ParquetFormat()
    )

    def save(**more):
        job = store.get_historical_features(entity_df=entities, features=["trips:rate"])
        return store.create_saved_dataset(job, name="set", storage=storage, **more)

    assert sorted(save().to_df()["rate"].fillna(-1)) == [-1, 2.0, 2.0, 9.0]
    with pytest.raises(SavedDatasetLocationAlreadyExists):
        save()
    assert sorted(save(allow_overwrite=True).to_df()["rate"].fillna(-1)) == [-1, 2.0, 2.0, 9.0]


def test_an_answer_is_written_piece_by_piece(tmp_path):
    store = feast_store(tmp_path, {"type": STORE, "chunk_rows": 100}, [driver, view(trips(tmp_path, rates()))])
    entities = asked(*[(1, i) for i in range(1000)])
    job = store.get_historical_features(entity_df=entities, features=["trips:rate"])
    job.to_parquet(str(tmp_path / "answer.parquet"))
    assert pq.read_metadata(tmp_path / "answer.parquet").num_row_groups == 10
    assert pq.read_table(tmp_path / "answer.parquet").equals(job.to_arrow())
    assert job.to_arrow_reader().read_all().equals(job.to_arrow())


def test_a_failed_write_leaves_what_was_there(tmp_path):
    trips_view = view(trips(tmp_path, rates()))
    answer = tmp_path / "answer.parquet"
    store = feast_store(tmp_path, {"type": STORE, "chunk_rows": 10}, [driver, trips_view])
    job = store.get_historical_features(entity_df=asked(*[(1, i) for i in range(100)]), features=["trips:rate"])
    job.to_parquet(str(answer))
    before = answer.read_bytes()
    pieces = job.to_tables()

    def breaking(timeout=None):
        yield next(pieces)
        raise RuntimeError("lost")

    job.to_tables = breaking
    with pytest.raises(RuntimeError, match="lost"):
        job.to_parquet(str(answer))
    pieces.close()
    assert answer.read_bytes() == before
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("place", ["file.parquet", pytest.param("folder", marks=pytest.mark.thorough), "delta"])
def test_what_is_pushed_saved_and_logged_in_s3_is_whole_and_leaves_nothing_beside_it(tmp_path, place, s3, monkeypatch):
    endpoint, disk = s3
    for variable, value in s3_options(endpoint).items():
        monkeypatch.setenv(variable, value)
    kind = DeltaFormat() if place == "delta" else ParquetFormat()
    where = {"file_format": kind, "s3_endpoint_override": endpoint}
    address = f"s3://lake/written/{place}"
    source = FileSource(name="t", path=address, timestamp_field="event_timestamp", **where)
    first = pa.Table.from_pandas(rates().drop(columns="created"), preserve_index=False)
    write(source, tmp_path, [first], append=False)
    pushed = view(PushSource(name="pushed", batch_source=source))
    logs = FileLoggingDestination(
        path=f"s3://lake/written/{place}-logs", s3_endpoint_override=endpoint, partition_by=["driver"]
    )
    service = FeatureService(name="service", features=[pushed], logging_config=LoggingConfig(destination=logs))
    store = feast_store(tmp_path, STORE, [driver, pushed, service])
    for value in (5.0, 6.0):
        row = pd.DataFrame({"driver": [1], "event_timestamp": at(85 + value), "rate": [value]})
        store.push("pushed", row, to=PushMode.OFFLINE)

    storage = SavedDatasetFileStorage(path=address + "-saved" + Path(place).suffix, **where)
    for minute in (70, 100):
        job = store.get_historical_features(entity_df=asked((1, minute), (2, 100)), features=["trips:rate"])
        saved = store.create_saved_dataset(job, name="set", storage=storage, allow_overwrite=True)
    assert sorted(saved.to_df()["rate"]) == [6.0, 9.0]

    for _ in range(2):
        store._get_provider().write_feature_service_logs(
            service, pa.table({"driver": [1, 2], "rate": [0.5, 0.6]}), store.config, store.registry
        )
    logged = ds.dataset(f"lake/written/{place}-logs", filesystem=disk, partitioning="hive")
    assert sorted(logged.to_table().column("driver").to_pylist()) == [1, 1, 2, 2]
    names = [file.path for file in disk.get_file_info(pafs.FileSelector("lake/written", recursive=True))]
    assert not [name for name in names if "/." in name]


def test_an_upload_to_s3_that_is_killed_leaves_the_old_object_and_no_half_one(tmp_path, s3, monkeypatch):
    endpoint, disk = s3
    for variable, value in s3_options(endpoint).items():
        monkeypatch.setenv(variable, value)
    pq.write_table(writers.rows(1), "lake/killed/answer.parquet", filesystem=disk)
    for place in ("answer.parquet", "folder"):
        here, there = processes.Pipe()
        # The server of processes may have been started before the test set its environment.
        more = {"s3_endpoint_override": endpoint, "storage_environment": dict(s3_options(endpoint))}
        uploading = processes.Process(target=writers.stall, args=(f"s3://lake/killed/{place}", there), kwargs=more)
        uploading.start()
        assert here.poll(60) and here.recv()
        uploading.kill()
        uploading.join(20)
    inside = disk.get_file_info(pafs.FileSelector("lake/killed", recursive=True))
    assert [file.path for file in inside if file.type == pafs.FileType.File] == ["lake/killed/answer.parquet"]
    assert pq.read_table("lake/killed/answer.parquet", filesystem=disk).equals(writers.rows(1))


def test_logged_features_add_up(tmp_path):
    service = FeatureService(
        name="service",
        features=[trips_view := view(trips(tmp_path, rates()))],
        logging_config=LoggingConfig(destination=FileLoggingDestination(path=str(tmp_path / "logs"))),
    )
    store = feast_store(tmp_path, STORE, [driver, trips_view, service])
    logs = pa.table({"driver": [1], "rate": [0.5]})
    for _ in range(2):
        store._get_provider().write_feature_service_logs(service, logs, store.config, store.registry)
    assert ds.dataset(tmp_path / "logs").count_rows() == 2


def test_a_retrieval_ends_when_its_time_is_over(tmp_path):
    store = feast_store(tmp_path, STORE, [driver, view(trips(tmp_path, rates()))])
    slow = (
        "SELECT 1 AS driver, TIMESTAMP '2024-03-10 12:00:00' + to_microseconds(a.i + b.i) AS event_timestamp "
        "FROM range(3000) a(i), range(1000) b(i)"
    )
    job = store.get_historical_features(entity_df=slow, features=["trips:rate"])
    start = time.monotonic()
    with pytest.raises(FeatureError, match="did not finish within"):
        job.to_arrow(timeout=0.05)
    assert time.monotonic() - start < 30


def test_a_source_is_validated_and_its_columns_are_known(tmp_path):
    source = trips(tmp_path, rates())
    store = feast_store(tmp_path, STORE, [driver])
    provider = store._get_provider()
    provider.validate_data_source(store.config, source)
    columns = dict(provider.get_table_column_names_and_types_from_data_source(store.config, source))
    assert (columns["driver"], columns["rate"]) == ("int64", "double")
    wrong = FileSource(path=source.path, timestamp_field="when")
    with pytest.raises(FeatureError, match="lacks the columns when"):
        provider.validate_data_source(store.config, wrong)


def test_a_repository_is_applied_before_the_tables_of_its_sources_are_written(tmp_path, caplog):
    store = feast_store(tmp_path, STORE, [driver])
    source = FileSource(path=str(tmp_path / "later"), timestamp_field="event_timestamp")
    store._get_provider().validate_data_source(store.config, source)
    assert "later" in caplog.text and "Write the table first" in caplog.text
