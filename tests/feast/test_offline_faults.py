"""The as-of offline store when processes die, write at a time, or run out of memory and disk."""

import os
import random
import resource
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from deltalake import DeltaTable, write_deltalake
from feast import FeatureStore, FileSource

from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.point_in_time.writing import add_partitions, scratch_folder, write
from tests.support import feast_writers as writers
from tests.support import known_warnings
from tests.support.warm_python import processes

pytestmark = [pytest.mark.usefixtures("warm_tools"), *known_warnings.DEPRECATED]

KILLS = int(os.environ.get("DAGSTER_MLOPS_KILLS", "4"))  # of each kind
SPILL_ROWS = int(os.environ.get("DAGSTER_MLOPS_SPILL_ROWS", "400000"))
PLACES = ["file.parquet", "folder", "delta"]
# A push to a folder is a file beside the others, as in Delta Lake but for its log.
PUSHED = ["file.parquet", pytest.param("folder", marks=pytest.mark.thorough), "delta"]


def started(work, *arguments):
    process = processes.Process(target=work, args=arguments)
    process.start()
    return process


def killed(work, *arguments, until=lambda: True):
    """Run it in a process that is killed at a random moment after `until`."""
    process = started(work, *arguments)
    limit = time.monotonic() + 60
    while not until():
        assert process.is_alive() and time.monotonic() < limit
        time.sleep(0.002)
    time.sleep(random.random() * 0.15)
    assert process.is_alive()
    process.kill()
    process.join(20)


def spilled(spill: Path) -> bool:
    """Whether a join has written there. A walk, unlike `glob`, passes over folders removed while it looks."""
    return any(name.startswith("duckdb_temp") for _, folders, files in os.walk(spill) for name in [*folders, *files])


def held(place: Path) -> pa.Table:
    """All rows of a place, read as anybody would read them."""
    if place.name == "delta":
        return DeltaTable(str(place)).to_pyarrow_table()
    return ds.dataset(place, partitioning="hive").to_table()


def made(place: Path, value: float = -1.0) -> Path:
    """A source with one batch."""
    if place.name == "delta":
        write_deltalake(str(place), writers.rows(value))
    else:
        write(FileSource(path=str(place)), None, [writers.rows(value)], append=False)
    return place


def hidden(folder: Path) -> list[Path]:
    return list(folder.rglob("*.tmp"))


def counted(table: pa.Table) -> Counter:
    return Counter(int(value) for value in table.column("rate").to_pylist())


def noted(folder: Path) -> set[int]:
    file = folder / "pushed"
    return {int(line) for line in file.read_text().split()} if file.exists() else set()


def applied(folder: Path, **settings) -> FeatureStore:
    store = FeatureStore(config=writers.config(folder, **settings))
    store.apply([writers.driver, writers.view(str(folder / "source.parquet"))])
    return store


def large(folder: Path, count: int = 400_000) -> None:
    """A source and entity rows whose join needs more than the memory that it is given."""
    with duckdb.connect() as connection:
        moment = "TIMESTAMPTZ '2024-01-01 00:00:00+00' + to_seconds(hash(i * {}) % 30000000)"
        for name, more in (("source", ", hash(i * 3) % 1000 / 7.0 AS rate"), ("entities", ", i AS row")):
            connection.execute(
                f"COPY (SELECT (hash(i) % 5000)::BIGINT AS driver, {moment.format(len(name))} AS event_timestamp{more} "
                f"FROM range({count}) r(i)) TO '{folder / name}.parquet'"
            )


