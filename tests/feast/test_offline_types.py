"""Types and times in the as-of offline store: declared types, columns without values, digits that are cut off."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    RepoConfig,
    RequestSource,
    ValueType,
)
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Array, Bool, Float32, Float64, Int64, String, UnixTimestamp

from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.offline.retrieval import historical_features
from dagster_mlops.feast.offline.source import Window, describe_windows
from dagster_mlops.feast.offline.sql import instant
from tests.support import known_warnings

pytestmark = [pytest.mark.usefixtures("warm_tools"), *known_warnings.DEPRECATED, *known_warnings.FEAST_EXPERIMENTAL]

STORE = "dagster_mlops.feast.offline_store.AsofOfflineStore"
NOON = datetime(2024, 3, 10, 12, tzinfo=UTC)
driver = Entity(name="driver", join_keys=["driver"], value_type=ValueType.INT64)
rider = Entity(name="rider", join_keys=["rider"], value_type=ValueType.STRING)


def at(*minutes: float) -> pd.Series:
    return pd.Series([NOON + timedelta(minutes=m) for m in minutes]).astype("datetime64[us, UTC]")


def view_of(folder: Path, frame: pd.DataFrame, *, name: str = "trips", entities: Any = (driver,), **types: Any) -> Any:
    frame.to_parquet(folder / f"{name}.parquet", index=False)
    source = FileSource(name=name, path=str(folder / f"{name}.parquet"), timestamp_field="event_timestamp")
    schema = [Field(name=feature, dtype=dtype) for feature, dtype in types.items()]
    return FeatureView(name=name, entities=list(entities), ttl=timedelta(days=1), schema=schema, source=source)


def store_of(folder: Path, objects: list[Any], **settings: Any) -> Any:
    config = RepoConfig(
        project="p",
        provider="local",
        registry=str(folder / "registry.db"),
        online_store={"type": "sqlite", "path": str(folder / "online.db")},
        offline_store={"type": STORE, **settings},
        entity_key_serialization_version=3,
        repo_path=folder,
    )
    store = FeatureStore(config=config)
    store.apply(objects)
    return store


# The declared type of an on-demand feature is that of every piece


COMPUTED = {
    "next_count": (Int64, pa.int64()),
    "large": (Bool, pa.bool_()),
    "label": (String, pa.string()),
    "ratio": (Float32, pa.float32()),
    "since": (UnixTimestamp, pa.timestamp("us", "UTC")),
    "pair": (Array(Int64), pa.list_(pa.int64())),
}


def compute(inputs: pd.DataFrame) -> pd.DataFrame:
    count = inputs["count"]
    return pd.DataFrame(
        {
            "next_count": count + 1,
            "large": (count > 1).where(count.notna(), None),
            "label": inputs["nick"].str.upper(),
            "ratio": (count / 3).astype("float32"),
            "since": pd.to_datetime(count, unit="s", utc=True),
            "pair": [None if pd.isna(value) else [int(value)] * 2 for value in count],
        }
    )


def wrong(inputs: pd.DataFrame) -> pd.DataFrame:
    count = inputs["count"]  # Feast tries the function on 1, and refuses another type than the declared one
    return pd.DataFrame({"half": count if (count < 2).all() else count / 2})


@pytest.fixture(scope="module")
def computed(tmp_path_factory) -> FeatureStore:
    """A store that joins two rows at a time, and on-demand features whose inputs are missing for driver 2."""
    folder = tmp_path_factory.mktemp("computed")
    frame = pd.DataFrame({"driver": [1, 3], "event_timestamp": at(0, 0), "count": [1, 5], "nick": ["a", "c"]})
    trips = view_of(folder, frame, count=Int64, nick=String)
    schema = [Field(name=name, dtype=dtype) for name, (dtype, _) in COMPUTED.items()]
    facts: Any = on_demand_feature_view(name="facts", sources=[trips], schema=schema)(compute)
    half = [Field(name="half", dtype=Int64)]
    halves: Any = on_demand_feature_view(name="halves", sources=[trips], schema=half)(wrong)
    service = FeatureService(name="all", features=[trips, facts])
    return store_of(folder, [driver, trips, facts, halves, service], chunk_rows=2)


def _drivers(*drivers: int) -> pd.DataFrame:
    return pd.DataFrame({"driver": drivers, "event_timestamp": at(*[5] * len(drivers))})


@pytest.mark.parametrize("first", [(1, 3), (2, 2), (1, 2), (2, 3)])
def test_every_piece_of_a_result_has_the_declared_types(computed, first, tmp_path):
    service = computed.get_feature_service("all")
    job = computed.get_historical_features(_drivers(*first, 2, 2, 1, 2, 3), service)
    job.to_parquet(str(tmp_path / "result.parquet"))
    schema = pq.read_schema(tmp_path / "result.parquet")
    assert {name: schema.field(name).type for name in COMPUTED} == {name: kind for name, (_, kind) in COMPUTED.items()}
    rows = pq.read_table(tmp_path / "result.parquet").to_pylist()
    assert rows == job.to_arrow().to_pylist()
    assert [rows[4][name] for name in ("next_count", "large", "label", "pair")] == [2, False, "A", [1, 1]]
    assert {rows[2][name] for name in COMPUTED} == {None}


def test_arrow_entity_rows_get_declared_types_too_where_no_value_is_known(computed):
    rows = pa.table({"driver": [2, 2, 1, 2, 2], "event_timestamp": pa.array([NOON] * 5, pa.timestamp("us", "UTC"))})
    answer = historical_features(computed, rows, "all")
    assert answer["label"].to_pylist() == [None, None, "A", None, None]


def test_computed_values_that_the_declared_type_cannot_hold_are_named(computed):
    job = computed.get_historical_features(_drivers(1, 3), ["halves:half"])
    with pytest.raises(FeatureError, match="'halves' declares half as Int64, and its function returns double"):
        job.to_arrow()


# A column without any value fits every declared type


EMPTY = {"nan": float("nan"), "none": None}
TYPES = {"since": UnixTimestamp, "label": String, "flag": Bool, "tags": Array(String), "count": Int64}


@pytest.mark.parametrize("written", EMPTY)
def test_a_column_without_any_value_is_missing_whatever_it_is_declared_as(tmp_path, written):
    empty = {name: [EMPTY[written]] * 2 for name in TYPES}
    frame = pd.DataFrame({"driver": [1, 2], "event_timestamp": at(0, 0), "rate": [1.0, 2.0], **empty})
    trips = view_of(tmp_path, frame, rate=Float64, **TYPES)
    store = store_of(tmp_path, [driver, trips])
    refs = [f"trips:{name}" for name in ["rate", *TYPES]]
    table = store.get_historical_features(_drivers(2, 1), refs).to_arrow()
    assert table["rate"].to_pylist() == [2.0, 1.0]
    assert {value for name in TYPES for value in table[name].to_pylist() if value == value} == {None}
    assert (
        table.schema.field("since").type == pa.timestamp("us", "UTC") and table.schema.field("label").type == "string"
    )
    [facts] = describe_windows(store, store.get_feature_view("trips"), [Window(NOON, NOON + timedelta(days=1))])
    shares = {feature.feature: feature.null_share for feature in facts.features}
    assert shares == {"rate": 0.0, **dict.fromkeys(TYPES, 1.0)}


@pytest.mark.parametrize("order", [("empty", "full"), ("full", "empty", "none")])
def test_a_column_may_be_without_any_value_in_one_of_several_files(tmp_path, order):
    values = {"since": NOON, "label": "x", "flag": True, "tags": ["a"]}
    types = {"since": UnixTimestamp, "label": String, "flag": Bool, "tags": Array(String)}
    trips = view_of(tmp_path, pd.DataFrame({"driver": [1], "event_timestamp": at(0)}), **types)
    trips.batch_source.file_options.uri = str(tmp_path / "months")
    (tmp_path / "months").mkdir()
    for i, kind in enumerate(order):
        filled = {"empty": dict.fromkeys(values, float("nan")), "none": dict.fromkeys(values), "full": values}[kind]
        frame = pd.DataFrame({"driver": [i], "event_timestamp": at(0), **{name: [v] for name, v in filled.items()}})
        frame.to_parquet(tmp_path / "months" / f"{i}.parquet", index=False)
    store = store_of(tmp_path, [driver, trips])
    table = store.get_historical_features(_drivers(*range(len(order))), [f"trips:{name}" for name in types]).to_arrow()
    expected = [values if kind == "full" else dict.fromkeys(values) for kind in order]
    assert table.select([*types]).to_pylist() == expected
    store.materialize(NOON - timedelta(days=1), NOON + timedelta(days=1))
    online = store.get_online_features(["trips:label"], [{"driver": i} for i in range(len(order))]).to_dict()
    assert online["label"] == [row["label"] for row in expected]


def test_values_of_another_type_are_still_refused(tmp_path):
    frame = pd.DataFrame({"driver": [1, 2], "event_timestamp": at(0, 0), "since": [float("nan"), 1.7e9]})
    store = store_of(tmp_path, [driver, view_of(tmp_path, frame, since=UnixTimestamp)])
    with pytest.raises(FeatureError, match=r"trips:since is declared as UnixTimestamp, and column since .* is DOUBLE"):
        store.get_historical_features(_drivers(1), ["trips:since"])


@pytest.mark.parametrize("written", EMPTY)
def test_keys_without_any_value_match_nothing(tmp_path, written):
    frame = pd.DataFrame({"rider": ["a"], "event_timestamp": at(0), "rate": [1.0]})
    store = store_of(tmp_path, [rider, view_of(tmp_path, frame, entities=[rider], rate=Float64)])
    rows = pd.DataFrame({"rider": [EMPTY[written]] * 2, "event_timestamp": at(5, 6)})
    assert store.get_historical_features(rows, ["trips:rate"]).to_df()["rate"].isna().all()
    frame.assign(rider=EMPTY[written]).to_parquet(tmp_path / "trips.parquet", index=False)
    assert store.get_historical_features(rows.assign(rider="a"), ["trips:rate"]).to_df()["rate"].isna().all()


def test_a_source_without_any_row_gives_no_values(tmp_path):
    frame = pd.DataFrame({"driver": [1], "event_timestamp": at(0), "rate": [1.0], "label": ["x"]})
    trips = view_of(tmp_path, frame, rate=Float64, label=String)
    store = store_of(tmp_path, [driver, trips])
    pd.DataFrame({name: [] for name in frame}).to_parquet(tmp_path / "trips.parquet")
    table = store.get_historical_features(_drivers(1, 2), ["trips:rate", "trips:label"]).to_arrow()
    assert table["rate"].to_pylist() == table["label"].to_pylist() == [None, None]
    store.materialize(NOON - timedelta(days=1), NOON + timedelta(days=1))


# Finer digits of timestamps are cut off


@pytest.mark.parametrize("zone", ["", "UTC"])
@pytest.mark.parametrize(
    ("nanoseconds", "microseconds"), [(600, 0), (1_999, 1), (0, 0), (-1, -1), (-600, -1), (-1_000, -1), (-1_001, -2)]
)
def test_nanoseconds_never_move_a_timestamp_into_the_future(zone, nanoseconds, microseconds):
    table = pa.table({"since": pa.array([nanoseconds], pa.timestamp("ns", zone or None))})
    with duckdb.connect() as connection:
        connection.register("rows", table)
        [(_, kind, *_)] = connection.execute("DESCRIBE rows").fetchall()
        [(answer,)] = connection.execute(f"SELECT {instant('since', kind, 'rows')} FROM rows").fetchall()
    assert answer == microseconds


def test_an_event_half_a_microsecond_late_is_not_known_yet_and_counts_in_its_window(tmp_path):
    late = pd.Timestamp(NOON) - pd.Timedelta(400, "ns")
    frame = pd.DataFrame({"driver": [1], "event_timestamp": [late], "rate": [1.0]})
    trips = view_of(tmp_path, frame, rate=Float64)
    store = store_of(tmp_path, [driver, trips])
    rows = pd.DataFrame({"driver": [1, 1], "event_timestamp": [late - pd.Timedelta(700, "ns"), late]})
    assert store.get_historical_features(rows, ["trips:rate"]).to_df()["rate"].fillna(0).tolist() == [0, 1.0]
    windows = [Window(NOON - timedelta(hours=1), NOON), Window(NOON, NOON + timedelta(hours=1))]
    assert [facts.rows for facts in describe_windows(store, store.get_feature_view("trips"), windows)] == [1, 0]


# Entity rows by a query, and by dates


@pytest.mark.parametrize(
    "end", ["", ";", " ; ", ";\n-- all of them; really", " -- all\n", ";; /* none; */ ;", "-- 'ü'", "\n;--\n"]
)
def test_a_query_of_entity_rows_may_end_in_semicolons_and_comments(tmp_path, end):
    frame = pd.DataFrame({"driver": [1], "event_timestamp": at(0), "rate": [1.0]})
    store = store_of(tmp_path, [driver, view_of(tmp_path, frame, rate=Float64)])
    query = f"SELECT 1 AS driver, ';--ü' AS note, TIMESTAMPTZ '{NOON.isoformat()}' AS event_timestamp{end}"
    answer = store.get_historical_features(query, ["trips:rate"]).to_df()
    assert answer[["note", "rate"]].values.tolist() == [[";--ü", 1.0]]


def test_features_are_retrieved_by_start_and_end_date(tmp_path):
    trips = pd.DataFrame(
        {"driver": [1, 1, 1, 2, 2], "event_timestamp": at(0, 60, 60, 90, -2000), "rate": [1.0, 2, 2, 3, 9]}
    )
    moods = pd.DataFrame({"rider": ["a", "a"], "event_timestamp": at(30, 61), "mood": ["up", "down"]})
    market = pd.DataFrame({"event_timestamp": at(-5, 61), "fuel": [0.5, 0.75]})
    views = [
        view_of(tmp_path, trips, rate=Float64),
        view_of(tmp_path, moods, name="moods", entities=[rider], mood=String),
        view_of(tmp_path, market, name="market", entities=[], fuel=Float64),
    ]
    quote = RequestSource(name="quote", schema=[Field(name="price", dtype=Float64)])

    def offer(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"offer": inputs["rate"] * inputs["price"]})

    def double(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"double": inputs["rate"] * 2})

    fields = [[Field(name=name, dtype=Float64)] for name in ("offer", "double")]
    offers: Any = on_demand_feature_view(name="offers", sources=[views[0], quote], schema=fields[0])(offer)
    doubles: Any = on_demand_feature_view(name="doubles", sources=[views[0]], schema=fields[1])(double)
    store = store_of(tmp_path, [driver, rider, *views, offers, doubles], chunk_rows=2)

    def rows(*refs: str, first: float = 0, last: float = 90, **options: Any) -> list[list[Any]]:
        start, end = NOON + timedelta(minutes=first), NOON + timedelta(minutes=last)
        job = store.get_historical_features(features=[*refs], start_date=start, end_date=end, **options)
        assert (job.metadata.min_event_timestamp, job.metadata.max_event_timestamp) == (start, end)
        table = job.to_arrow()
        assert table["event_timestamp"].type == pa.timestamp("us", "UTC")
        minutes = [(time - NOON) // timedelta(minutes=1) for time in table["event_timestamp"].to_pylist()]
        others = [table[name].to_pylist() for name in table.column_names if name != "event_timestamp"]
        return [list(row) for row in zip(minutes, *others, strict=True)]

    assert rows("trips:rate") == [[0, 1, 1.0], [60, 1, 2.0], [90, 2, 3.0]]
    assert rows("trips:rate", first=1, last=60) == [[60, 1, 2.0]]
    assert rows("trips:rate", first=-2001, last=-1) == [[-2000, 2, 9.0]]
    assert rows("trips:rate", "doubles:double", last=60) == [[0, 1, 1.0, 2.0], [60, 1, 2.0, 4.0]]
    assert rows("market:fuel", first=-10) == [[-5, 0.5], [61, 0.75]]
    assert rows("trips:rate", "market:fuel", first=60, full_feature_names=True) == [
        [60, 1, 2.0, 0.5],
        [61, None, None, 0.75],
        [90, 2, 3.0, 0.75],
    ]
    assert rows("trips:rate", "moods:mood", first=20, last=60) == [
        [30, None, "a", None, "up"],
        [60, 1, None, 2.0, None],
    ]
    assert rows("trips:rate", first=500, last=600) == []
    since = store.get_historical_features(features=["trips:rate"], end_date=NOON + timedelta(minutes=70)).to_df()
    assert since["rate"].tolist() == [1.0, 2.0], "without a start, the ttl before the end"
    with pytest.raises(FeatureError, match="on-demand views take price from the request"):
        rows("offers:offer")


@pytest.mark.parametrize("chunk_rows", [2, 100])
@pytest.mark.parametrize("tied", ["nothing", "a joined event", "another event", "a view without entities"])
def test_of_events_of_one_key_and_time_the_largest_values_are_joined(tmp_path, tied, chunk_rows):
    trips = pd.DataFrame({"driver": [1, 1, 2], "event_timestamp": at(0, 60, 0), "rate": [1.0, 2.0, 3.0]})
    market = pd.DataFrame({"event_timestamp": at(-5, 61), "fuel": [0.5, 0.75]})
    twins = {"a joined event": ("trips", 1), "another event": ("trips", 0), "a view without entities": ("market", 1)}
    views = {"trips": trips, "market": market}
    if tied != "nothing":
        name, row = twins[tied]
        lower = views[name].iloc[[row]].copy()
        lower.iloc[:, -1] = 0.25
        views[name] = pd.concat([lower, views[name], lower], ignore_index=True)
    objects = [
        view_of(tmp_path, views["trips"], rate=Float64),
        view_of(tmp_path, views["market"], name="market", entities=[], fuel=Float64),
    ]
    store = store_of(tmp_path, [driver, *objects], chunk_rows=chunk_rows)
    rows = pd.DataFrame({"driver": [1, 2, 1, 3], "event_timestamp": at(70, 70, 80, 75)})
    answer = store.get_historical_features(rows, ["trips:rate", "market:fuel"]).to_df()
    assert answer["rate"].fillna(-1).tolist() == [2.0, 3.0, 2.0, -1]
    assert answer["fuel"].tolist() == [0.75] * 4
    assert list(answer.columns) == ["driver", "event_timestamp", "rate", "fuel"]
