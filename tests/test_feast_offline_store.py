"""The as-of offline store, used as Feast's users do: same values as Feast's own DuckDB store, and no row lost."""

import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pandas as pd
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.data_format import ParquetFormat
from feast.types import Float64
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = [
    # Feast and ibis use what their own dependencies have deprecated; none of it is ours to change.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    # Feast calls saving a dataset experimental.
    pytest.mark.filterwarnings("ignore:Saving dataset:RuntimeWarning"),
]

STORE = "dagster_mlops.feast.offline_store.AsofOfflineStore"
EXAMPLES = int(os.environ.get("DAGSTER_MLOPS_EXAMPLES", "25"))
NOON = datetime(2024, 3, 10, 12, tzinfo=timezone.utc)

driver = Entity(name="driver", join_keys=["driver"], value_type=ValueType.INT64)
city = Entity(name="city", join_keys=["city"], value_type=ValueType.STRING)


def at(*minutes: float | None, tz: str | None = "UTC") -> pd.Series:
    """Moments so many minutes after noon, to the microsecond."""
    moments = pd.Series([None if m is None else NOON + timedelta(minutes=m) for m in minutes], dtype="object")
    known = pd.to_datetime(moments, utc=True).astype("datetime64[us, UTC]")
    return known.dt.tz_localize(None) if tz is None else known.dt.tz_convert(tz)


def feast_store(folder: Path, offline: str | dict, objects: list) -> FeatureStore:
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


def view(source: FileSource, *, ttl: timedelta = timedelta(0), name: str = "trips", entities=(driver,), **types):
    schema = [Field(name=feature, dtype=dtype) for feature, dtype in (types or {"rate": Float64}).items()]
    return FeatureView(name=name, entities=list(entities), ttl=ttl, schema=schema, source=source)


def trips(folder: Path, frame: pd.DataFrame, name: str = "trips", **more) -> FileSource:
    path = folder / f"{name}.parquet"
    frame.to_parquet(path, index=False)
    return FileSource(
        name=name, path=str(path), file_format=ParquetFormat(), timestamp_field="event_timestamp", **more
    )


# --- the same values as Feast


@st.composite
def worlds(draw):
    """Feature rows of two views and entity rows, on a grid so coarse that ties and exact bounds are frequent."""
    minute = st.integers(0, 12).map(lambda i: i * 10.0)
    drivers, cities = st.sampled_from([1, 2, None]), st.sampled_from(["a", "b", None])
    tz = st.sampled_from(["UTC", None, "America/New_York"])
    tables = []
    for keys in (("driver",), ("driver", "city")):
        # Of rows that agree in key, instant and creation none is right, so there are none.
        rows = draw(st.lists(st.tuples(drivers, cities, minute, minute), max_size=14, unique_by=lambda row: row[:4]))
        rows = list({tuple(row[:1] if len(keys) == 1 else row[:2]) + row[2:]: row for row in rows}.values())
        frame = pd.DataFrame(rows, columns=["driver", "city", "m", "c"])
        frame["event_timestamp"] = at(*frame["m"], tz=draw(tz)) if rows else at(0)[:0]
        frame["created"] = at(*frame["c"], tz=draw(tz)) if rows else at(0)[:0]
        frame["rate"] = [None if draw(st.booleans()) and i % 3 == 0 else float(i) for i in range(len(rows))]
        frame["driver"] = frame["driver"].astype("Int64")
        frame["city"] = frame["city"].astype("string")
        frame["rate"] = frame["rate"].astype("float64")
        tables.append(frame[["driver", "city", "event_timestamp", "created", "rate"]])
    asked = draw(st.lists(st.tuples(drivers, cities, minute), min_size=1, max_size=14))
    entities = pd.DataFrame(asked, columns=["driver", "city", "m"])
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
