"""Datasets in a real git + DVC repository with a local remote."""

import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import dagster as dg
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from dagster.components.testing import create_defs_folder_sandbox
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dagster_mlops import dvc as plugin
from dagster_mlops.dvc import (
    DatasetComponent,
    DvcResource,
    dataset_asset,
    dataset_checks,
    dvc_io_manager,
    observed_dataset_assets,
)
from dagster_mlops.dvc.tool import DvcTool
from dagster_mlops.errors import DatasetError
from dagster_mlops.provenance import Accessible, Dataset, Deleted, Faulty, Inaccessible, Ref
from tests.support import known_warnings

pytestmark = [
    pytest.mark.usefixtures("warm_dvc"),
    *known_warnings.DVC,
    *known_warnings.UNCLOSED,
    *known_warnings.DAGSTER_BETA,
]

MONTHS = dg.StaticPartitionsDefinition(["2013-01", "2013-02"])


def _git(folder, *arguments):
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def _commits(folder):
    return _git(folder, "log", "--format=%s").splitlines()


def _objects(remote):
    return {file: file.stat().st_mtime_ns for file in remote.rglob("*") if file.is_file()}


@pytest.fixture
def dvc(tmp_path):
    return DvcResource(repo=str(tmp_path / "data"), remote_url=str(tmp_path / "remote"))


@pytest.fixture
def stored(dvc):
    """A repository with `x.txt`, which was first `one` and then `two`."""
    dvc.init()
    (dvc.root / "x.txt").write_text("one")
    first = dvc.store("x.txt", rows=1)
    (dvc.root / "x.txt").write_text("two")
    return first, dvc.store("x.txt", rows=2)


@pytest.fixture
def instance():
    with dg.instance_for_test() as instance:
        yield instance


@pytest.fixture
def run(dvc, instance):
    def run(*assets, resource=dvc, partition=None, select=None, **options):
        resources = {"dvc": resource, "dvc_io_manager": dvc_io_manager, "io_manager": dg.InMemoryIOManager()}
        return dg.materialize(
            assets, resources=resources, instance=instance, partition_key=partition, selection=select, **options
        )

    return run


@dataset_asset(path="raw/flights/{partition}.parquet", partitions_def=MONTHS, group_name="raw", code_version="1")
def flights(context) -> pd.DataFrame:
    return pd.DataFrame({"flight": [1, 2], "month": context.partition_key, "at": pd.Timestamp("2013-01-01", tz="UTC")})


@dg.asset(io_manager_key="dvc_io_manager")
def delays(flights: pd.DataFrame) -> dg.MaterializeResult:
    return dg.MaterializeResult(value=flights.assign(delay=3.0), metadata={"mean_delay": 3.0})


def _latest(instance, asset):
    return instance.get_latest_materialization_event(asset.key).asset_materialization


def _record(instance, asset):
    record = Dataset.from_metadata(_latest(instance, asset).metadata)
    assert record
    return record


def test_the_data_version_is_the_md5_of_the_file_and_the_pointer_in_git(run, dvc, instance):
    assert run(flights, partition="2013-01").success
    event, file = _latest(instance, flights), dvc.root / "raw/flights/2013-01.parquet"
    md5 = hashlib.md5(file.read_bytes()).hexdigest()
    assert event.tags["dagster/data_version"] == md5 == event.metadata["dvc/md5"].value
    pointer = yaml.safe_load(_git(dvc.root, "show", "HEAD:raw/flights/2013-01.parquet.dvc"))
    assert pointer["outs"][0]["md5"] == md5
    assert (Path(dvc.remote_url) / "files/md5" / md5[:2] / md5[2:]).read_bytes() == file.read_bytes()
    assert event.metadata["dagster/row_count"].value == 2 and event.metadata["dvc/bytes"].value == file.stat().st_size
    assert [c.name for c in event.metadata["dagster/column_schema"].value.columns] == ["flight", "month", "at"]


def test_the_record_is_in_dagster_and_in_the_pointer_file(run, dvc, instance):
    result = run(flights, partition="2013-01")
    record = _record(instance, flights)
    assert record.rev == _git(dvc.root, "rev-parse", "HEAD") and record.dagster_partition == "2013-01"
    [code] = record.upstream
    assert (code.tool, code.role, code.id) == ("git", "commit", record.code_commit)
    noted = dvc.pointer("raw/flights/2013-01.parquet", rev="HEAD")["meta"]["dagster_mlops"]
    assert Dataset.from_dict({**noted, "rev": record.rev}) == record
    message = _git(dvc.root, "log", "-1", "--format=%B")
    assert f"Dagster-Run: {result.run_id}" in message and "Dagster-Partition: 2013-01" in message


