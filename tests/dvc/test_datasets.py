"""What goes in and out of a dataset, any version of it, its history, and what others versioned."""

import hashlib
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from dvc.logger import LoggerHandler

from dagster_mlops.core.asset_records import upstream_records
from dagster_mlops.dvc import DvcResource, dataset_asset, dataset_checks, dvc_io_manager
from dagster_mlops.dvc.history.comparison import diff
from dagster_mlops.dvc.history.versions import history, restore
from dagster_mlops.dvc.imports import imported_dataset_asset, imported_url_asset
from dagster_mlops.dvc.sensors import revision_sensor
from dagster_mlops.dvc.store.file_formats import write
from dagster_mlops.errors import DatasetError
from dagster_mlops.provenance import Dataset, TrainingSet
from tests.support import known_warnings
from tests.support.http_servers import QuietHandler, QuietServer, serving

pytestmark = [
    pytest.mark.usefixtures("warm_dvc"),
    *known_warnings.DVC,
    *known_warnings.UNCLOSED,
    *known_warnings.DAGSTER_BETA,
]

MONTHS = dg.StaticPartitionsDefinition(["2013-01", "2013-02"])


def _git(folder, *arguments):
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def dvc(tmp_path):
    return DvcResource(repo=str(tmp_path / "data"), remote_url=str(tmp_path / "remote"))


@pytest.fixture
def instance():
    with dg.instance_for_test() as instance:
        yield instance


@pytest.fixture
def run(dvc, instance):
    def run(*assets, partition=None, select=None, **options):
        resources = {"dvc": dvc, "dvc_io_manager": dvc_io_manager, "io_manager": dg.InMemoryIOManager()}
        return dg.materialize(
            assets, resources=resources, instance=instance, partition_key=partition, selection=select, **options
        )

    return run


def _latest(instance, asset):
    return instance.get_latest_materialization_event(asset.key).asset_materialization


def _record(instance, asset):
    record = Dataset.from_metadata(_latest(instance, asset).metadata)
    assert record
    return record


ROWS = pa.table({"n": range(300_000), "s": ["a", "b", None] * 100_000})


@pytest.mark.parametrize(
    "value",
    [
        lambda: pl.from_arrow(ROWS).lazy(),  # type: ignore[union-attr]
        lambda: ROWS.to_reader(max_chunksize=777),
        lambda: pads.dataset(ROWS),
    ],
)
def test_a_stream_gives_the_same_bytes_each_time_in_bounded_row_groups(tmp_path, value):
    for name in ("one", "two"):
        rows, columns = write(value(), tmp_path / name, name="x.parquet")
        assert rows == 300_000 and columns and [column.name for column in columns.columns] == ["n", "s"]
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert pq.read_metadata(tmp_path / "one").num_row_groups == 2
    assert pl.read_parquet(tmp_path / "one").equals(pl.from_arrow(ROWS))  # type: ignore[arg-type]


def test_a_table_and_a_stream_of_it_are_the_same_version(tmp_path):
    write(ROWS, tmp_path / "table", name="x.parquet")
    write(ROWS.to_reader(max_chunksize=777), tmp_path / "stream", name="x.parquet")
    assert (tmp_path / "table").read_bytes() == (tmp_path / "stream").read_bytes()


@pytest.mark.parametrize("value", [ROWS, pl.DataFrame({"n": []}, schema={"n": pl.Int64}), pd.DataFrame({"n": [1]})])
def test_frames_go_to_csv_and_back_with_or_without_rows(tmp_path, value):
    rows, _ = write(value, tmp_path / "x.csv", name="x.csv")
    assert rows == len(value) and len(pl.read_csv(tmp_path / "x.csv")) == rows


