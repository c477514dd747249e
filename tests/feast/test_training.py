"""Training sets that can be made again bit for bit, and the checks of what they hold."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from dagster_mlops.core.table_hash import content_hash
from dagster_mlops.dvc import DvcResource, dvc_io_manager
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast import FeastResource, training_set_asset, training_set_checks
from dagster_mlops.feast.commands import app
from dagster_mlops.feast.rebuild import snapshot
from dagster_mlops.feast.rebuild.replay import find_record, rebuild
from dagster_mlops.feast.repository import registry
from dagster_mlops.feast.tool import FeastTool
from dagster_mlops.provenance import Accessible, Dataset, Deleted, Faulty, Inaccessible, TrainingSet
from tests.support import known_warnings
from tests.support.feast_loads import put_records
from tests.support.warm_python import processes

pytestmark = [pytest.mark.usefixtures("warm_tools"), *known_warnings.DEPRECATED]

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
            name="training_set", feature_service="sales", entities=sales_to_learn, timestamp_column="sold_at",
            **{"io_manager_key": "dvc_io_manager", **options},
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
    assert (
        then["visits"].notna().any()
        and then["total"].notna().any()
        and content_hash(then, tool="feast") == made.content_hash
    )

    shop.six_months_later()
    other, other_stored = shop.train(instance, _entities(50))
    assert other_stored.md5 != stored.md5 and other.ref != made.ref
    shutil.rmtree(shop.data / ".dvc/cache")

    again = rebuild(shop.feast, find_record(shop.feast, made.ref.id), datasets=shop.dvc)
    pd.testing.assert_frame_equal(again, then)
    assert FeastTool().resolve(made.ref) == Accessible(made)

    # As run config, by the hash under which DVC keeps it: the same file, so the same data version.
    rebuilt, rebuilt_stored = shop.train(instance, config={"rebuild": stored.md5})
    assert rebuilt_stored.md5 == stored.md5 and rebuilt.ref == made.ref
    assert rebuilt.dagster_run_id != made.dagster_run_id


@pytest.mark.thorough
def test_the_same_inputs_give_the_same_bytes_in_every_process_and_engine(shop, instance):
    """Hash seeds, threads and engines: one content."""
    made, _ = shop.train(instance)
    entities = shop.root / "entities.parquet"
    _entities().to_parquet(entities)
    script = """
        import sys
        import pandas as pd
        from dagster_mlops.feast import FeastResource
        from dagster_mlops.core.table_hash import content_hash
        asof = {"type": "ENGINE", "threads": int(sys.argv[3]), "chunk_rows": 70}
        for engine in (asof, {"type": "duckdb"}):
            feast = FeastResource(repo=sys.argv[1], offline_store=engine)
            frame = feast.historical_features(pd.read_parquet(sys.argv[2]), "sales", timestamp_column="sold_at")
            print("content", content_hash(frame, tool="feast"))
    """.replace("ENGINE", ENGINE)
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), shop.repo, entities, threads],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONHASHSEED": seed},
        )
        for seed, threads in (("1", "1"), ("77", "4"))
    ]  # fmt: skip
    told = [line for process in started for line in process.communicate(timeout=120)[0].splitlines()]
    assert [line for line in told if line.startswith("content")] == [f"content {made.content_hash}"] * 4


def test_rows_that_nothing_tells_apart_are_joined_the_same_way_by_one_thread_and_by_many(shop):
    stock = pd.concat([_times(50).assign(stock=float(i)) for i in range(40)]).sample(frac=1, random_state=1)
    shop.write("data/stock", stock)
    shop.feast.apply()
    hashes = set()
    for threads in (1, 2, 4, 4):
        feast = FeastResource(repo=str(shop.repo), offline_store={"type": ENGINE, "threads": threads})
        hashes.add(
            content_hash(feast.historical_features(_entities(), "sales", timestamp_column="sold_at"), tool="feast")
        )
    assert len(hashes) == 1


@pytest.mark.thorough
@pytest.mark.parametrize("kind", [pa.Table, pl.DataFrame])
def test_arrow_and_polars_entities_give_an_arrow_table_of_the_same_content_that_can_be_rebuilt(shop, instance, kind):
    by_pandas, _ = shop.train(instance)
    assets = shop.assets(_entities(), entities_type=kind)
    made, _ = shop.train(instance, assets=assets)
    assert made.content_hash == by_pandas.content_hash and made.rows == 300
    kept = snapshot.get(shop.feast.store(), made.snapshot)
    assert kept is not None and kept.frame == "pyarrow"
    shop.six_months_later()
    again = rebuild(shop.feast, made, datasets=shop.dvc)
    assert isinstance(again, pa.Table) and content_hash(again, tool="feast") == made.content_hash


def test_partitions_of_entities_are_put_together_in_their_order_again(shop, instance):
    weeks = dg.StaticPartitionsDefinition(["w1", "w2"])

    @dg.asset(io_manager_key="dvc_io_manager", partitions_def=weeks)
    def sales_to_learn(context: dg.AssetExecutionContext) -> pd.DataFrame:
        return _entities(60).iloc[slice(0, 40) if context.partition_key == "w2" else slice(40, 60)]

    training_set = training_set_asset(
        name="training_set", feature_service="sales", entities=sales_to_learn, timestamp_column="sold_at",
        io_manager_key="dvc_io_manager",
    )  # fmt: skip
    resources = {"feast": shop.feast, "dvc": shop.dvc, "dvc_io_manager": dvc_io_manager}
    for week in ("w1", "w2"):
        dg.materialize([sales_to_learn], partition_key=week, instance=instance, resources=resources)
    done = dg.materialize(
        [sales_to_learn, training_set], selection=["training_set"], instance=instance, resources=resources
    )
    [event] = done.asset_materializations_for_node("training_set")
    made = TrainingSet.from_metadata(event.metadata)
    assert made is not None and made.rows == 60
    assert list(done.output_for_node("training_set")["sale"]) == [*range(40, 60), *range(40)]
    assert content_hash(rebuild(shop.feast, made, allow=[str(shop.root)]), tool="feast") == made.content_hash


@pytest.mark.thorough
def test_the_command_rebuilds_from_the_repositories_that_the_record_names(shop, instance):
    made, _ = shop.train(instance)
    shop.six_months_later()
    out = shop.root / "again.parquet"
    command = [sys.executable, "-W", "ignore", "-c", "from dagster_mlops.cli import main; main()", "feast"]
    arguments = [
        "rebuild",
        made.content_hash[:10],
        "--repo",
        str(shop.repo),
        "--out",
        str(out),
        "--allow",
        str(shop.data),
    ]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and made.content_hash in done.stdout, done.stderr
    assert content_hash(pq.read_table(out), tool="feast") == made.content_hash
    arguments[1] = "shop/sales@nothing"
    unknown = CliRunner().invoke(app, arguments)
    assert unknown.exit_code == 2 and "matches no training sets" in unknown.output and made.ref.id in unknown.output


def _without(shop, what):
    """Take one ingredient of a training set away."""
    if what == "entities":
        md5 = shop.dvc.data_version("sales_to_learn.parquet")
        (shop.root / "remote/files/md5" / md5[:2] / md5[2:]).unlink()
        (shop.data / "sales_to_learn.parquet").unlink()
    elif what == "source":
        md5 = shop.dvc.data_version("stock.parquet")
        (shop.root / "remote/files/md5" / md5[:2] / md5[2:]).unlink()
        (shop.data / "stock.parquet").unlink()
    elif what == "lake":
        (shop.root / "lake/prices.parquet").unlink()
    elif what == "backdated":
        prices = pd.read_parquet(shop.root / "lake/prices.parquet")
        shop.write("lake/prices", prices.assign(price=-2.0))
    shutil.rmtree(shop.data / ".dvc/cache")


def test_a_rebuild_names_the_ingredient_that_is_missing(shop, instance, tmp_path_factory):
    made, _ = shop.train(instance)
    complete = tmp_path_factory.mktemp("complete") / "shop"
    shutil.copytree(shop.root, complete)
    for what, message in (
        ("entities", r"without its entities sales_to_learn\.parquet@"),
        ("source", r"without the recorded source 'stock', stock\.parquet@"),
        ("lake", r"source 'prices' cannot be read as of"),
        ("backdated", r"is not the same: .*Sources without versions.*: prices"),
    ):
        _without(shop, what)
        with pytest.raises(FeatureError, match=message):
            rebuild(shop.feast, made, datasets=shop.dvc)
        for place in ("data", "lake", "remote"):
            shutil.rmtree(shop.root / place)
            shutil.copytree(complete / place, shop.root / place)


def test_a_source_without_versions_and_without_created_times_is_rebuilt_only_while_it_stays_as_it_is(shop, instance):
    text = DEFINITIONS.replace(', created_timestamp_column="created"', "")
    (shop.repo / "features.py").write_text(text)
    made, _ = shop.train(instance)
    assert content_hash(rebuild(shop.feast, made, allow=[str(shop.root)]), tool="feast") == made.content_hash
    shop.write("lake/prices", pd.read_parquet(shop.root / "lake/prices.parquet").assign(price=0.0))
    with pytest.raises(FeatureError, match=r"source 'prices' .*was in no dataset, .*created_timestamp_column"):
        rebuild(shop.feast, made, allow=[str(shop.root)])


def test_entities_that_no_dataset_holds_cannot_be_rebuilt(shop, instance):
    assets = [dg.asset(name="sales_to_learn")(lambda: _entities()), shop.assets(_entities())[1]]
    made, _ = shop.train(instance, assets=assets)
    with pytest.raises(FeatureError, match="Store the entities by the DVC IO manager"):
        rebuild(shop.feast, made, allow=[str(shop.root)])


def test_a_source_that_changes_while_it_is_read_counts_as_without_version(shop):
    shop.feast.apply()
    before = snapshot.take(shop.feast.store(), "sales", entities=[], timestamp_column="sold_at")
    assert [source.name for source in before.sources if source.versioned] == ["stock", "visits"]
    assert snapshot.settled(before) == before
    (shop.data / "visits/2024-02.parquet").write_bytes(b"changed")
    after = snapshot.settled(before)
    assert [source.name for source in after.sources if source.versioned] == ["stock"]


@pytest.mark.thorough
def test_the_resolver_answers_by_what_is_kept(shop, instance, monkeypatch, tmp_path):
    made, _ = shop.train(instance)
    store, name = shop.feast.store(), f"dagster_mlops/snapshot/{made.snapshot}"
    assert FeastTool().resolve(made.ref) == Accessible(made)
    (shop.repo / "features.py").write_text(DEFINITIONS.replace('name="sales"', 'name="sold"'))
    shop.feast.apply()
    assert FeastTool().resolve(made.ref) == Accessible(made), "its service is gone, what it was made from is not"

    kept = registry.get_tags(store, name)
    registry.put_tags(store, name, {key: text[:-8] for key, text in kept.items()})
    damaged = FeastTool().resolve(made.ref)
    assert isinstance(damaged, Faulty) and "damaged" in damaged.reason and damaged.record == made
    store.registry.delete_saved_dataset(name, "shop")
    lost = FeastTool().resolve(made.ref)
    assert isinstance(lost, Deleted) and "no longer" in lost.reason and made.snapshot in lost.reason
    with pytest.raises(FeatureError, match=f"has no snapshot {made.snapshot}"):
        rebuild(shop.feast, made, allow=[str(shop.root)])
    (shop.repo / "features.py").write_text(DEFINITIONS.replace("days=2", "days=3"))
    shop.feast.apply()
    redefined = FeastTool().resolve(made.ref)
    assert isinstance(redefined, Faulty) and "redefined" in redefined.reason
    monkeypatch.setenv("SHOP", str(tmp_path / "elsewhere"))
    assert isinstance(FeastTool().resolve(made.ref), Inaccessible)


def _judge(shop, instance, stored, only=None, **options):
    """The verdicts of all checks, or of one, on a frame that is stored as the training set."""

    @dg.asset
    def training_set() -> dg.Output[pd.DataFrame]:
        joined = shop.feast.historical_features(_entities(), "sales", timestamp_column="sold_at")
        made = TrainingSet(
            feature_service="sales", project="shop", repo=str(shop.repo), registry_hash="r", entity_hash="e",
            rows=len(joined), content_hash=content_hash(joined, tool="feast"),
        )  # fmt: skip
        return dg.Output(stored(joined), metadata=made.to_metadata())

    checks = training_set_checks(
        asset="training_set", feature_service="sales", timestamp_column="sold_at",
        **{"label": "label", "unique": ["sale"], **options},
    )  # fmt: skip
    asset = dg.AssetSelection.assets(training_set).without_checks()
    done = dg.materialize(
        [training_set, *checks], instance=instance, resources={"feast": shop.feast}, raise_on_error=False,
        selection=asset | dg.AssetSelection.checks(dg.AssetCheckKey(training_set.key, only)) if only else None,
    )  # fmt: skip
    return {evaluation.check_name: evaluation for evaluation in done.get_asset_check_evaluations()}


CHECKS = {"null_shares", "no_duplicates", "rows_kept", "no_leakage", "ttl_misses", "cardinality"}


def test_a_sound_training_set_passes_all_checks(shop, instance):
    shop.feast.apply()
    verdicts = _judge(shop, instance, lambda joined: joined, max_null_share=0.8)
    assert set(verdicts) == CHECKS
    assert [name for name, verdict in verdicts.items() if not verdict.passed] == []
    facts = verdicts["no_leakage"].metadata
    assert facts["feast/sampled_rows"].value == 300 and facts["feast/rows_not_in_source"].value == 0
    assert facts["feast/not_looked_up"].value == {"basket": "it is computed on demand"}
    table = facts["feast/origins"]
    assert isinstance(table, dg.TableMetadataValue)
    rows = [row.data for row in table.records]
    assert {row["feature"] for row in rows} == {"visits", "crowd", "stock"} and all(
        float(r["nearest (s)"] or 0) >= 0 for r in rows
    )
    assert isinstance(verdicts["null_shares"].metadata["feast/null_share/crowd"].value, float)


def _from_tomorrow(shop):
    """Each row with what was known half a day later: the classic leak."""
    late = _entities().assign(sold_at=lambda f: f["sold_at"] + pd.Timedelta(hours=12))
    leaking = shop.feast.historical_features(late, "sales", timestamp_column="sold_at")
    return lambda joined: leaking.assign(sold_at=joined["sold_at"])


FAULTS = {
    "a value from the future": ("no_leakage", _from_tomorrow, {}, "hold values from later"),
    "a feature that is the label": (
        "no_leakage", lambda shop: lambda joined: joined.assign(stock=joined["label"] * 1.0), {}, "stock is the label",
    ),
    "a lost row": ("rows_kept", lambda shop: lambda joined: joined.iloc[1:], {}, "299 rows are stored, and 300"),
    "a changed value": ("rows_kept", lambda shop: lambda joined: joined.assign(items=0), {}, "other values or types"),
    "a constant": ("cardinality", lambda shop: lambda joined: joined.assign(stock=1.0), {}, "constant: stock"),
    "an exploding text": (
        "cardinality", lambda shop: lambda joined: joined.assign(crowd=joined["sale"].map(str)), {}, "crowd (100.0%)",
    ),
    "gaps": ("null_shares", lambda shop: lambda joined: joined, {"max_null_share": {"crowd": 0.01}}, "crowd ("),
    "a repeated row": ("no_duplicates", lambda shop: lambda joined: joined.assign(sale=1), {}, ""),
}  # fmt: skip


def test_each_fault_fails_its_check_and_is_named(shop, instance):
    shop.feast.apply()
    for fault, (check, spoil, options, message) in FAULTS.items():
        verdict = _judge(shop, instance, spoil(shop), only=check, **options)[check]
        assert not verdict.passed and message in (verdict.description or ""), (fault, verdict)
        warns = check in ("ttl_misses", "cardinality") or fault == "a changed value"
        assert (verdict.severity is dg.AssetCheckSeverity.WARN) == warns, fault


def test_rows_whose_newest_row_is_beyond_the_ttl_are_counted_by_view(shop, instance):
    shop.feast.apply()
    visits = pd.read_parquet(shop.data / "visits/2024-01.parquet")
    shop.write("data/visits/2024-01", visits[visits["event_timestamp"] < "2024-01-10"])
    verdict = _judge(shop, instance, lambda joined: joined, only="ttl_misses", max_expired_share=0.0)["ttl_misses"]
    assert (
        not verdict.passed and "visits (" in str(verdict.description) and verdict.severity is dg.AssetCheckSeverity.WARN
    )
    assert verdict.metadata["feast/expired_share/stock"].value == 0.0


def test_a_check_that_breaks_has_failed_and_says_why(shop, instance):
    shop.feast.apply()

    def spoil(joined):
        shutil.rmtree(shop.data / "visits")
        return joined.drop(columns="crowd")

    verdicts = _judge(shop, instance, spoil, max_null_share={"no_such": 0.1}, unique=["sale", "nobody"])
    for name, message in {
        "null_shares": "no columns no_such", "no_duplicates": "no columns nobody", "no_leakage": "no file at",
        "ttl_misses": "no file at", "cardinality": "no columns crowd",
    }.items():  # fmt: skip
        assert not verdicts[name].passed and message in str(verdicts[name].metadata["feast/error"].value)


@pytest.mark.thorough
def test_two_processes_leave_all_their_records_even_in_a_registry_that_is_a_file(shop):
    text = SETTINGS.replace("ENGINE", ENGINE)
    text = text.replace('registry_type: sql, path: "sqlite:///${SHOP}/registry.db"', 'path: "${SHOP}/file.db"')
    (shop.repo / "feature_store.yaml").write_text(text)
    shop.feast.apply()
    running = [processes.Process(target=put_records, args=(shop.repo, os.environ["SHOP"], who, 20)) for who in "ab"]
    for process in running:
        process.start()
    for process in running:
        process.join(120)
    assert [process.exitcode for process in running] == [0, 0]
    assert len(list(registry.records(shop.feast.store()))) == 40