@contextmanager
def full_disk(size: int):
    """No file grows beyond so many bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- several processes, and killed ones


@pytest.mark.parametrize("place", PUSHED)
def test_no_row_is_lost_when_several_processes_push_to_one_source(tmp_path, place):
    source = made(tmp_path / place)
    pushing = [started(writers.push, tmp_path, str(source), i, 6) for i in range(3)]
    for process in pushing:
        process.join(60)
    assert [process.exitcode for process in pushing] == [0, 0, 0]
    expected = {-1, *(i * 1_000_000 + j for i in range(3) for j in range(6))}
    assert counted(held(source)) == dict.fromkeys(expected, writers.BATCH)
    assert not hidden(tmp_path)


@pytest.mark.parametrize("place", PUSHED)
def test_a_process_killed_while_it_pushes_leaves_whole_batches_and_each_one_once(tmp_path, place):
    source = made(tmp_path / place)
    for i in range(KILLS):
        before = len(noted(tmp_path))
        killed(writers.push, tmp_path, str(source), i, None, until=lambda n=before: len(noted(tmp_path)) > n)
        found = counted(held(source))
        assert set(found.values()) == {writers.BATCH}
        unsaid = found.keys() - noted(tmp_path) - {-1}
        assert noted(tmp_path) <= found.keys() and len(unsaid) <= i + 1  # one per kill: there, and not yet said to be
    writers.push(tmp_path, str(source), KILLS, 1)  # the next one writes, and sweeps
    assert KILLS * 1_000_000 in counted(held(source))
    assert not hidden(tmp_path)


@pytest.mark.thorough
@pytest.mark.parametrize("place", PLACES)
def test_a_process_killed_while_it_saves_a_dataset_leaves_the_old_or_the_new_one(tmp_path, place):
    made(tmp_path / "source.parquet")
    applied(tmp_path)
    saved = tmp_path / place
    for i in range(KILLS):
        before = len(noted(tmp_path))
        killed(writers.save, tmp_path, str(saved), i * 1000, until=lambda n=before: len(noted(tmp_path)) > n)
        ((value, count),) = Counter(held(saved).column("value").to_pylist()).items()
        assert count == writers.BATCH
        assert value - max(noted(tmp_path)) in (0, 1)
    if place != "delta":
        write(FileSource(path=str(saved)), None, [writers.rows(5)], append=False)
        assert not hidden(tmp_path)


def test_a_process_killed_while_it_logs_features_leaves_whole_files(tmp_path):
    logs = tmp_path / "logs"
    for i in range(KILLS):
        before = len(noted(tmp_path))
        killed(writers.log, tmp_path, str(logs), i, until=lambda n=before: len(noted(tmp_path)) > n)
        found = counted(held(logs))
        assert set(found.values()) <= {writers.BATCH, writers.BATCH // 2}  # a partition's file is whole or not there
        assert all(found[value] == writers.BATCH for value in noted(tmp_path))
        assert len([value for value in found if found[value] < writers.BATCH]) <= i + 1


def test_what_a_killed_join_spilled_is_removed_by_the_next_one_and_not_before_it_is_killed(tmp_path):
    spill = tmp_path / "spill"
    spill.mkdir()
    large(tmp_path)
    applied(tmp_path)
    living = started(writers.join, tmp_path, spill)
    try:
        for _ in range(KILLS):
            killed(writers.join, tmp_path, spill, until=lambda: spilled(spill))
            with scratch_folder(spill):
                assert len(list(spill.iterdir())) <= 3  # two of the living one's, and this one
        assert living.is_alive()  # nobody took what it spilled
    finally:
        living.kill()
        living.join(20)
    with scratch_folder(spill) as own:
        assert list(spill.iterdir()) == [own]


# --- memory and disk


def test_a_join_that_does_not_fit_into_memory_spills_and_has_the_same_values(tmp_path):
    large(tmp_path, SPILL_ROWS)
    applied(tmp_path)
    limit = max(20, SPILL_ROWS // 25_000)  # MB; all at once would take several times as much
    spill = tmp_path / "spill"
    spill.mkdir()
    peaks, spilled = [], 0
    for name, settings in (
        ("free.parquet", {}),
        ("tight.parquet", {"memory_limit": f"{limit}MB", "threads": 1, "temp_directory": str(spill)}),
    ):
        here, there = processes.Pipe()
        joining = processes.Process(target=writers.answer, args=(tmp_path, name, there), kwargs=settings)
        joining.start()
        while joining.is_alive():
            with suppress(FileNotFoundError):  # DuckDB removes them as it goes on
                spilled = max(spilled, sum(file.stat().st_blocks for file in spill.glob("*/duckdb_temp*")) * 512)
            joining.join(0.02)
        assert joining.exitcode == 0
        peaks.append(here.recv())
    print(f"{SPILL_ROWS:,} rows, {limit} MB: peaks {peaks} MB, {spilled / 1e6:.0f} MB spilled")
    assert spilled > 1_000_000 and not list(spill.iterdir())
    assert peaks[1] < 2 * limit + 250  # beside DuckDB: the chunk of entity rows, the answer's, and file buffers
    with duckdb.connect() as connection:
        ((rows, found, different),) = connection.execute(
            "SELECT count(*), count(f.rate), count(*) FILTER (f.rate IS DISTINCT FROM t.rate) "
            f"FROM '{tmp_path / 'free.parquet'}' f JOIN '{tmp_path / 'tight.parquet'}' t USING (row)"
        ).fetchall()
    assert (rows, different) == (SPILL_ROWS, 0) and found > SPILL_ROWS / 2


def test_what_to_set_is_told_when_memory_or_the_temporary_directory_do_not_do(tmp_path):
    large(tmp_path)
    applied(tmp_path)

    def ask(**settings):
        store = FeatureStore(config=writers.config(tmp_path, threads=1, **settings))
        return store.get_historical_features(entity_df=str(tmp_path / "entities.parquet"), features=["t:rate"])

    with pytest.raises(FeatureError, match="Lower threads or chunk_rows, or raise memory_limit"):
        ask(memory_limit="8MB").to_arrow()
    with pytest.raises(FeatureError, match=r"no temporary folder can be created in .*nowhere"):
        ask(temp_directory=str(tmp_path / "nowhere"))
    spill = tmp_path / "spill"
    spill.mkdir()
    job = ask(memory_limit="20MB", temp_directory=str(spill))
    with full_disk(500_000), pytest.raises(FeatureError, match="Set temp_directory to a folder on a larger disk"):
        job.to_arrow()
    assert not list(spill.iterdir())


@pytest.mark.parametrize("place", PLACES)
def test_a_full_disk_leaves_what_was_there_and_nothing_beside_it(tmp_path, place):
    source = made(tmp_path / place)
    made(tmp_path / "source.parquet")
    store = applied(tmp_path)
    wide = writers.rows(0, 20_000).set_column(2, "rate", pa.array([random.random() for _ in range(20_000)]))
    entities = wide.drop_columns("rate").append_column("value", wide.column("rate"))
    job: Any = store.get_historical_features(entity_df=entities, features=["t:rate"])
    feature_source: Any = writers.view(str(source)).batch_source
    before = held(source)
    with full_disk(30_000):
        with pytest.raises(FeatureError, match="was not written, and is unchanged"):
            writers.AsofOfflineStore.offline_write_batch(
                writers.config(tmp_path), writers.view(str(source)), wide, None
            )
        with pytest.raises(FeatureError, match="was not written, and is unchanged"):
            write(feature_source, None, job.to_tables(), append=False)
    assert held(source).equals(before)
    assert not hidden(tmp_path)
    assert len(list(source.rglob("*.parquet"))) == (0 if source.is_file() else 1)


def test_logs_that_a_full_disk_takes_no_more_leave_no_half_file(tmp_path):
    logs = FileSource(path=str(tmp_path / "logs"))
    add_partitions(logs, None, writers.rows(1), None)
    wide = writers.rows(0, 20_000).set_column(2, "rate", pa.array([random.random() for _ in range(20_000)]))
    with full_disk(30_000), pytest.raises(FeatureError, match="was not written"):
        add_partitions(logs, None, wide, None)
    assert counted(held(tmp_path / "logs")) == {1: writers.BATCH}
    assert not hidden(tmp_path)


def test_what_no_single_step_could_write_is_refused(tmp_path):
    folder = made(tmp_path / "folder")
    write(FileSource(path=str(folder)), None, [writers.rows(1)], append=True)
    with pytest.raises(FeatureError, match=r"holds 2 files, .* which cannot be replaced in a single step"):
        write(FileSource(path=str(folder)), None, [writers.rows(2)], append=False)
    assert counted(held(folder)) == {-1: writers.BATCH, 1: writers.BATCH}
    parted = FileSource(path=str(tmp_path / "parted"))
    days = writers.rows(1).append_column("day", pa.array(["mon", "tue"] * (writers.BATCH // 2)))
    add_partitions(parted, None, days, ["day"])
    with pytest.raises(FeatureError, match=r"is partitioned \(day=mon\)"):
        write(parted, None, [days], append=True)