def test_a_lazy_frame_streams_through_and_each_type_is_loaded(run, instance):
    @dataset_asset()
    def flights() -> pl.LazyFrame:
        return pl.LazyFrame({"n": [1, 2, 3]}).filter(pl.col("n") > 1)

    seen = []
    kinds = [pl.DataFrame, pl.LazyFrame, pa.Table, pads.Dataset, pa.RecordBatchReader, pd.DataFrame]

    def reader(kind):
        def read(flights) -> None:
            value: Any = flights.collect() if isinstance(flights, pl.LazyFrame) else flights
            value = value.to_table() if isinstance(value, pads.Dataset) else value
            value = value.read_all() if isinstance(value, pa.RecordBatchReader) else value
            seen.append((type(flights), list(map(int, pl.DataFrame(value)["n"]))))

        read.__annotations__["flights"] = kind
        return dg.asset(name=f"{kind.__module__}_{kind.__name__}".replace(".", "_"))(read)

    result = run(flights, *map(reader, kinds))
    assert result.success and len(seen) == len(kinds)
    assert all(issubclass(kind, tuple(kinds)) and rows == [2, 3] for kind, rows in seen)
    assert _record(instance, flights).rows == 2


def test_a_folder_of_parquet_files_is_loaded_as_a_frame_or_as_a_path(run, instance, tmp_path):
    @dataset_asset(path="shards")
    def shards() -> Path:
        folder = tmp_path / "made"
        folder.mkdir()
        for n in range(3):
            pl.DataFrame({"n": [n]}).write_parquet(folder / f"{n}.parquet")
        return folder

    seen = []

    @dg.asset
    def frame(shards: pl.DataFrame) -> None:
        seen.append(shards["n"].to_list())

    @dg.asset
    def path(shards: Path) -> None:
        seen.append(len(list(shards.iterdir())))

    assert run(shards, frame, path).success
    assert sorted(map(str, seen)) == ["3", "[0, 1, 2]"]
    assert _record(instance, shards).rows == 3
    assert [c.name for c in _latest(instance, shards).metadata["dagster/column_schema"].value.columns] == ["n"]

    @dg.asset
    def text(shards: str) -> None: ...

    with pytest.raises(DatasetError, match="is a folder and cannot be loaded as str"):
        run(shards, text, select=[text])


def test_an_input_may_name_the_version_that_it_loads_and_the_record_says_which(run, dvc, instance):
    texts = iter(["one", "two", "three"])

    @dataset_asset(path="note.txt")
    def note() -> str:
        return next(texts)

    run(note)
    _git(dvc.root, "tag", "v1.0")
    run(note)
    second = _record(instance, note).md5
    run(note)
    seen = []

    def reader(name, metadata):
        @dataset_asset(name=name, path=f"{name}.txt", ins={"note": dg.AssetIn(metadata=metadata)})
        def reader(note: str) -> str:
            seen.append(note)
            return note

        return reader

    tagged, hashed, both = (
        reader("tagged", {"dvc/rev": "v1.0"}),
        reader("hashed", {"dvc/md5": second}),
        reader("both", {"dvc/rev": "v1.0", "dvc/md5": second}),
    )
    assert run(note, tagged, hashed, select=[tagged, hashed]).success
    assert sorted(seen) == ["one", "two"]
    first = dvc.data_version("note.txt", rev="v1.0")
    for asset, md5 in ((tagged, first), (hashed, second)):
        assert [ref.id for ref in _record(instance, asset).upstream if ref.tool == "dvc"] == [f"note.txt@{md5}"]
    with pytest.raises(DatasetError, match=r"names both dvc/rev 'v1\.0' and dvc/md5"):
        run(note, both, select=[both])
    assert dvc.load("note.txt", str, rev="v1.0") == "one" and dvc.load("note.txt", bytes, md5=second) == b"two"


