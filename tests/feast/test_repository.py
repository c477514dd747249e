"""Feast repositories that others wrote, untouched, as asset graphs."""

import re
import shutil
import subprocess
import sys
import threading
import timeit
import traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest
from dagster.components.testing import create_defs_folder_sandbox

from dagster_mlops.errors import FeatureError
from dagster_mlops.feast import FeastResource, FeatureRepositoryComponent, feature_repository_defs
from dagster_mlops.feast.repository import get_asset_spec, load_repository, refresh_repository
from dagster_mlops.feast.repository.registry import create_tables
from tests.support import known_warnings
from tests.support.feast_loads import apply_unless_refused
from tests.support.warm_python import processes

pytestmark = [
    pytest.mark.usefixtures("warm_tools"),
    *known_warnings.DEPRECATED,
    *known_warnings.DAGSTER_BETA,
    *known_warnings.FEAST_EXPERIMENTAL,
]

ENGINE = {"type": "dagster_mlops.feast.offline_store.AsofOfflineStore"}
STREAM = """
from datetime import timedelta
from feast import Entity, FeatureService, Field, FileSource, KafkaSource
from feast.data_format import JsonFormat
from feast.stream_feature_view import stream_feature_view
from feast.types import Float64

rider = Entity(name="rider", join_keys=["rider_id"], owner="riders@example.com")
files = FileSource(path="data/rides.parquet", timestamp_field="at")
topic = KafkaSource(
    name="rides", kafka_bootstrap_servers="127.0.0.1:1", topic="rides", timestamp_field="at", batch_source=files,
    message_format=JsonFormat("rider_id string, fare double, at timestamp"),
)

@stream_feature_view(
    entities=[rider], ttl=timedelta(hours=2), mode="pandas", schema=[Field(name="fare", dtype=Float64)],
    timestamp_field="at", online=True, source=topic, owner="ride team", tags={"tier": "gold"},
)
def fares(df):
    return df.assign(fare=df["fare"] * 100)  # for the stream; the batch source holds the result

pricing = FeatureService(name="pricing", features=[fares], owner="pricing@example.com")
"""


def _feast(*arguments: str, cwd: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", "from feast.cli.cli import cli; cli()", *arguments]
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, timeout=120)


@pytest.fixture(scope="module")
def drivers(tmp_path_factory) -> Path:
    """The repository of `feast init -t local`, untouched."""
    root = tmp_path_factory.mktemp("template")
    _feast("init", "-t", "local", "drivers", cwd=root)
    return root / "drivers" / "feature_repo"


@pytest.fixture(scope="module")
def described_rides(tmp_path_factory) -> Path:
    repo = tmp_path_factory.mktemp("rides")
    (repo / "feature_store.yaml").write_text("project: rides\nprovider: local\nregistry: data/registry.db\n")
    (repo / "features.py").write_text(STREAM)
    load_repository(repo)
    return repo


@pytest.fixture
def rides(described_rides, tmp_path) -> Path:
    """A repository with a stream view; what Feast says of it is known, as its files are those of another folder."""
    return shutil.copytree(described_rides, tmp_path / "rides")


def _write_rides(repo: Path) -> pd.Timestamp:
    now = pd.Timestamp.now(tz="UTC").floor("s")
    frame = pd.DataFrame({"rider_id": ["a", "a"], "fare": [1.0, 2.0], "at": [now - timedelta(minutes=9), now]})
    (repo / "data").mkdir()
    frame.to_parquet(repo / "data" / "rides.parquet")
    return now


def _parents(defs: dg.Definitions) -> dict[str, set[str]]:
    found = defs.resolve_all_asset_specs()
    return {spec.key.to_user_string(): {dep.asset_key.to_user_string() for dep in spec.deps} for spec in found}


def _materialize(defs: dg.Definitions, *views: str, **options) -> dg.ExecuteInProcessResult:
    assets = [asset for asset in defs.assets or () if isinstance(asset, dg.AssetsDefinition)]
    return dg.materialize(assets, resources=defs.resources, selection=views, **options)