def test_unchanged_bytes_keep_the_version_and_commit_and_push_nothing(run, dvc, instance):
    run(flights, partition="2013-01")
    before = _latest(instance, flights).tags["dagster/data_version"], _commits(dvc.root), _objects(Path(dvc.remote_url))
    run(flights, partition="2013-01")
    after = _latest(instance, flights).tags["dagster/data_version"], _commits(dvc.root), _objects(Path(dvc.remote_url))
    assert before == after and _git(dvc.root, "status", "--porcelain") == ""


def test_a_downstream_asset_gets_all_partitions_and_its_record_names_them(run, dvc, instance):
    for month in MONTHS.get_partition_keys():
        run(flights, partition=month)
    assert run(flights, delays, select=[delays]).success
    assert list(pd.read_parquet(dvc.root / "delays.parquet")["month"]) == ["2013-01"] * 2 + ["2013-02"] * 2
    event = _latest(instance, delays)
    upstream = [ref.id.split("@")[0] for ref in _record(instance, delays).upstream if ref.tool == "dvc"]
    assert upstream == ["raw/flights/2013-01.parquet", "raw/flights/2013-02.parquet"]
    assert event.metadata["mean_delay"].value == 3.0


def test_the_annotation_says_how_a_dataset_is_loaded(run):
    seen = {}

    @dg.asset
    def by_month(flights: dict[str, pa.Table]) -> None:
        seen["by_month"] = flights

    @dg.asset
    def table(delays: pa.Table) -> None:
        seen["table"] = delays

    @dg.asset
    def path(delays: Path) -> None:
        seen["path"] = delays

    @dg.asset
    def anything(delays) -> None:
        seen["anything"] = delays

    for month in MONTHS.get_partition_keys():
        run(flights, partition=month)
    assert run(
        flights, delays, by_month, table, path, anything, select=[delays, by_month, table, path, anything]
    ).success
    assert list(seen["by_month"]) == MONTHS.get_partition_keys() and seen["by_month"]["2013-02"].num_rows == 2
    assert seen["table"].num_rows == 4 and seen["path"].name == "delays.parquet"
    pd.testing.assert_frame_equal(seen["anything"], seen["table"].to_pandas())


def test_loading_takes_the_version_of_the_latest_materialization_not_what_lies_there(run, dvc):
    @dataset_asset(path="note.txt")
    def note() -> str:
        return "materialized"

    seen = []

    @dg.asset
    def reader(note: str) -> None:
        seen.append(note)

    run(note)
    (dvc.root / "note.txt").write_text("edited by hand")
    assert run(note, reader, select=[reader]).success
    shutil.rmtree(dvc.root / ".dvc" / "cache")
    shutil.rmtree(dvc.root / ".dvc" / "tmp")
    assert run(note, reader, select=[reader]).success
    assert seen == ["materialized"] * 2
    assert (dvc.root / "note.txt").read_text() == "edited by hand"


def test_files_and_folders_that_the_function_wrote_are_stored(run, dvc, tmp_path):
    made = tmp_path / "made"
    (made / "sub").mkdir(parents=True)
    (made / "a.txt").write_text("a")
    (made / "sub" / "b.txt").write_text("b")
    seen = []

    @dataset_asset(path="images")
    def images() -> Path:
        return made

    @dg.asset
    def reader(images: Path) -> None:
        seen.append(sorted(file.name for file in images.rglob("*.txt")))

    run(images)
    (made / "a.txt").write_text("changed")
    run(images)
    assert dvc.pointer("images", rev="HEAD")["outs"][0]["nfiles"] == 2 and made.exists()
    for lost in (".dvc/cache", ".dvc/tmp", "images"):
        shutil.rmtree(dvc.root / lost)
    assert run(images, reader, select=[reader]).success
    assert seen == [["a.txt", "b.txt"]]
    assert (dvc.read_path("images", rev="HEAD") / "a.txt").read_text() == "changed"
    assert (dvc.read_path("images", rev="HEAD~1") / "a.txt").read_text() == "a"