def test_the_lineage_of_any_asset_names_the_version_that_it_loaded(run, dvc, instance):
    texts = iter(["one", "two", "three"])

    @dataset_asset(path="note.txt")
    def note() -> str:
        return next(texts)

    run(note)
    _git(dvc.root, "tag", "v1.0")
    run(note)
    seen = {}

    @dg.asset(ins={"note": dg.AssetIn(metadata={"dvc/rev": "v1.0"})})  # stored by another IO manager
    def pinned(context: dg.AssetExecutionContext, note: str) -> None:
        seen["pinned"] = note, upstream_records(context)

    @dg.asset
    def latest(context: dg.AssetExecutionContext, note: str) -> None:
        run(note_again)  # while this step runs
        seen["latest"] = note, upstream_records(context)

    note_again = note
    run(note, pinned, latest, select=[pinned, latest])
    assert {name: (text, [r.md5 for r in records]) for name, (text, records) in seen.items()} == {
        "pinned": ("one", [hashlib.md5(b"one").hexdigest()]),
        "latest": ("two", [hashlib.md5(b"two").hexdigest()]),
    }
    [record] = seen["pinned"][1]
    assert record.rev == _git(dvc.root, "rev-parse", "v1.0") and record.dagster_asset == "note"


def test_lineage_keeps_what_else_the_loaded_asset_recorded_of_that_version(run, dvc, instance):
    service = TrainingSet(project="p", repo="r", feature_service="s", registry_hash="a" * 64, entity_hash="b" * 32)

    @dg.asset(io_manager_key="dvc_io_manager")
    def training() -> dg.MaterializeResult:
        return dg.MaterializeResult(value=pd.DataFrame({"a": [1]}), metadata=service.to_metadata())

    @dg.asset
    def model(context: dg.AssetExecutionContext, training: pd.DataFrame) -> None:
        seen.extend(type(record) for record in upstream_records(context))

    seen: list[type] = []
    run(training, model)
    assert sorted(kind.__name__ for kind in seen) == ["Dataset", "TrainingSet"]


def test_partitions_of_two_dimensions_have_versions_of_their_own(run, dvc, instance, tmp_path):
    parts = dg.MultiPartitionsDefinition({"month": MONTHS, "place": dg.StaticPartitionsDefinition(["EWR", "JFK"])})
    content = {"2013-01|EWR": "a", "2013-01|JFK": "b"}

    @dataset_asset(path="photos/{partition}", partitions_def=parts)
    def photos(context) -> Path:
        folder = tmp_path / context.run.run_id
        folder.mkdir()
        (folder / "x.txt").write_text(content[context.partition_key])
        return folder

    for key in content:
        run(photos, partition=dg.MultiPartitionKey(dict(zip(("month", "place"), key.split("|"), strict=True))))
    before = {file.name: file.read_bytes() for file in (dvc.root / "photos").glob("*.dvc")}
    content["2013-01|JFK"] = "c"
    run(photos, partition=dg.MultiPartitionKey({"month": "2013-01", "place": "JFK"}))
    after = {file.name: file.read_bytes() for file in (dvc.root / "photos").glob("*.dvc")}
    assert [name for name in after if after[name] != before[name]] == ["2013-01%7CJFK.dvc"]
    versions = instance.get_materialized_partitions(photos.key)
    assert versions == set(content)


def test_a_materialization_says_what_changed_since_the_version_before(run, instance):
    frames = iter([
        pd.DataFrame({"n": [1, 2], "gate": ["a", "b"], "old": [1, 2]}),
        *[pd.DataFrame({"n": [1.5, 2.5, 3.5], "gate": ["a", "b", "c"], "new": [1, 2, 3]})] * 2,
    ])  # fmt: skip

    @dataset_asset()
    def flights() -> pd.DataFrame:
        return next(frames)

    checks = dataset_checks(asset=flights, checks=["no_column_lost", "row_count_within"], max_ratio=1.4)
    result = run(flights, *checks)
    assert "dvc/previous" not in _latest(instance, flights).metadata
    assert all(evaluation.passed for evaluation in result.get_asset_check_evaluations())
    first = _record(instance, flights)
    for _ in range(2):  # the same bytes again do not make the loss go away
        result = run(flights, *checks, raise_on_error=False)
        metadata = _latest(instance, flights).metadata
        assert metadata["dvc/previous"].value == first.md5 and metadata["dvc/rows_delta"].value == 1
        second = _record(instance, flights)
        assert first.bytes and metadata["dvc/bytes_delta"].value == (second.bytes or 0) - first.bytes
        assert [record.data for record in metadata["dvc/columns_changed"].records] == [
            {"column": "n", "change": "retyped", "before": "int64", "after": "double"},
            {"column": "old", "change": "lost", "before": "int64", "after": ""},
            {"column": "new", "change": "added", "before": "", "after": "int64"},
        ]
        columns, rows = result.get_asset_check_evaluations()
        assert not columns.passed and "lost n (int64 is now double), old (int64)" in columns.description
        assert not rows.passed and "has 3 rows after 2, which is not 0.5 to 1.4 times as many" in rows.description