def test_the_local_template_has_its_lineage_from_source_to_service(drivers):
    assert _parents(feature_repository_defs(repo=drivers)) == {
        "sources/driver_hourly_stats_source": set(),
        "sources/driver_stats_push_source": set(),
        "sources/driver_quality_labels_batch": set(),
        "sources/driver_quality_labels_push": set(),
        "sources/vals_to_add": set(),
        "driver_hourly_stats": {"sources/driver_hourly_stats_source"},
        "driver_hourly_stats_fresh": {"sources/driver_hourly_stats_source", "sources/driver_stats_push_source"},
        "driver_quality_labels": {"sources/driver_quality_labels_batch", "sources/driver_quality_labels_push"},
        "transformed_conv_rate": {"driver_hourly_stats", "sources/vals_to_add"},
        "transformed_conv_rate_fresh": {"driver_hourly_stats_fresh", "sources/vals_to_add"},
        "feature_services/driver_activity_v1": {"driver_hourly_stats", "transformed_conv_rate"},
        "feature_services/driver_activity_v2": {"driver_hourly_stats", "transformed_conv_rate"},
        "feature_services/driver_activity_v3": {"driver_hourly_stats_fresh", "transformed_conv_rate_fresh"},
    }


def test_the_local_template_is_materialized_from_any_directory_and_serves(drivers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {file: file.read_bytes() for file in drivers.glob("*.[py]*") if file.is_file()}
    assert _materialize(feature_repository_defs(repo=drivers), "driver_hourly_stats").success
    source = pd.read_parquet(drivers / "data" / "driver_stats.parquet")
    newest = source.query("driver_id == 1001").sort_values(["event_timestamp", "created"]).iloc[-1]
    asked = {"driver_id": 1001, "val_to_add": 1, "val_to_add_2": 2}
    features = ["driver_hourly_stats:conv_rate", "transformed_conv_rate:conv_rate_plus_val2"]
    served = FeastResource(repo=str(drivers)).store().get_online_features(features, [asked]).to_dict()
    assert served["conv_rate"] == pytest.approx([newest["conv_rate"]])
    assert served["conv_rate_plus_val2"] == pytest.approx([newest["conv_rate"] + 2])
    assert before == {file: file.read_bytes() for file in drivers.glob("*.[py]*") if file.is_file()}
    assert not list(tmp_path.iterdir())


def test_a_join_wants_another_offline_store_than_feasts_default_and_the_file_need_not_change(drivers):
    source = pd.read_parquet(drivers / "data" / "driver_stats.parquet")
    assert str(source["event_timestamp"].dtype) == "datetime64[ns, UTC]"  # what pandas writes unless told otherwise
    rows = source.query("driver_id == 1002").sort_values("event_timestamp")[["driver_id", "event_timestamp"]].tail(3)
    rows = rows.assign(val_to_add=1, val_to_add_2=2, driver_id=rows["driver_id"].astype("int64"))
    feast = FeastResource(repo=str(drivers))
    feast.apply()
    with pytest.raises(FeatureError, match=r"(?s)silently drops entity rows.*AsofOfflineStore"):
        feast.historical_features(rows, "driver_activity_v1")
    joined = FeastResource(repo=str(drivers), offline_store=ENGINE).historical_features(rows, "driver_activity_v1")
    expected = rows.merge(source, on=["driver_id", "event_timestamp"])["conv_rate"]
    assert joined["conv_rate"].tolist() == pytest.approx(expected.tolist())


@pytest.fixture
def checkouts(tmp_path) -> tuple[Path, Path]:
    """Two clones of one Feast repository, with one registry."""
    origin, mine, theirs = (tmp_path / name for name in ("origin", "mine", "theirs"))
    origin.mkdir()
    (origin / "feature_store.yaml").write_text(
        f"project: p\nprovider: local\nregistry: {{registry_type: sql, path: 'sqlite:///{tmp_path}/registry.db'}}\n"
        f"online_store: {{type: sqlite, path: {tmp_path}/online.db}}\n"
    )
    (origin / "features.py").write_text(STREAM)
    _write_rides(origin)
    _git("init", "-q", cwd=origin)
    _commit(origin)
    for copy in (mine, theirs):
        _git("clone", "-q", str(origin), str(copy), cwd=tmp_path)
    return mine, theirs


def _git(*arguments: str, cwd: Path) -> None:
    subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=n@e", *arguments], cwd=cwd, check=True)


def _commit(checkout: Path) -> None:
    _git("add", "-A", cwd=checkout)
    _git("commit", "-q", "-m", "Define", cwd=checkout)


def _set_ttl(checkout: Path, hours: int) -> None:
    file = checkout / "features.py"
    file.write_text(re.sub(r"timedelta\(hours=\d+\)", f"timedelta(hours={hours})", file.read_text()))


@pytest.mark.thorough
def test_a_plain_feast_apply_is_noticed_unless_it_applied_the_same(checkouts):
    mine, theirs = checkouts
    feast = FeastResource(repo=str(mine))
    assert feast.apply() and not feast.apply()
    _set_ttl(theirs, 3)
    _feast("apply", cwd=theirs)
    with pytest.raises(
        FeatureError,
        match=r"no longer has the definitions of .*: a `feast apply` from elsewhere changed fares",
    ):
        feast.apply()
    _set_ttl(mine, 4)
    with pytest.raises(FeatureError, match=r"someone ran `feast apply`.* fares"):
        feast.apply()
    _set_ttl(mine, 3)
    assert not feast.apply()  # as after a deployment whose pipeline had run `feast apply` first


@pytest.mark.thorough
def test_of_two_checkouts_only_a_newer_one_replaces_what_the_other_applied(checkouts):
    mine, theirs = checkouts
    older, newer = FeastResource(repo=str(mine)), FeastResource(repo=str(theirs))
    assert older.apply()
    _set_ttl(theirs, 3)
    _commit(theirs)
    assert newer.apply() and not newer.apply()
    with pytest.raises(FeatureError, match=r"what another checkout applied at .*theirs.* is not known to be newer"):
        older.apply()
    _git("pull", "-q", str(theirs), cwd=mine)
    assert not older.apply()
    shutil.rmtree(theirs / ".git")  # as in an image that was built from it: it still knows that it had its turn
    _set_ttl(mine, 4)
    assert older.apply()
    with pytest.raises(FeatureError, match=r"mine.* with changes"):
        newer.apply()
    assert newer.apply(force=True)


@pytest.mark.thorough
def test_a_registry_alone_is_a_repository_that_is_read_once_and_never_applied_over(checkouts, tmp_path):
    mine, theirs = checkouts
    FeastResource(repo=str(mine)).apply()
    (theirs / "features.py").unlink()
    assert _parents(feature_repository_defs(repo=theirs)) == {
        "sources/data_rides.parquet": set(),
        "sources/rides": set(),
        "fares": {"sources/data_rides.parquet", "sources/rides"},
        "feature_services/pricing": {"fares"},
    }
    registry = tmp_path / "registry.db"
    registry.rename(tmp_path / "away.db")
    with pytest.raises(FeatureError, match="Feast cannot read"):
        (theirs / "feature_store.yaml").write_text("project: p\nprovider: local\nregistry: {registry_type: nonsense}\n")
        refresh_repository(theirs)
    _git("checkout", "-q", "--", "feature_store.yaml", cwd=theirs)
    assert load_repository(theirs).views[0].ttl_seconds == 7200  # known, whether or not the registry answers
    (tmp_path / "away.db").rename(registry)

    assert _materialize(feature_repository_defs(repo=theirs), "fares").success
    assert FeastResource(repo=str(theirs)).store().list_stream_feature_views()

    _set_ttl(mine, 3)
    FeastResource(repo=str(mine)).apply()
    assert load_repository(theirs).views[0].ttl_seconds == 7200
    assert refresh_repository(theirs).views[0].ttl_seconds == 10800 == load_repository(theirs).views[0].ttl_seconds


@pytest.mark.thorough
def test_two_processes_that_apply_different_commits_at_once_do_not_overwrite_each_other(checkouts):
    for hours, checkout in enumerate(checkouts, start=3):
        _set_ttl(checkout, hours)
        _commit(checkout)
    pipes = [processes.Pipe() for _ in checkouts]
    for checkout, (_, there) in zip(checkouts, pipes, strict=True):
        processes.Process(target=apply_unless_refused, args=(checkout, there)).start()
    refusals = [here.recv() if here.poll(120) else "nothing was told" for here, _ in pipes]
    [winner] = [number for number, refusal in enumerate(refusals) if not refusal]
    assert "what another checkout applied" in refusals[1 - winner]
    [view] = FeastResource(repo=str(checkouts[winner])).store().list_stream_feature_views()
    assert view.ttl == timedelta(hours=3 + winner)


def test_many_that_open_a_new_registry_at_once_all_get_it(checkouts):
    stores = [FeastResource(repo=str(checkouts[0])).store() for _ in range(8)]
    at_once = threading.Barrier(len(stores))

    def open_registry(store):
        at_once.wait()
        create_tables(store)
        return store.list_feature_views()

    with ThreadPoolExecutor(len(stores)) as pool:
        assert list(pool.map(open_registry, stores)) == [[]] * len(stores)


def test_a_stream_view_has_its_topic_ttl_owner_and_schema(rides):
    defs = feature_repository_defs(repo=rides, key_prefix=["feast"], include=["sources", "services", "entities"])
    assert _parents(defs) == {
        "feast/sources/data_rides.parquet": set(),
        "feast/sources/rides": set(),
        "feast/fares": {"feast/sources/data_rides.parquet", "feast/sources/rides"},
        "feast/feature_services/pricing": {"feast/fares"},
        "feast/entities/rider": set(),
    }
    specs = {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}
    view = specs["feast/fares"]
    assert view.freshness_policy == dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=2))
    assert view.owners == ["team:ride-team"] and view.tags["feast/tier"] == "gold"
    columns = view.metadata["dagster/column_schema"].columns
    assert [(column.name, column.type) for column in columns][-1] == ("fare", "Float64")
    assert specs["feast/feature_services/pricing"].owners == ["pricing@example.com"]
    assert specs["feast/entities/rider"].metadata["feast/join_key"] == "rider_id"


