"""Each value of the as-of offline store against its definition, looked up row by row in plain Python."""

import os
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.data_format import ParquetFormat
from feast.types import Array, Bool, Bytes, Float64, Int64, String, UnixTimestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dagster_mlops.feast.offline_store import AsofOfflineStore
from tests import feast_writers as writers

pytestmark = [
    # Feast uses what its own dependencies have deprecated; none of it is ours to change.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

EXAMPLES = int(os.environ.get("DAGSTER_MLOPS_EXAMPLES", "60"))
NOON = datetime(2024, 3, 10, 12, tzinfo=timezone.utc)  # clocks in New York go forward on that day
KEYS = {"driver": (Int64, pa.int64(), ValueType.INT64), "city": (String, pa.string(), ValueType.STRING)}
# Names that a join by pandas or SQL would make of its own, and any type that a feature may have.
FEATURES = {
    "rate": (Float64, pa.float64(), st.integers(0, 3).map(float)),
    "rate_y": (Int64, pa.int32(), st.integers(0, 3)),
    "note_x": (String, pa.string(), st.sampled_from(["", "a", "é", 'q"uote'])),
    "row": (Bool, pa.bool_(), st.booleans()),
    "raw": (Bytes, pa.binary(), st.sampled_from([b"", b"\x00", b"\xff"])),
    "price": (Float64, pa.decimal128(9, 2), st.integers(0, 3).map(lambda cents: Decimal(cents) / 100)),
    "seen": (UnixTimestamp, pa.timestamp("us", "UTC"), st.integers(0, 3).map(lambda h: NOON + timedelta(hours=h))),
    "tags": (Array(Int64), pa.list_(pa.int64()), st.lists(st.integers(0, 2), max_size=2)),
}
minutes = st.integers(0, 6).map(lambda i: i * 10)
drivers, cities = st.sampled_from([1, 1, 1, 2, None]), st.sampled_from(["a", "a", "b", None])


def moments(minutes: list[int | None], kind: str) -> pa.Array:
    """Minutes after noon as a column of moments."""
    times = [None if m is None else NOON + timedelta(minutes=m) for m in minutes]
    if kind == "naive":
        return pa.array([t and t.replace(tzinfo=None) for t in times], pa.timestamp("us"))
    return pa.array(times, pa.timestamp(*kind.split(" ")))


@st.composite
def tables(draw) -> SimpleNamespace:
    """A view and its source: several files, keys and columns under other names, rows without one, rows twice."""
    keys = draw(st.sampled_from([(), ("driver",), ("city",), ("driver", "city")]))
    features = draw(st.lists(st.sampled_from(list(FEATURES)), min_size=1, max_size=3, unique=True))
    values = st.tuples(*[st.none() | FEATURES[name][2] for name in features])
    return SimpleNamespace(
        keys=keys,
        features=features,
        rows=draw(st.lists(st.tuples(drivers, cities, st.none() | minutes, st.none() | minutes, values), max_size=25)),
        files=draw(st.integers(1, 3)),
        renamed=draw(st.booleans()),
        shadow=draw(st.booleans()) and "driver" in keys,
        created=draw(st.booleans()),
        times=draw(st.sampled_from(["us UTC", "naive", "ns America/New_York", "ms Asia/Kolkata"])),
        ttl=draw(st.sampled_from([0, 10, 30, 1000])),
    )


def stored(folder, name: str, table: SimpleNamespace) -> FeatureView:
    other = (lambda column: f"{column} of old") if table.renamed else (lambda column: column)
    columns = {other(key): [row[list(KEYS).index(key)] for row in table.rows] for key in table.keys}
    arrays = {
        column: pa.array(column_values, KEYS[key][1])
        for (column, column_values), key in zip(columns.items(), table.keys, strict=True)
    }
    arrays[other("at")] = moments([row[2] for row in table.rows], table.times)
    arrays[other("created")] = moments([row[3] for row in table.rows], table.times)
    for i, feature in enumerate(table.features):
        arrays[other(feature)] = pa.array([row[4][i] for row in table.rows], FEATURES[feature][1])
    whole = pa.table(arrays)
    (folder / name).mkdir()
    for i in range(table.files):
        part = whole.filter(pa.array([j % table.files == i for j in range(whole.num_rows)], pa.bool_()))
        pq.write_table(part, folder / name / f"{i}.parquet")
    source = FileSource(
        name=name,
        path=str(folder / name),
        file_format=ParquetFormat(),
        timestamp_field="at",
        created_timestamp_column="created" if table.created else "",
        field_mapping={other(column): column for column in [*table.keys, "at", "created", *table.features]}
        if table.renamed
        else None,
    )
    schema = [Field(name=key, dtype=KEYS[key][0]) for key in table.keys]
    schema += [Field(name=feature, dtype=FEATURES[feature][0]) for feature in table.features]
    entities = [Entity(name=key, join_keys=[key], value_type=KEYS[key][2]) for key in table.keys]
    view = FeatureView(name=name, entities=entities, ttl=timedelta(minutes=table.ttl), schema=schema, source=source)
    return view.with_join_key_map({"driver": "rider"}) if table.shadow else view


def value_of(table: SimpleNamespace, asked: dict, known_only: bool) -> tuple:
    """What a view's features are for an entity row, by their definition."""
    nothing = (None,) * len(table.features)
    if asked["minute"] is None:
        return nothing
    known_only = known_only and table.created
    candidates = []
    for driver, city, since, created, values in table.rows:
        has = {"driver": driver, "city": city}
        wants = {"driver": asked["rider" if table.shadow else "driver"], "city": asked["city"]}
        if any(has[key] is None or has[key] != wants[key] for key in table.keys):
            continue
        if since is None or since > asked["minute"]:
            continue
        if known_only and (created is None or created > asked["minute"]):
            continue
        born = created if table.created else None
        largest = tuple((value is not None, value if value is not None else 0) for value in values)
        candidates.append((since, (born is not None, born or 0), largest, values))
    if not candidates:
        return nothing
    since, _, _, values = max(candidates, key=lambda found: found[:3])
    return nothing if table.ttl and since < asked["minute"] - table.ttl else values


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """A registry with nothing in it: the views are given as they are."""
    store = FeatureStore(config=writers.config(tmp_path_factory.mktemp("registry")))
    store.apply([])
    return store.registry


@given(
    views=st.lists(tables(), min_size=1, max_size=3),
    asked=st.lists(
        st.fixed_dictionaries({"driver": drivers, "rider": drivers, "city": cities, "minute": st.none() | minutes}),
        max_size=20,
    ),
    times=st.sampled_from(["us UTC", "naive", "ns America/New_York"]),
    known_only=st.booleans(),
    chunk_rows=st.sampled_from([3, 1000]),
    again=st.booleans(),
)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_every_value_is_what_its_definition_says(
    views, asked, times, known_only, chunk_rows, again, registry, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("world")
    entities = pa.table(
        {
            **{
                key: pa.array([row[key] for row in asked], KEYS["city" if key == "city" else "driver"][1])
                for key in ("driver", "rider", "city")
            },
            "event_timestamp": moments([row["minute"] for row in asked], times),
            "id": pa.array(range(len(asked)), pa.int64()),
        }
    )
    refs = [f"v{i}:{feature}" for i, table in enumerate(views) for feature in table.features]
    job = AsofOfflineStore.get_historical_features(
        writers.config(folder, chunk_rows=chunk_rows, threads=2),
        [stored(folder, f"v{i}", table) for i, table in enumerate(views)],
        [*refs, *refs] if again else refs,
        entities,
        registry,
        "p",
        full_feature_names=True,
        filter_by_created_timestamp=known_only,
    )
    answer = job.to_arrow()
    assert answer.select(entities.column_names).equals(entities)  # nothing lost, moved or changed
    assert answer.column_names[entities.num_columns :] == [ref.replace(":", "__") for ref in refs]
    for i, table in enumerate(views):
        found = zip(*(answer.column(f"v{i}__{feature}").to_pylist() for feature in table.features), strict=True)
        assert list(found) == [value_of(table, row, known_only) for row in asked]
