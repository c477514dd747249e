"""Each value of the as-of offline store against its definition, looked up row by row in plain Python."""

import os
import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.data_format import ParquetFormat
from feast.types import Array, Bool, Bytes, Float64, Int64, String, UnixTimestamp

from dagster_mlops.feast.offline_store import AsofOfflineStore
from tests.support import feast_writers as writers
from tests.support import known_warnings

pytestmark = [*known_warnings.DEPRECATED]

EXAMPLES = int(os.environ.get("DAGSTER_MLOPS_EXAMPLES", "40"))
NOON = datetime(2024, 3, 10, 12, tzinfo=UTC)  # clocks in New York go forward on that day
KEYS = {"driver": (Int64, pa.int64(), ValueType.INT64), "city": (String, pa.string(), ValueType.STRING)}
# Names that a join by pandas or SQL would make of its own, and any type that a feature may have.
FEATURES = {
    "rate": (Float64, pa.float64(), [0.0, 1.0, 2.0]),
    "rate_y": (Int64, pa.int32(), [0, 1, 2]),
    "note_x": (String, pa.string(), ["", "a", "é", 'q"uote']),
    "row": (Bool, pa.bool_(), [False, True]),
    "raw": (Bytes, pa.binary(), [b"", b"\x00", b"\xff"]),
    "price": (Float64, pa.decimal128(9, 2), [Decimal("0.01"), Decimal("0.10")]),
    "seen": (UnixTimestamp, pa.timestamp("us", "UTC"), [NOON, NOON + timedelta(hours=1)]),
    "tags": (Array(Int64), pa.list_(pa.int64()), [[], [1], [1, 2]]),
}
# On a grid so coarse that ties, exact bounds and gaps are frequent.
MINUTES = [0, 10, 20, 30, 40, 50, 60, None]
DRIVERS, CITIES = [1] * 8 + [2] * 3 + [None], ["a"] * 8 + ["b"] * 3 + [None]


def moments(minutes: list[int | None], kind: str) -> pa.Array:
    """Minutes after noon as a column of moments."""
    times = [None if m is None else NOON + timedelta(minutes=m) for m in minutes]
    if kind == "naive":
        return pa.array([t and t.replace(tzinfo=None) for t in times], pa.timestamp("us"))
    return pa.array(times, pa.timestamp(*kind.split(" ")))


def drawn_table(chance: random.Random) -> SimpleNamespace:
    """A view and its source: several files, keys and columns under other names, rows without one, rows twice."""
    keys = chance.choice([(), ("driver",), ("driver",), ("city",), ("driver", "city"), ("driver", "city")])
    features = chance.sample(list(FEATURES), chance.randint(1, 3))
    return SimpleNamespace(
        keys=keys,
        features=features,
        rows=[
            (
                chance.choice(DRIVERS),
                chance.choice(CITIES),
                chance.choice(MINUTES),
                chance.choice(MINUTES),
                tuple(chance.choice([None, *FEATURES[name][2]]) for name in features),
            )
            for _ in range(chance.choice([0, 3, 20, 40, 60]))
        ],
        files=chance.randint(1, 3),
        renamed=chance.random() < 0.5,
        shadow=chance.random() < 0.5 and "driver" in keys,
        created=chance.random() < 0.7,
        times=chance.choice(["us UTC", "naive", "ns America/New_York", "ms Asia/Kolkata"]),
        ttl=chance.choice([0, 10, 30, 1000]),
    )


def drawn_questions(chance: random.Random) -> list[dict]:
    """Entity rows, some of them twice."""
    choices = {"driver": DRIVERS, "rider": DRIVERS, "city": CITIES, "minute": MINUTES}
    return [
        {name: chance.choice(among) for name, among in choices.items()}
        for _ in range(chance.choice([0, 1, 40, 40, 40, 40]))
    ]


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


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=pytest.mark.thorough if seed >= 20 else ()) for seed in range(EXAMPLES)]
)
def test_every_value_is_what_its_definition_says(seed, registry, tmp_path):
    chance = random.Random(seed)
    views = [drawn_table(chance) for _ in range(chance.randint(1, 3))]
    asked = drawn_questions(chance)
    known_only = chance.random() < 0.4
    entities = pa.table(
        {
            **{
                key: pa.array([row[key] for row in asked], KEYS["city" if key == "city" else "driver"][1])
                for key in ("driver", "rider", "city")
            },
            "event_timestamp": moments(
                [row["minute"] for row in asked], chance.choice(["us UTC", "naive", "ns America/New_York"])
            ),
            "id": pa.array(range(len(asked)), pa.int64()),
        }
    )
    refs = [f"v{i}:{feature}" for i, table in enumerate(views) for feature in table.features]
    job = AsofOfflineStore.get_historical_features(
        writers.config(tmp_path, chunk_rows=chance.choice([3, 1000]), threads=2),
        [stored(tmp_path, f"v{i}", table) for i, table in enumerate(views)],
        [*refs, *refs] if chance.random() < 0.2 else refs,
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
