"""Pushed features: the newest event of a key is served, whatever pushes or materializes after it."""

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pandas as pd
import pytest

from dagster_mlops.feast import FeastResource
from dagster_mlops.feast.materialization import alone
from dagster_mlops.feast.online import newer_events_kept

pytestmark = [
    # Feast and ibis use what their own dependencies have deprecated; none of it is ours to change.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    # Feast closes neither its SQLite connection nor its Redis client.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

START = datetime(2024, 1, 1, tzinfo=timezone.utc)
DAY = timedelta(days=1)
SETTINGS = """
project: shop
provider: local
registry: {{registry_type: sql, path: "sqlite:///{root}/registry.db", cache_ttl_seconds: 0}}
online_store: {online}
offline_store: {{type: dagster_mlops.feast.offline_store.AsofOfflineStore}}
entity_key_serialization_version: 3
"""
DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, ValueType
from feast.data_format import ParquetFormat
from feast.types import Array, Float64, Int64, String, UnixTimestamp

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
stored = FileSource(name="visits", path={path!r}, file_format=ParquetFormat(), timestamp_field="event_timestamp")
pushed = PushSource(name="visits_push", batch_source=stored)
visits = FeatureView(
    name="visits", entities=[user], ttl=timedelta(days=2), source=pushed,
    schema=[Field(name="amount", dtype=Float64), Field(name="pages", dtype=Int64),
            Field(name="browser", dtype=String), Field(name="tags", dtype=Array(String))],
)
pages = FeatureView(
    name="pages", entities=[user], ttl=timedelta(days=2), source=pushed, schema=[Field(name="pages", dtype=Int64)],
)
usage = FeatureService(name="usage", features=[visits])
"""


def events(rows: list[tuple[int, float, float]]) -> pd.DataFrame:
    """A frame of events (user, days since START, amount)."""
    user, days, amount = zip(*rows, strict=True)
    frame = pd.DataFrame({"user_id": user, "amount": amount})
    frame["event_timestamp"] = pd.to_datetime([START + DAY * day for day in days]).as_unit("us")
    return frame.assign(
        pages=[int(value) for value in amount], browser="firefox", tags=[[str(value)] for value in amount]
    )


class Shop:
    """A Feast repository whose two views are pushed to, on an online store of the given kind."""

    def __init__(self, root: Path, online: str = ""):
        self.folder, self.repo = root / "visits", root / "repo"
        self.folder.mkdir()
        self.repo.mkdir()
        online = online or f"{{type: sqlite, path: {root}/online.db}}"
        (self.repo / "feature_store.yaml").write_text(SETTINGS.format(root=root, online=online))
        (self.repo / "features.py").write_text(DEFINITIONS.format(path=str(self.folder)))
        events([(9, 0.0, 9.0)]).to_parquet(self.folder / "first.parquet", index=False)
        self.feast = FeastResource(repo=str(self.repo))
        self.feast.apply()

    def amounts(self, *users: int) -> list[float | None]:
        frame = self.feast.online_features(pd.DataFrame({"user_id": users}), "usage")
        return [None if pd.isna(value) else value for value in frame["amount"]]


@pytest.fixture
def shop(tmp_path):
    return Shop(tmp_path)


def test_neither_a_push_nor_a_materialization_puts_an_older_event_over_a_newer_one(shop):
    store = shop.feast.store()
    with alone(store, shop.repo, "visits", 60), newer_events_kept(store) as written:
        store.push("visits_push", events([(1, 3, 30.0), (1, 2, 20.0), (2, 3, 31.0)]))
        assert (written.keys, written.kept) == (4, 0)  # two keys in each of two views
        store.push("visits_push", events([(1, 1, 10.0), (2, 4, 40.0), (3, 1, 11.0)]))
        assert (written.keys, written.kept) == (8, 2)
    assert shop.amounts(1, 2, 3) == [30.0, 40.0, 11.0]

    events([(1, 2.5, 25.0), (2, 4, 44.0), (4, 1, 12.0)]).to_parquet(shop.folder / "later.parquet", index=False)
    with newer_events_kept(store) as written:
        store.materialize(START, START + 5 * DAY, feature_views=["visits"])
    assert written.kept == 1
    assert shop.amounts(1, 2, 4) == [30.0, 44.0, 12.0]  # of equal moments the last to come
    store.push("visits_push", events([(1, 1, 10.0)]))
    assert shop.amounts(1) == [10.0]  # what Feast does by itself