def test_two_versions_of_a_metrics_file_differ_in_values(run, dvc, instance):
    texts = iter(['{"auc": 0.5, "by": {"JFK": [1, 2]}, "gone": true}', '{"auc": 0.75, "by": {"JFK": [1, 3]}}'])

    @dataset_asset(path="metrics.json")
    def metrics() -> str:
        return next(texts)

    run(metrics)
    run(metrics)
    expected = [
        {"name": "auc", "before": "0.5", "after": "0.75", "delta": 0.25},
        {"name": "by.JFK.1", "before": "2", "after": "3", "delta": 1},
        {"name": "gone", "before": "True", "after": "", "delta": None},
    ]
    assert [r.data for r in _latest(instance, metrics).metadata["dvc/values_changed"].records] == expected
    assert diff(dvc, "metrics.json").values == expected
    assert [row["delta"] for row in diff(dvc, "metrics.json", "HEAD", "HEAD~1").values][:2] == [-0.25, -1]
    with pytest.raises(DatasetError, match=r"There is no .*metrics.json.dvc at revision v9"):
        diff(dvc, "metrics.json", "v9")


def test_a_diff_of_any_two_versions_reads_their_footers(dvc):
    dvc.init()
    for n in (2, 5):
        pl.DataFrame({f"n{n}": range(n)}).write_parquet(dvc.root / "x.parquet")
        dvc.store("x.parquet", rows=n)
    found = diff(dvc, "x.parquet", dvc.data_version("x.parquet", rev="HEAD~1"), "HEAD")
    assert found.rows_delta == 3 and [row["change"] for row in found.columns] == ["lost", "added"]
    listed = history(dvc, "x.parquet")
    assert [version.dataset.rows for version in listed] == [5, 2] and listed[0].committed.tzinfo
    with pytest.raises(DatasetError, match=r"no\.txt has no version in .*no commit up to HEAD holds"):
        history(dvc, "no.txt")