@pytest.mark.thorough
def test_the_same_frame_gives_the_same_bytes_in_another_process(dvc, tmp_path, cold_python):
    script = """
import sys, pandas as pd
from pathlib import Path
from dagster_mlops.dvc.store.file_formats import write
frame = pd.DataFrame({"k": pd.Categorical(["b", "a"]), "t": pd.to_datetime(["2013-01-01", None]), "n": [1, None]})
write(frame.set_index("k"), Path(sys.argv[1]), name="x.parquet")
"""
    for name in ("one", "two"):
        subprocess.run([sys.executable, "-c", script, str(tmp_path / name)], check=True)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    schema = pq.read_schema(tmp_path / "one")
    assert schema.names == ["k", "t", "n"] and schema.field("t").type == pa.timestamp("us")


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (None, "returned nothing"),
        (3.5, "builtins.float"),
        (Path("/nowhere/x.parquet"), "does not exist"),
        (pd.DataFrame({"t": [pd.Timestamp("2013-01-01 00:00:00.000000001")]}), "dt.floor('us')"),
        (pd.DataFrame({"mixed": [1, "a"]}), "mixed types"),
        (b"not parquet", "not a parquet file"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_the_reason(run, dvc, value, complaint):
    @dataset_asset()
    def odd():
        return value

    with pytest.raises(DatasetError, match=complaint.replace("(", r"\(").replace(")", r"\)")):
        run(odd)
    assert not list(dvc.root.rglob("odd*"))


def test_loading_what_was_never_materialized_says_so(run):
    with pytest.raises(DatasetError, match=r"flights partition 2013-01 has no dataset on Dagster.s record"):
        run(flights, delays, select=[delays])


def test_a_partitioned_dataset_needs_a_path_per_partition():
    with pytest.raises(DatasetError, match=r"put '\{partition\}' into 'all.parquet'"):
        dataset_asset(path="all.parquet", partitions_def=MONTHS)


def test_partition_keys_with_odd_characters_stay_inside_their_folder(run, dvc):
    parts = dg.StaticPartitionsDefinition(["../../up", "a|b"])

    @dataset_asset(path="odd/{partition}.txt", partitions_def=parts)
    def odd(context) -> str:
        return context.partition_key

    for key in parts.get_partition_keys():
        run(odd, partition=key)
    assert sorted(file.name for file in (dvc.root / "odd").glob("*.txt")) == ["..%2F..%2Fup.txt", "a%7Cb.txt"]


def test_content_that_is_nowhere_is_a_clear_error(dvc, stored):
    first, _ = stored
    shutil.rmtree(dvc.root / ".dvc" / "cache")
    shutil.rmtree(dvc.remote_url)
    with pytest.raises(DatasetError, match=r"neither in the workspace nor in the cache .* nor in its remote"):
        dvc.read_path("x.txt", md5=first.md5)
    assert dvc.read_path("x.txt").read_text() == "two"


def test_paths_outside_and_missing_repositories_are_refused(dvc, tmp_path):
    with pytest.raises(DatasetError, match="lies outside"):
        dvc.store("../x.txt")
    with pytest.raises(DatasetError, match="not a DVC repository"):
        DvcResource(repo=str(tmp_path)).store("x.txt")
    dvc.init()
    with pytest.raises(DatasetError, match=r"no DVC remote 'other' \(known: storage\)"):
        DvcResource(repo=dvc.repo, remote="other").store("x.txt")
    with pytest.raises(DatasetError, match="DVC cannot store"):
        dvc.store("missing.txt")
    with pytest.raises(DatasetError, match=r"There is no .*missing.txt.dvc"):
        dvc.data_version("missing.txt")


def test_what_the_user_staged_and_edited_stays_as_it_is(dvc, stored):
    (dvc.root / "staged.py").write_text("staged = 1\n")
    _git(dvc.root, "add", "staged.py")
    (dvc.root / "staged.py").write_text("staged = 2\n")
    with (dvc.root / ".gitignore").open("a") as ignore:
        ignore.write("*.user\n")
    (dvc.root / "untracked.py").write_text("")
    before = _git(dvc.root, "status", "--porcelain"), _git(dvc.root, "diff", "--cached")
    (dvc.root / "y.txt").write_text("new dataset")
    record = dvc.store("y.txt")
    assert (_git(dvc.root, "status", "--porcelain"), _git(dvc.root, "diff", "--cached")) == before
    assert _git(dvc.root, "show", "--format=", "--name-only", record.rev).splitlines() == [".gitignore", "y.txt.dvc"]
    assert "*.user" not in _git(dvc.root, "show", "HEAD:.gitignore")
    assert (dvc.root / ".gitignore").read_text().splitlines() == ["/x.txt", "*.user", "/y.txt"]


def test_commits_work_on_a_detached_head_and_without_an_identity(dvc, stored, monkeypatch, tmp_path):
    _git(dvc.root, "checkout", "-q", "--detach")
    for name in [name for name in os.environ if name.startswith(("GIT_AUTHOR", "GIT_COMMITTER"))]:
        monkeypatch.delenv(name)
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, str(tmp_path / "no_config"))
    (dvc.root / "x.txt").write_text("three")
    record = dvc.store("x.txt")
    assert _git(dvc.root, "rev-parse", "HEAD") == record.rev
    assert _git(dvc.root, "log", "-1", "--format=%an") == "dagster-mlops"
    named = DvcResource(repo=dvc.repo, author_name="Ada", author_email="ada@example.com")
    (dvc.root / "x.txt").write_text("four")
    named.store("x.txt")
    assert _git(dvc.root, "log", "-1", "--format=%an <%ae>") == "Ada <ada@example.com>"


