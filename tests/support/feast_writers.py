"""What the tests of the as-of offline store run in processes of their own."""

import itertools
import os
import resource
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.data_format import DeltaFormat, ParquetFormat
from feast.feature_logging import LoggingConfig
from feast.infra.offline_stores.file_source import FileLoggingDestination, SavedDatasetFileStorage
from feast.types import Float64

from dagster_mlops.feast.offline_store import AsofOfflineStore
from dagster_mlops.feast.point_in_time.writing import write

NOON = datetime(2024, 3, 10, 12, tzinfo=UTC)
BATCH = 500
driver = Entity(name="driver", join_keys=["driver"], value_type=ValueType.INT64)


def kind(place: str):
    """The format of a place by its name."""
    return DeltaFormat() if place.endswith("delta") else ParquetFormat()


def view(place: str, **more) -> FeatureView:
    source = FileSource(name="t", path=place, file_format=kind(place), timestamp_field="event_timestamp", **more)
    return FeatureView(
        name="t", entities=[driver], ttl=timedelta(0), schema=[Field(name="rate", dtype=Float64)], source=source
    )


def config(folder: Path, **settings) -> RepoConfig:
    return RepoConfig(
        project="p",
        provider="local",
        registry=str(folder / "registry.db"),
        online_store={"type": "sqlite", "path": str(folder / "online.db")},
        offline_store={"type": "dagster_mlops.feast.offline_store.AsofOfflineStore", **settings},
        entity_key_serialization_version=3,
        repo_path=folder,
    )


def rows(value: float, count: int = BATCH) -> pa.Table:
    """Rows of one value, as the view's source holds them."""
    return pa.table(
        {
            "driver": pa.array(range(count), pa.int64()),
            "event_timestamp": pa.array([NOON] * count, pa.timestamp("us", "UTC")),
            "rate": pa.array([value] * count, pa.float64()),
        }
    )


def push(folder: Path, place: str, writer: int, batches: int | None, **more) -> None:
    """Push batches, each of a value of its own, and note each value in `pushed` once it is said to be there."""
    with (folder / "pushed").open("a") as noted:
        for i in itertools.count() if batches is None else range(batches):
            value = writer * 1_000_000 + i
            AsofOfflineStore.offline_write_batch(config(folder), view(place, **more), rows(value), None)
            noted.write(f"{value}\n")
            noted.flush()


def save(folder: Path, place: str, first: int, **more) -> None:
    """Save datasets in one place for ever, each of a value of its own that is noted once it is there."""
    store = FeatureStore(config=config(folder, chunk_rows=BATCH // 4))
    entities = rows(0).drop_columns("rate")
    storage = SavedDatasetFileStorage(path=place, file_format=kind(place), **more)
    with (folder / "pushed").open("a") as noted:
        for value in itertools.count(first):
            asked = entities.append_column("value", pa.array([value] * BATCH))
            job: Any = store.get_historical_features(entity_df=asked, features=["t:rate"])
            job.persist(storage, allow_overwrite=True)
            noted.write(f"{value}\n")
            noted.flush()


def log(folder: Path, place: str, writer: int, **more) -> None:
    """Log features in two partitions for ever, and note each value once it is said to be there."""
    logging = LoggingConfig(destination=FileLoggingDestination(path=place, partition_by=["day"], **more))
    unused: Any = None  # the source and the registry, which the store does not look at
    with (folder / "pushed").open("a") as noted:
        for i in itertools.count():
            value = writer * 1_000_000 + i
            day = pa.array(["mon", "tue"] * (BATCH // 2))
            data = rows(value).append_column("day", day)
            AsofOfflineStore.write_logged_features(config(folder), data, unused, logging, unused)
            noted.write(f"{value}\n")
            noted.flush()


def join(folder: Path, spill: Path) -> None:
    """Join what does not fit into memory, in a temporary directory of its own, for ever."""
    store = FeatureStore(config=config(folder, memory_limit="60MB", threads=1, temp_directory=str(spill)))
    while True:
        job: Any = store.get_historical_features(entity_df=str(folder / "entities.parquet"), features=["t:rate"])
        job.to_parquet(str(folder / "answer.parquet"))


def answer(folder: Path, name: str, told, **settings) -> None:
    """Join once and tell how much memory that took, in MB beyond what the process had before."""
    store = FeatureStore(config=config(folder, **settings))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    job: Any = store.get_historical_features(entity_df=str(folder / "entities.parquet"), features=["t:rate"])
    job.to_parquet(str(folder / name))
    told.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3)


def stall(place: str, told, storage_environment: dict[str, str], **more) -> None:
    """Write a part of an answer, tell so, and stand still."""
    os.environ.update(storage_environment)

    def pieces():
        for value in range(4):
            noise = pa.array(np.random.default_rng(value).random(300_000))  # more than S3's smallest part
            yield rows(value, 300_000).set_column(2, "rate", noise)
        told.send(True)
        time.sleep(300)

    write(FileSource(path=place, **more), None, pieces(), append=False)
