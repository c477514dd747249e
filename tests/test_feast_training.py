"""Training sets that can be made again bit for bit, and the checks of what they hold."""

import os
import shutil
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest

from dagster_mlops.dvc import DvcResource, dvc_io_manager
from dagster_mlops.feast import FeastResource, training_set_asset
from dagster_mlops.feast.frame_hash import content_hash
from dagster_mlops.feast.rebuild import find_record, rebuild
from dagster_mlops.feast.resolver import FeastResolver
from dagster_mlops.provenance import Accessible, Dataset, TrainingSet

pytestmark = [
    # Feast and ibis use what their own dependencies have deprecated; none of it is ours to change.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

SETTINGS = """
project: shop
provider: local
registry: {registry_type: sql, path: "sqlite:///${SHOP}/registry.db", cache_ttl_seconds: 0}
online_store: {type: sqlite, path: "${SHOP}/online.db"}
offline_store: {type: ENGINE}
entity_key_serialization_version: 3
"""
ENGINE = "dagster_mlops.feast.offline_store.AsofOfflineStore"
DEFINITIONS = """
import os
from datetime import timedelta
import pandas as pd
from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.data_format import ParquetFormat
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64, String

def table(name, path, **more):
    return FileSource(name=name, path=os.environ["SHOP"] + "/" + path, file_format=ParquetFormat(),
                      timestamp_field="event_timestamp", **more)

def view(source, ttl, *fields):
    return FeatureView(name=source.name, entities=[store], ttl=ttl, source=source, schema=list(fields))

store = Entity(name="store", join_keys=["store"], value_type=ValueType.STRING)
visits = view(table("visits", "data/visits"), timedelta(days=2),
              Field(name="visits", dtype=Int64), Field(name="crowd", dtype=String))
stock = view(table("stock", "data/stock.parquet"), timedelta(0), Field(name="stock", dtype=Float64))
prices = view(table("prices", "lake/prices.parquet", created_timestamp_column="created"), timedelta(days=30),
              Field(name="price", dtype=Float64))
request = RequestSource(name="basket", schema=[Field(name="items", dtype=Int64)])

@on_demand_feature_view(sources=[prices, request], schema=[Field(name="total", dtype=Float64)])
def basket(inputs: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({"total": inputs["price"] * inputs["items"]})

sales = FeatureService(name="sales", features=[visits, stock, basket])
"""
FEATURES = ["visits", "crowd", "stock", "total"]
STORES = ["s1", "s2", "s3"]


def _times(days: int, start: str = "2024-01-01") -> pd.DataFrame:
    moments = pd.date_range(start, periods=days * 2, freq="12h", tz="UTC").as_unit("us")
    return pd.MultiIndex.from_product([STORES, moments], names=["store", "event_timestamp"]).to_frame(index=False)


def _entities(rows: int = 300) -> pd.DataFrame:
    moments = [pd.Timestamp("2024-01-03", tz="UTC") + pd.Timedelta(hours=7 * i % 900) for i in range(rows)]
    frame = pd.DataFrame({"sale": range(rows), "store": [[*STORES, "s9"][i * 7 % 4] for i in range(rows)]})
    return frame.assign(sold_at=pd.Series(moments).dt.as_unit("us"), items=frame["sale"] % 5, label=frame["sale"] % 2)


class Shop:
    """A Feast repository, a DVC repository with a remote that holds some of its sources, a lake with the other."""

    def __init__(self, root: Path, engine: str = ENGINE):
        self.root, self.repo, self.data = root, root / "repo", root / "data"
        self.repo.mkdir()
        (self.repo / "feature_store.yaml").write_text(SETTINGS.replace("ENGINE", engine))
        (self.repo / "features.py").write_text(DEFINITIONS)
        os.environ["SHOP"] = str(root)
        self.feast = FeastResource(repo=str(self.repo))
        self.dvc = DvcResource(repo=str(self.data), remote_url=str(root / "remote"))
        self.dvc.init()
        (self.data / "visits").mkdir()
        for month, start in (("2024-01", "2024-01-01"), ("2024-02", "2024-02-01")):
            events = _times(29, start)
            crowd = events.index.map(lambda i: ["many", "few", None][i % 3])
            self.write("data/visits/" + month, events.assign(visits=events.index * 3, crowd=crowd))
        self.write("data/stock", _times(50).assign(stock=lambda f: f.index / 7))
        prices = _times(50).assign(price=lambda f: 1.5 + f.index % 11)
        self.write("lake/prices", prices.assign(created=prices["event_timestamp"]))

    def write(self, name: str, frame: pd.DataFrame) -> None:
        file = self.root / f"{name}.parquet"
        file.parent.mkdir(exist_ok=True)
        frame.to_parquet(file, index=False)
        if name.startswith("data/"):
            self.dvc.store(f"{name.removeprefix('data/')}.parquet")

    def assets(self, entities: pd.DataFrame, **options):
        @dg.asset(io_manager_key="dvc_io_manager")
        def sales_to_learn() -> pd.DataFrame:
            return entities

        training_set = training_set_asset(
            name="training_set", feature_service="sales", entities=sales_to_learn.key, timestamp_column="sold_at",
            **options,
        )  # fmt: skip
        return [sales_to_learn, training_set]

    def train(self, instance: dg.DagsterInstance, entities: pd.DataFrame | None = None, config=None, assets=None):
        """The records of a training set: Feast's and DVC's."""
        done = dg.materialize(
            assets or self.assets(_entities() if entities is None else entities),
            instance=instance,
            resources={"feast": self.feast, "dvc": self.dvc, "dvc_io_manager": dvc_io_manager},
            run_config={"ops": {"training_set": {"config": config}}} if config else {},
            selection=["training_set"] if config else None,
        )
        [event] = done.asset_materializations_for_node("training_set")
        made, stored = TrainingSet.from_metadata(event.metadata), Dataset.from_metadata(event.metadata)
        assert made is not None and stored is not None
        return made, stored

    def six_months_later(self) -> None:
        """Late rows, corrected rows, other definitions, other entities, and an empty cache."""
        late = _times(29).assign(event_timestamp=lambda f: f["event_timestamp"] + pd.Timedelta(hours=5))
        before = pd.read_parquet(self.data / "visits/2024-01.parquet")
        self.write("data/visits/2024-01", pd.concat([before, late.assign(visits=-1, crowd="late")]))
        self.write("data/visits/2024-03", _times(9, "2024-03-01").assign(visits=0, crowd="new"))
        self.write("data/stock", pd.read_parquet(self.data / "stock.parquet").assign(stock=-1.0))
        prices = pd.read_parquet(self.root / "lake/prices.parquet")
        corrected = prices.assign(price=-1.0, created=pd.Timestamp.now("UTC") + pd.Timedelta(days=180))
        self.write("lake/prices", pd.concat([corrected, prices]))
        text = DEFINITIONS.replace("days=2", "days=1").replace('inputs["items"]', '-inputs["items"]')
        text = text.replace("features=[visits, stock, basket]", "features=[stock]")
        (self.repo / "features.py").write_text(text)
        self.feast.apply()
        shutil.rmtree(self.data / ".dvc/cache")


@pytest.fixture
def shop(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOP", str(tmp_path))
    return Shop(tmp_path)


@pytest.fixture
def instance():
    with dg.instance_for_test() as instance:
        yield instance


def test_six_months_later_a_training_set_is_made_again_bit_for_bit(shop, instance):
    made, stored = shop.train(instance)
    then = shop.dvc.load(stored.path, md5=stored.md5)
    assert then["visits"].notna().any() and then["total"].notna().any() and content_hash(then) == made.content_hash

    shop.six_months_later()
    other, other_stored = shop.train(instance, _entities(50))
    assert other_stored.md5 != stored.md5 and other.ref != made.ref
    shutil.rmtree(shop.data / ".dvc/cache")

    again = rebuild(shop.feast, find_record(shop.feast, made.ref.id), datasets=shop.dvc)
    pd.testing.assert_frame_equal(again, then)
    assert FeastResolver().resolve(made.ref) == Accessible(made)

    # As run config, by the hash under which DVC keeps it: the same file, so the same data version.
    rebuilt, rebuilt_stored = shop.train(instance, config={"rebuild": stored.md5})
    assert rebuilt_stored.md5 == stored.md5 and rebuilt.ref == made.ref
    assert rebuilt.dagster_run_id != made.dagster_run_id