def test_a_stream_view_is_materialized_from_its_batch_source_as_historical_features_read_it(rides):
    now = _write_rides(rides)
    assert _materialize(feature_repository_defs(repo=rides), "fares").success
    feast = FeastResource(repo=str(rides), offline_store=ENGINE)
    asked = pd.DataFrame({"rider_id": ["a"], "event_timestamp": [now]})
    assert feast.historical_features(asked, "pricing")["fare"].tolist() == [2.0]
    assert feast.online_features(asked, "pricing")["fare"].tolist() == [2.0]


def test_your_asset_takes_the_place_of_a_source_and_your_translation_that_of_ours(rides):
    def translate(thing):
        spec = get_asset_spec(thing, "rides")
        return spec.replace_attributes(key=spec.key.with_prefix("mine"), group_name="mine")

    writer = dg.AssetKey(["lake", "rides"])
    defs = feature_repository_defs(repo=rides, sources={"data/rides.parquet": writer}, get_asset_spec=translate)
    parents = _parents(defs)
    assert parents["mine/fares"] == {"lake/rides", "mine/sources/rides"}
    assert "mine/sources/data_rides.parquet" not in parents


def test_what_is_not_there_is_named(rides):
    with pytest.raises(FeatureError, match=r"defines no source weather \(it has: data/rides.parquet, rides\)"):
        feature_repository_defs(repo=rides, sources={"weather": "weather"})
    with pytest.raises(FeatureError, match=r"include= accepts sources, .*, not views"):
        feature_repository_defs(repo=rides, include=["views"])
    (rides / "feature_store.yaml").write_text("project: rides\nprovider: local\nonline_store: {type: nonsense}\n")
    with pytest.raises(FeatureError, match=r"Feast does not accept .*feature_store.yaml"):
        FeastResource(repo=str(rides)).store()