def test_a_folder_of_a_checkout_becomes_a_subproject_unless_it_is_ignored(tmp_path):
    _git(tmp_path, "init", "-q")
    (tmp_path / ".gitignore").write_text(".state/\nremote/\n")
    inside = DvcResource(repo=str(tmp_path / "project" / "data"), remote_url=str(tmp_path / "remote"))
    inside.init()
    (inside.root / "x.txt").write_text("x")
    record = inside.store("x.txt")
    assert _git(tmp_path, "rev-parse", "HEAD") == record.rev == inside.revision("x.txt")
    assert inside.data_version("x.txt", rev="HEAD") == record.md5
    apart = DvcResource(repo=str(tmp_path / ".state" / "data"), remote_url=str(tmp_path / "remote"))
    apart.init()
    assert _git(apart.root, "rev-parse", "--show-toplevel") == str(apart.root)


def test_without_git_the_commit_is_unknown_and_everything_else_works(dvc, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        dvc.init()
        (dvc.root / "x.txt").write_text("one")
        record = dvc.store("x.txt")
        (dvc.root / "x.txt").write_text("two")
        dvc.store("x.txt")
        assert record.rev == "" and dvc.read_path("x.txt", md5=record.md5).read_text() == "one"
    assert isinstance(DvcTool().resolve(dvc_ref(dvc, "x.txt", dvc.data_version("x.txt"))), Accessible)


def test_init_twice_changes_nothing(dvc):
    dvc.init()
    before = _commits(dvc.root)
    dvc.init()
    assert _commits(dvc.root) == before == ["Start versioning data with DVC"]


def test_a_failed_push_is_made_up_for_by_the_next_run(dvc, stored):
    remote = Path(dvc.remote_url)
    shutil.rmtree(remote)
    remote.write_text("a file where the folder was")
    (dvc.root / "x.txt").write_text("three")
    with pytest.raises(DatasetError, match=r"cannot be pushed to .* its pointer is committed: re-run"):
        dvc.store("x.txt")
    commits = _commits(dvc.root)
    remote.unlink()
    record = dvc.store("x.txt")
    assert _commits(dvc.root) == commits
    assert (remote / "files/md5" / record.md5[:2] / record.md5[2:]).read_text() == "three"


def test_what_a_kill_tore_is_mended_by_the_next_run(dvc, stored):
    _, second = stored
    below = Path("files/md5") / second.md5[:2] / second.md5[2:]
    for torn in (dvc.root / ".dvc" / "cache" / below, Path(dvc.remote_url) / below):
        torn.chmod(0o644)
        torn.write_text("")
    (dvc.root / "x.txt.dvc").write_text("outs:\n- md5: 12")
    assert dvc.store("x.txt").md5 == second.md5
    assert (Path(dvc.remote_url) / below).read_text() == "two"
    assert (dvc.root / ".dvc" / "cache" / below).read_text() == "two"
    assert dvc.data_version("x.txt") == second.md5


def test_what_the_user_wrote_into_a_pointer_is_kept(dvc, stored):
    pointer = dvc.root / "x.txt.dvc"
    pointer.write_text("# ours\ndesc: from the vendor\n" + pointer.read_text())
    (dvc.root / "x.txt").write_text("three")
    dvc.store("x.txt")
    text = _git(dvc.root, "show", "HEAD:x.txt.dvc")
    assert "# ours" in text and "desc: from the vendor" in text


def test_dvc_itself_agrees_with_what_was_stored(dvc, stored):
    with dvc.open() as repo:
        assert repo.status() == {} and repo.status(cloud=True) == {}
        assert [str(out) for out in repo.index.outs] == ["x.txt"]


HOLDER = """
import sys, time
from dagster_mlops.dvc import DvcResource
with DvcResource(repo=sys.argv[1]).open():
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_a_lock_held_too_long_is_an_error_that_names_the_holder(dvc, stored):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, dvc.repo, "60"], stdout=subprocess.PIPE)
    try:
        assert holder.stdout and holder.stdout.readline()
        hasty = DvcResource(repo=dvc.repo, lock_timeout=0.5)
        with pytest.raises(DatasetError, match=rf"held by process {holder.pid} \(python.*raise lock_timeout"):
            hasty.store("x.txt")
    finally:
        holder.kill()
        holder.communicate()
    assert dvc.store("x.txt").md5 == stored[1].md5  # a kill releases the lock


def test_a_stale_git_index_lock_is_an_error_that_names_the_fix(dvc, stored):
    (dvc.root / ".git" / "index.lock").touch()
    (dvc.root / "x.txt").write_text("three")
    with pytest.raises(DatasetError, match=r"index\.lock.*delete that file"):
        DvcResource(repo=dvc.repo, lock_timeout=0.3).store("x.txt")
    (dvc.root / ".git" / "index.lock").unlink()
    assert dvc.data_version("x.txt", rev=dvc.store("x.txt").rev) == hashlib.md5(b"three").hexdigest()


@pytest.mark.thorough
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5))
def test_every_version_that_was_ever_stored_can_be_read_back(contents):
    with tempfile.TemporaryDirectory() as folder:
        dvc = DvcResource(repo=f"{folder}/data", remote_url=f"{folder}/remote")
        dvc.init()
        records = []
        for content in contents:
            (dvc.root / "x.bin").write_bytes(content)
            records.append(dvc.store("x.bin"))
        changes = [contents[0]] + [b for a, b in itertools.pairwise(contents) if a != b]
        assert len(_commits(dvc.root)) == 1 + len(changes)
        shutil.rmtree(dvc.root / ".dvc" / "cache")
        for content, record in zip(contents, records, strict=True):
            assert record.md5 == hashlib.md5(content).hexdigest()
            assert dvc.read_path("x.bin", rev=record.rev).read_bytes() == content


def test_observed_datasets_take_their_version_from_git_alone(dvc, stored, instance):
    shutil.rmtree(dvc.root / ".dvc" / "cache")
    shutil.rmtree(dvc.remote_url)
    observed = observed_dataset_assets(datasets={"vendor/x": "x.txt"}, repo=dvc.repo, group_name="vendor")
    older = observed_dataset_assets(
        datasets=[dg.AssetSpec("old", metadata={"dvc/path": "x.txt"})], rev="HEAD~1", name="older"
    )
    result = dg.Definitions(assets=[observed, older], resources={"dvc": dvc})
    job = result.resolve_implicit_global_asset_job_def()
    assert job.execute_in_process(instance=instance, asset_selection=[dg.AssetKey(["vendor", "x"]), dg.AssetKey("old")])
    for key, record in ((dg.AssetKey(["vendor", "x"]), stored[1]), (dg.AssetKey("old"), stored[0])):
        [event] = instance.fetch_observations(key, limit=1).records
        observation = event.event_log_entry.asset_observation
        assert observation.tags["dagster/data_version"] == record.md5
        assert Dataset.from_metadata(observation.metadata) == record


def test_an_observed_dataset_that_is_missing_does_not_stop_the_others(dvc, stored, instance):
    observed = observed_dataset_assets(datasets={"gone": "gone.txt", "x": "x.txt"}, repo=dvc.repo)
    job = dg.Definitions(assets=[observed]).resolve_implicit_global_asset_job_def()
    assert not job.execute_in_process(instance=instance, raise_on_error=False).success
    assert instance.fetch_observations(dg.AssetKey("x"), limit=1).records
    with pytest.raises(DatasetError, match="need a 'dvc/path'"):
        observed_dataset_assets(datasets=[dg.AssetSpec("nowhere")])


def test_checks_pass_and_fail_with_the_remote_and_the_rows(run, dvc):
    checks = dataset_checks(asset=flights, min_rows=2)
    strict = dataset_checks(asset=flights, min_rows=3)[1]
    result = run(flights, *checks, partition="2013-01")
    assert {e.check_name: e.passed for e in result.get_asset_check_evaluations()} == {
        "remote_has_object": True,
        "row_count": True,
    }
    for file in Path(dvc.remote_url).rglob("*"):
        if file.is_file():
            file.unlink()
    selection = dg.AssetSelection.checks_for_assets(flights.key)
    result = run(flights, checks[0], strict, select=selection, raise_on_error=False)
    evaluations = {e.check_name: e for e in result.get_asset_check_evaluations()}
    assert not evaluations["remote_has_object"].passed and "dvc push" in evaluations["remote_has_object"].description
    assert not evaluations["row_count"].passed and "fewer than 3 rows" in evaluations["row_count"].description


def dvc_ref(dvc, path, md5):
    return Ref("dvc", "dataset", f"{path}@{md5}", at=str(dvc.root))


def test_the_resolver_finds_an_older_version_with_its_record(dvc, stored):
    for record in stored:
        assert DvcTool().resolve(record.ref) == Accessible(record)


def test_the_resolver_calls_a_dataset_inaccessible_when_repository_or_remote_is_gone(dvc, stored):
    first, _ = stored
    shutil.move(dvc.remote_url, dvc.remote_url + ".gone")
    answer = DvcTool().resolve(first.ref)
    assert isinstance(answer, Inaccessible) and answer.record == first
    assert "is gone; this machine's cache has a copy" in answer.reason
    shutil.rmtree(dvc.root)
    answer = DvcTool().resolve(first.ref)
    assert isinstance(answer, Inaccessible) and "is not on this machine" in answer.reason


def test_the_resolver_asks_no_remote_that_only_a_pointer_names(dvc, stored):
    first, _ = stored
    for name in ("config", "config.local"):
        (dvc.root / ".dvc" / name).write_text("")
    assert isinstance(DvcTool().resolve(first.ref), Accessible), "the cache has it"
    shutil.rmtree(dvc.root / ".dvc" / "cache")
    answer = DvcTool().resolve(first.ref)
    assert isinstance(answer, Inaccessible) and answer.record == first
    assert f"that of the record, {first.remote}, is not asked" in answer.reason and first.remote


def test_the_resolver_calls_a_dataset_deleted_when_cache_and_remote_have_lost_it(dvc, stored):
    first, second = stored
    below = Path("files/md5") / first.md5[:2] / first.md5[2:]
    (Path(dvc.remote_url) / below).unlink()
    assert isinstance(DvcTool().resolve(first.ref), Accessible)
    (dvc.root / ".dvc" / "cache" / below).unlink()
    answer = DvcTool().resolve(first.ref)
    assert isinstance(answer, Deleted) and answer.record == first
    assert isinstance(DvcTool().resolve(second.ref), Accessible)
    assert isinstance(DvcTool().resolve(dvc_ref(dvc, "never.txt", first.md5)), Deleted)


def test_the_resolver_calls_wrong_hashes_and_wrong_bytes_faulty(dvc, stored):
    first, second = stored
    answer = DvcTool().resolve(dvc_ref(dvc, "x.txt", "0" * 32))
    assert isinstance(answer, Faulty) and second.md5 in answer.reason
    assert isinstance(DvcTool().resolve(Ref("dvc", "dataset", "x.txt", at=dvc.repo)), Faulty)
    torn = Path(dvc.remote_url) / "files/md5" / first.md5[:2] / first.md5[2:]
    torn.chmod(0o644)
    torn.write_text("One")
    answer = DvcTool().resolve(first.ref)
    assert isinstance(answer, Faulty) and "other bytes" in answer.reason and answer.record == first


def test_the_component_observes_datasets(dvc, stored):
    with create_defs_folder_sandbox() as sandbox:
        folder = sandbox.scaffold_component(
            component_cls=DatasetComponent,
            defs_yaml_contents={
                "type": "dagster_mlops.dvc.DatasetComponent",
                "attributes": {"repo": dvc.repo, "datasets": {"vendor/x": "x.txt"}, "group_name": "vendor"},
            },
        )
        with sandbox.load_component_and_build_defs(defs_path=folder) as (_, definitions):
            [spec] = definitions.resolve_all_asset_specs()
            assert spec.key == dg.AssetKey(["vendor", "x"]) and spec.group_name == "vendor"
            assert spec.metadata["dvc/path"] == "x.txt" and "dvc" in spec.kinds


def test_the_folder_offers_what_it_says_and_imports_no_tool(cold_python):
    assert {name for name in plugin.__all__ if not hasattr(plugin, name)} == set()
    script = (
        "import sys, dagster_mlops.dvc; print([m for m in ('dvc', 'pandas', 'pyarrow', 'git') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