def test_integrity_checks_find_damage_and_hand_made_changes(run, dvc, instance, tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    (made / "a.txt").write_text("a")

    @dataset_asset(path="photos")
    def photos() -> Path:
        return made

    checks = dataset_checks(asset=photos, checks=["cache_intact", "pointer_matches_data"], blocking=False)

    def verdicts():
        result = run(photos, *checks, select=dg.AssetSelection.checks_for_assets(photos.key))
        return [(e.passed, e.description or "") for e in result.get_asset_check_evaluations()]

    assert [passed for passed, _ in verdicts()] == [False, False]  # nothing is known yet
    run(photos)
    assert verdicts() == [(True, ""), (True, "")]
    (dvc.root / "photos" / "a.txt").write_text("edited")
    [_, (passed, reason)] = verdicts()
    assert not passed and "photos is" in reason and "on disk, but" in reason
    with dvc.open(locked=False) as repo:
        cached = Path(repo.cache.local.oid_to_path("0cc175b9c0f1b6a831c399e269772661"))
    cached.chmod(0o644)
    cached.write_text("b")
    [(passed, reason), _] = verdicts()
    assert not passed and f"photos is damaged in the cache: delete {cached}" in reason
    (dvc.root / "photos.dvc").write_text("")
    _git(dvc.root, "commit", "-qam", "break it")
    [_, (passed, reason)] = verdicts()
    assert not passed and "is not a DVC pointer file" in reason


def test_a_check_that_is_none_is_refused():
    with pytest.raises(DatasetError, match=r"no dataset check row_cuont. Choose from remote_has_object, row_count"):
        dataset_checks(asset="x", checks=["row_cuont"])  # type: ignore[list-item]


@pytest.fixture
def note(dvc):
    """A repository with `note.txt`, which was first `one`, tagged `v1`, and then `two`."""
    dvc.init()
    for text in ("one", "two"):
        (dvc.root / "note.txt").write_text(text)
        dvc.store("note.txt", rows=len(text), code_commit=text)
        if text == "one":
            _git(dvc.root, "tag", "v1")
    return dvc


@pytest.mark.parametrize("version", ["v1", "previous", "f97c5d29941bfb1b2fdab0874906ab82"])
def test_a_restored_version_is_the_newest_with_the_record_of_its_making(note, version):
    record = restore(note, "note.txt", version, dagster_run_id="r")
    assert (note.root / "note.txt").read_text() == "one" == note.load("note.txt", str, rev="HEAD")
    assert (record.rows, record.code_commit, record.dagster_run_id) == (3, "one", "r")
    assert record.rev == _git(note.root, "rev-parse", "HEAD") and len(history(note, "note.txt")) == 3
    (note.root / "note.txt").write_text("the workspace may be edited, the cache stays")
    assert note.load("note.txt", str, rev="HEAD") == "one"


def test_changes_by_hand_are_overwritten_only_by_force(note):
    (note.root / "note.txt").write_text("mine")
    with pytest.raises(DatasetError, match=r"note.txt was changed since it was last stored"):
        restore(note, "note.txt", "v1")
    assert (note.root / "note.txt").read_text() == "mine"
    restore(note, "note.txt", "v1", force=True)
    assert (note.root / "note.txt").read_text() == "one"
    with pytest.raises(DatasetError, match="neither in the workspace nor in the cache"):
        restore(note, "note.txt", "0" * 32)


def test_a_run_restores_a_version_without_computing_anything(run, dvc, instance):
    calls = []

    @dataset_asset(path="note.parquet")
    def note(context) -> pd.DataFrame:
        calls.append(context.run.run_id)
        return pd.DataFrame({"n": range(len(calls))})

    run(note)
    first = _record(instance, note)
    run(note)
    config = {"ops": {"note": {"outputs": {"result": {"restore": "previous"}}}}}
    assert run(note, run_config=config).success and len(calls) == 2
    event, record = _latest(instance, note), _record(instance, note)
    assert event.tags["dagster/data_version"] == first.md5 == record.md5 == dvc.data_version("note.parquet")
    assert record.upstream == first.upstream and record.dagster_run_id not in calls
    assert event.metadata["dvc/restored"].value == "previous" and event.metadata["dvc/rows_delta"].value == -1
    assert event.metadata["dagster/row_count"].value == 1


def _command(*arguments, cwd):
    command = Path(sys.executable).with_name("dagster-mlops")
    return subprocess.run([command, "dvc", *arguments], cwd=cwd, capture_output=True, text=True, timeout=60)


def test_the_command_lists_compares_and_restores(note):
    listed = _command("versions", "note.txt", "--repo", str(note.root), cwd="/")
    assert [line.split()[1] for line in listed.stdout.splitlines()[1:]] == [
        note.data_version("note.txt", rev=rev) for rev in ("HEAD", "v1")
    ], listed
    done = _command("restore", "note.txt", "--rev", "v1", cwd=note.root)
    assert "note.txt is f97c5d29941bfb1b2fdab0874906ab82 again, in commit" in done.stdout, done
    compared = _command("diff", "note.txt", "HEAD~1", "HEAD", "--json", cwd=note.root)
    assert json.loads(compared.stdout)["bytes"] == 0, compared
    failed = _command("diff", "note.txt", "v9", cwd=note.root)
    assert failed.returncode == 2 and "There is no" in failed.stderr and "Traceback" not in failed.stderr


def test_a_restore_that_is_killed_leaves_the_old_or_the_new(note):
    script = f"""
import sys
from dagster_mlops.dvc import DvcResource
from dagster_mlops.dvc.history.versions import restore
dvc = DvcResource(repo={note.repo!r})
print("ready", flush=True)
sys.stdin.readline()
restore(dvc, "note.txt", "v1")
"""
    for n in range(int(os.environ.get("DAGSTER_MLOPS_KILLS", "4"))):
        if note.data_version("note.txt") != hashlib.md5(b"two").hexdigest():
            restore(note, "note.txt", hashlib.md5(b"two").hexdigest())
        process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin and process.stdout
        process.stdout.readline()
        process.stdin.write(b"\n")
        process.stdin.flush()
        time.sleep(0.15 + 0.25 * (n % 8))
        process.kill()
        process.communicate()
        assert (note.root / "note.txt").read_text() in ("one", "two")
        (note.root / ".git/index.lock").unlink(missing_ok=True)  # git was killed, too, and tells the user the same
        restore(note, "note.txt", "v1")
        assert (note.root / "note.txt").read_text() == "one" == note.load("note.txt", str, rev="HEAD")


@pytest.fixture
def tick(instance):
    """Evaluates a sensor as the daemon does, from one tick's cursor to the next."""
    cursors = {}

    def tick(sensor):
        with dg.build_sensor_context(instance, cursor=cursors.get(sensor.name)) as context:
            data = sensor.evaluate_tick(context)
        cursors[sensor.name] = data.cursor
        return data

    return tick


def _store(dvc, text, path="note.txt"):
    (dvc.root / path).write_text(text)
    return dvc.store(path).md5


def test_a_new_version_on_a_branch_is_observed_once(note, tick):
    branch = _git(note.root, "branch", "--show-current")
    sensor = revision_sensor(datasets={"a/note": "note.txt", "x": "x.txt"}, repo=note.repo, branches=[branch])
    [first] = tick(sensor).asset_events
    assert first.tags["dagster/data_version"] == note.data_version("note.txt")
    assert first.asset_key == dg.AssetKey(["a", "note"]) and first.metadata["dagster/row_count"].value == 3
    assert "No new version" in (tick(sensor).skip_message or "")
    (note.root / "code.py").write_text("")
    _git(note.root, "add", "code.py")
    _git(note.root, "commit", "-qm", "no data")
    assert not tick(sensor).asset_events
    md5, other = _store(note, "three"), _store(note, "x", "x.txt")
    assert [event.tags["dagster/data_version"] for event in tick(sensor).asset_events] == [md5, other]
    _git(note.root, "reset", "-q", "--hard", "v1")  # history is rewritten, and the old commits are gone
    _git(note.root, "reflog", "expire", "--expire=now", "--all")
    _git(note.root, "gc", "-q", "--prune=now")
    [back] = tick(sensor).asset_events
    assert back.tags["dagster/data_version"] == note.data_version("note.txt", rev="v1")


def test_a_tag_or_a_fetched_branch_starts_a_run(note, tick, tmp_path):
    branch = _git(note.root, "branch", "--show-current")
    _git(tmp_path, "clone", "-q", str(note.root), "clone")
    clone = tmp_path / "clone"

    @dg.job
    def retrain(): ...

    options: dict[str, Any] = {"datasets": {"note": "note.txt"}, "mode": "run", "job": retrain, "repo": str(clone)}
    tags = revision_sensor(name="tags", branches=[], tags=["v*"], remote="origin", **options)
    moves = revision_sensor(name="moves", branches=[branch], remote="origin", **options)
    assert not tick(tags).run_requests and not tick(moves).run_requests
    _store(note, "three")
    _git(note.root, "tag", "-a", "v2", "-m", "annotated")
    commit = _git(note.root, "rev-parse", "HEAD")
    for sensor, ref in ((tags, "refs/tags/v2"), (moves, f"refs/remotes/origin/{branch}")):
        [request] = tick(sensor).run_requests or []
        assert request.tags["dvc/ref"] == ref and request.tags["dvc/rev"] == commit
        assert request.run_key and request.run_key.endswith(f"..{commit}") and not tick(sensor).run_requests
    note.root.rename(tmp_path / "moved")
    with pytest.raises(DatasetError, match=r"(?s)git cannot fetch 'origin' into .*clone.*Try `git fetch origin`"):
        tick(moves)
    with pytest.raises(DatasetError, match="Pass job"):
        revision_sensor(datasets={"note": "note.txt"}, mode="run")


def test_the_observation_of_a_sensor_is_the_version_that_downstream_loads(note, tick, run, instance):
    branch = _git(note.root, "branch", "--show-current")
    sensor = revision_sensor(datasets={"note": "note.txt"}, repo=note.repo, branches=[branch])
    for event in tick(sensor).asset_events:
        instance.report_runless_asset_event(event)
    seen = []

    @dg.asset
    def reader(note: str) -> None:
        seen.append(note)

    source = dg.AssetSpec("note").with_io_manager_key("dvc_io_manager")
    assert run(source, reader, select=[reader]).success and seen == ["two"]


def test_an_import_takes_the_newest_of_a_branch_and_is_locked_to_its_commit(note, instance, tmp_path):
    branch = _git(note.root, "branch", "--show-current")
    mine = DvcResource(repo=str(tmp_path / "mine"), remote_url=str(tmp_path / "mine-remote"))
    options: dict[str, Any] = {"path": "vendor/note.txt", "url": note.repo, "source_path": "note.txt"}
    asset = imported_dataset_asset(rev=branch, **options)
    tagged = imported_dataset_asset(rev="v1", key="old", **{**options, "path": "old.txt"})
    seen = []

    @dg.asset(ins={"note": dg.AssetIn(key=["vendor", "note"])})
    def reader(note: str) -> None:
        seen.append(note)

    def run(*assets, **more):
        resources = {"dvc": mine, "io_manager": dg.InMemoryIOManager()}
        return dg.materialize(assets, resources=resources, instance=instance, **more)

    assert run(asset, tagged, reader).success
    assert (mine.root / "old.txt").read_text() == "one"
    commit = _git(note.root, "rev-parse", "HEAD")
    pointer, record = mine.pointer("vendor/note.txt", rev="HEAD"), _record(instance, asset)
    assert pointer["frozen"] and pointer["deps"][0]["repo"] == {"url": note.repo, "rev": branch, "rev_lock": commit}
    assert [(ref.role, ref.id, ref.at) for ref in record.upstream] == [("commit", commit, note.repo)]
    assert _latest(instance, asset).tags["dagster/data_version"] == note.data_version("note.txt")
    with mine.open() as repo:
        assert not repo.status()
    _store(note, "three")
    with mine.open() as repo:
        assert "update available" in str(repo.status())
    assert run(asset, reader).success and seen == ["two", "three"]
    assert mine.pointer("vendor/note.txt")["deps"][0]["repo"]["rev_lock"] == _git(note.root, "rev-parse", "HEAD")

    shutil.rmtree(note.remote_url)
    shutil.rmtree(note.root / ".dvc" / "cache")
    shutil.rmtree(note.root / ".dvc" / "tmp", ignore_errors=True)
    _git(note.root, "commit", "-q", "--allow-empty", "-m", "data that is gone")
    before = _git(mine.root, "rev-parse", "HEAD"), (mine.root / "vendor/note.txt").read_text()
    missing = imported_dataset_asset(rev="v1", **options)
    with pytest.raises(DatasetError, match=r"(?s)note.txt of .* cannot be imported: .*vendor/note.txt did not change"):
        run(missing)
    note.root.rename(tmp_path / "gone")
    with pytest.raises(DatasetError, match=r"(?s)The source .*data cannot be reached"):
        run(asset)
    assert before == (_git(mine.root, "rev-parse", "HEAD"), (mine.root / "vendor/note.txt").read_text())
    assert mine.load("vendor/note.txt", str) == "three"
    with pytest.raises(DatasetError, match=r"https://\*\*\*@host/x has a password in it"):
        imported_dataset_asset(path="x.txt", url="https://me:secret@host/x")


class Source(QuietServer):
    """A web server with one file; silent if `content` is None."""

    def __init__(self):
        super().__init__(Answers)
        self.content: bytes | None = b"one"


class Answers(QuietHandler):
    def do_GET(self):
        assert isinstance(self.server, Source)
        if self.server.content is None:
            time.sleep(30)
            return
        missing = "missing" in self.path
        content = b"" if missing else self.server.content
        self.send_response(404 if missing else 200)
        self.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET


@pytest.fixture
def web():
    with serving(Source()) as server:
        yield server


def test_a_url_is_downloaded_when_its_version_changed_and_only_then(run, dvc, instance, web):
    url = f"http://127.0.0.1:{web.server_port}/zones.txt"
    zones = imported_url_asset(path="raw/zones.txt", url=url)
    seen = []

    @dg.asset(ins={"zones": dg.AssetIn(key=["raw", "zones"])})
    def reader(zones: str) -> None:
        seen.append(zones)

    assert run(zones, reader).success
    pointer = dvc.pointer("raw/zones.txt", rev="HEAD")
    assert pointer["frozen"] and pointer["deps"][0]["path"] == url and pointer["deps"][0]["checksum"]
    commit = _git(dvc.root, "rev-parse", "HEAD")
    assert run(zones, reader).success
    metadata = _latest(instance, zones).metadata
    assert not metadata["dvc/source_changed"].value and hashlib.md5(b"one").hexdigest() in str(
        metadata["dvc/source_version"].value
    )
    assert _git(dvc.root, "rev-parse", "HEAD") == commit
    web.content = b"two"
    assert run(zones, reader).success and seen == ["one", "one", "two"]
    assert _latest(instance, zones).tags["dagster/data_version"] == hashlib.md5(b"two").hexdigest()
    with dvc.open() as repo:  # DVC sees an import of its own in it
        web.content = b"three"
        assert not repo.status()
        repo.update([str(dvc.root / "raw/zones.txt.dvc")])
    assert (dvc.root / "raw/zones.txt").read_text() == "three"


def test_dvc_logs_where_the_process_logs(dvc, caplog):
    stream = io.StringIO()
    logging.getLogger("dvc").addHandler(LoggerHandler(stream))
    stream.close()  # as a test runner does with what was stderr when DVC was imported
    with dvc.open():
        logging.getLogger("dvc.repo.status").warning("raw is frozen")
    assert caplog.messages == ["raw is frozen"]


def test_a_url_that_is_silent_or_gone_leaves_the_dataset_as_it_was(run, dvc, web):
    url = f"http://127.0.0.1:{web.server_port}"
    run(imported_url_asset(path="zones.txt", url=f"{url}/zones.txt"))
    with pytest.raises(DatasetError, match=r"(?s)missing\.txt cannot be imported: .*zones\.txt did not change"):
        run(imported_url_asset(path="zones.txt", url=f"{url}/missing.txt"))
    web.content = None
    started = time.monotonic()
    with pytest.raises(DatasetError, match=r"did not answer to the end within 3 s"):
        run(imported_url_asset(path="zones.txt", url=f"{url}/zones.txt", timeout=3))
    assert time.monotonic() - started < 15 and dvc.load("zones.txt", str) == "one"


def test_a_local_file_is_imported_by_its_hash(run, dvc, tmp_path):
    source = tmp_path / "source.csv"
    source.write_text("n\n1\n")
    asset = imported_url_asset(path="n.csv", url=str(source), key="numbers")
    for text in ("n\n1\n", "n\n2\n"):
        source.write_text(text)
        assert run(asset).success and dvc.load("n.csv", str, rev="HEAD") == text