def test_a_known_repository_loads_in_milliseconds_and_without_feast(rides, cold_python):
    load_repository(rides)
    code = (
        "import sys, time; from dagster_mlops.feast import feature_repository_defs\n"
        "s = time.process_time(); feature_repository_defs(repo=sys.argv[1])\n"
        "print(time.process_time() - s); assert 'feast' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(rides)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.5
    assert min(timeit.repeat(lambda: load_repository(rides), number=1, repeat=5)) < 0.1


class RidesComponent(FeatureRepositoryComponent):
    """As a team would write it."""

    def get_asset_spec(self, item, project):
        return super().get_asset_spec(item, project).merge_attributes(tags={"project": project})


def test_a_whole_repository_becomes_a_graph_in_yaml_with_your_attributes(rides):
    attributes = {"repo": str(rides), "lineage": True, "sources": {"rides": "lake/rides"}, "key_prefix": ["feast"]}
    attributes["translation"] = {"owners": ["team:pricing"], "description": "Feast calls it {{ item.name }}."}
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(
            component_cls=RidesComponent,
            defs_path="features",
            defs_yaml_contents={"type": "tests.feast.test_repository.RidesComponent", "attributes": attributes},
        )
        with sandbox.load_component_and_build_defs(defs_path=path) as (_, defs):
            parents = _parents(defs)
            view = next(spec for spec in defs.resolve_all_asset_specs() if spec.key.path[-1] == "fares")
    assert parents["feast/fares"] == {"feast/sources/data_rides.parquet", "lake/rides"}
    assert parents["feast/feature_services/pricing"] == {"feast/fares"}
    assert view.owners == ["team:pricing"] and view.description == "Feast calls it fares."
    assert view.tags["project"] == "rides" and view.freshness_policy and view.metadata["feast/project"] == "rides"


SECRETS = ("pg-Passw0rd", "redis-Passw0rd", "s3cret-url-pw", "sourcePassw0rd")


def test_passwords_of_a_repository_are_nowhere_but_in_its_files(rides, caplog):
    (rides / "feature_store.yaml").write_text(
        "project: rides\nprovider: local\n"
        f"registry: {{registry_type: sql, path: 'postgresql://feast:{SECRETS[2]}@127.0.0.1:1/feast'}}\n"
        f"online_store: {{type: redis, connection_string: '127.0.0.1:1,password={SECRETS[1]}'}}\n"
        f"offline_store: {{type: postgres, host: 127.0.0.1, port: 1, database: d, user: u, password: {SECRETS[0]}}}\n"
    )
    source = f"s3://key:{SECRETS[3]}@bucket/rides.parquet"
    (rides / "features.py").write_text(STREAM.replace("data/rides.parquet", source))
    seen = []
    with dg.instance_for_test() as instance:
        defs = feature_repository_defs(repo=rides)
        seen += [str(spec) for spec in defs.resolve_all_asset_specs()]
        failed = _materialize(defs, "fares", instance=instance, raise_on_error=False)
        assert not failed.success  # there is no server
        seen += [str(record.event_log_entry) for record in instance.get_records_for_run(failed.run_id).records]
    settings = rides / "feature_store.yaml"
    settings.write_text(settings.read_text().replace("port: 1,", "port: none,"))
    with pytest.raises(FeatureError, match="Feast does not accept") as unaccepted:
        FeastResource(repo=str(rides)).store()
    with pytest.raises(FeatureError, match="Feast cannot read") as unread:
        refresh_repository(rides)
    settings.write_text(f"project: rides\nonline_store: {{password: {SECRETS[1]}\n")
    with pytest.raises(FeatureError, match="is not valid YAML") as invalid:
        load_repository(rides)
    for error in (unaccepted, unread, invalid):
        seen += traceback.format_exception(error.value)
    seen += [file.read_text() for file in (rides / ".dagster_mlops").iterdir()] + [caplog.text]
    assert not [secret for secret in SECRETS if any(secret in text for text in seen)]
