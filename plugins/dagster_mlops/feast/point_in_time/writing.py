"""Writes of Feast's file sources that are atomic for readers, other writers and killed processes; temporary folders."""

import hashlib
import itertools
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from feast.data_format import DeltaFormat
from feast.data_source import DataSource
from feast.infra.offline_stores.file_source import FileSource

from dagster_mlops.core.failures import raised_as
from dagster_mlops.core.files import exclusive
from dagster_mlops.core.memory import state_dir
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.point_in_time import files
from dagster_mlops.feast.point_in_time.files import GLOB, checked, filesystem, location, storage_options

_SUFFIX = ".asof.tmp"
_WAIT = 600.0  # seconds for another process that appends to the same file, which copies all its rows
_ROWS = 1_000_000  # rows of a row group when a file is copied


@contextmanager
def scratch_folder(parent: Path, prefix: str = "") -> Iterator[Path]:
    """A new folder in `parent` that is removed afterwards; first, folders of processes that have ended are removed.

    The system releases a process's lock on its folder when the process ends in any way. Where a file system cannot
    lock folders (NFS), only the process's own folder is removed.

    Raises:
        FeatureError: `parent` does not exist, is read-only or is full.
    """
    _sweep(parent)
    while True:
        try:
            folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=_SUFFIX, dir=parent))
        except OSError as error:
            raise FeatureError(f"no temporary folder can be created in {parent}: {error}.") from error
        with ExitStack() as stack:
            try:
                stack.enter_context(_locked(folder))
                if not folder.exists():
                    continue
            except (FileNotFoundError, BlockingIOError):
                continue  # another process took it for an ended one's before it was locked
            except OSError:
                pass  # folders cannot be locked here, so no one can take it for an ended process's either
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder; an OSError if it is gone, another process has locked it, or its file system has no locks."""
    import fcntl  # only on POSIX, and definitions should also load elsewhere

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _sweep(parent: Path) -> None:
    with suppress(OSError):  # creating a folder there gives a better error
        for entry in list(os.scandir(parent)):
            if entry.name.endswith(_SUFFIX):
                with suppress(OSError), _locked(Path(entry.path)):
                    shutil.rmtree(entry.path, ignore_errors=True)


def write(source: DataSource, repo_path: Path | str | None, tables: Iterable[pa.Table], *, append: bool) -> None:
    """Write tables of one schema, one after the other; readers see all of them or none.

    A path that ends in ``.parquet`` is one file, which the writers of this machine append to one after the other. Any
    other path is a folder: appending adds a file, and replacing works while it has at most one file.

    Raises:
        FeatureError: The location cannot be written to (a CSV file, a pattern, several files to replace, partitions to
            append to, a full disk), or another process locked it for ten minutes. Existing files are unchanged.
    """
    source = checked(source)
    place = location(source, repo_path)
    if isinstance(source.file_format, DeltaFormat):
        from deltalake import write_deltalake
        from deltalake.exceptions import DeltaError

        schema, tables = _schema_of(tables)
        batches = (batch for table in tables for batch in table.to_batches())
        reader = pa.RecordBatchReader.from_batches(schema, batches)
        mode = "append" if append else "overwrite"
        with _write_errors(place, DeltaError):
            write_deltalake(place, reader, mode=mode, storage_options=storage_options(source))
        return
    if set(place) & GLOB or place.endswith((".csv", ".csv.gz")):
        raise FeatureError(f"{place} cannot be written to. Give a .parquet file, a folder, or a Delta table.")

    disk, path = filesystem(source, repo_path)
    with _write_errors(place), ExitStack() as stack:
        if path.endswith(".parquet"):
            folder, target = os.path.dirname(path), path
            disk.create_dir(folder, recursive=True)
            if append:  # no one may append between reading the file and replacing it by the longer one
                stack.enter_context(_alone(place, repo_path))
                if disk.get_file_info(path).type != pafs.FileType.NotFound:
                    tables = _after(path, disk, tables)
        else:
            folder, target = path, _free(disk, path, append=append)
            disk.create_dir(folder, recursive=True)
        hidden = f"{stack.enter_context(_hidden(disk, folder))}/rows"
        schema, tables = _schema_of(tables)
        with pq.ParquetWriter(hidden, schema, filesystem=disk) as writer:
            for table in tables:
                writer.write_table(table)
        if path.endswith(".parquet") and not append:
            stack.enter_context(_alone(place, repo_path))
        disk.move(hidden, target)


def add_partitions(
    source: FileSource, repo_path: Path | str | None, rows: pa.Table | ds.Dataset, partition_by: list[str] | None
) -> None:
    """Add rows to a folder, in a new file for each partition; readers see whole files only.

    Raises:
        FeatureError: The disk is full, or the folder cannot be written to.
    """
    disk, folder = filesystem(source, repo_path)
    with _write_errors(location(source, repo_path)):
        disk.create_dir(folder, recursive=True)
        with _hidden(disk, folder) as hidden:
            ds.write_dataset(
                rows,
                hidden,
                filesystem=disk,
                format="parquet",
                basename_template=f"{uuid.uuid4().hex}-{{i}}.parquet",
                partitioning=partition_by,
                partitioning_flavor="hive" if partition_by else None,
            )
            for name in files.names_below(disk, hidden):
                disk.create_dir(os.path.dirname(f"{folder}/{name}"), recursive=True)
                disk.move(f"{hidden}/{name}", f"{folder}/{name}")


def _write_errors(place: str, *kinds: type[Exception]) -> AbstractContextManager[None]:
    return raised_as(FeatureError, f"{place} was not written, and is unchanged", OSError, *kinds)


def _alone(place: str, repo_path: Path | str | None) -> AbstractContextManager[None]:
    """The lock of a file's writers: beside it, or in the feature repository if the file is not on this machine."""
    if "://" in place:
        name, folder = hashlib.sha256(place.encode()).hexdigest()[:16], Path(repo_path or ".")
    else:
        name, folder = Path(place).name, Path(place).parent
    return exclusive(state_dir(folder) / f"{name}.lock", _WAIT, error=FeatureError)


@contextmanager
def _hidden(disk: pafs.FileSystem, folder: str) -> Iterator[str]:
    """A location within the folder that readers skip, for incomplete files."""
    if isinstance(disk, pafs.LocalFileSystem):
        with scratch_folder(Path(folder), prefix=".") as hidden_path:
            yield str(hidden_path)
        return
    hidden_path = f"{folder}/.{uuid.uuid4().hex}.tmp"
    try:
        yield hidden_path
    finally:
        with suppress(OSError):  # nothing there
            disk.delete_dir(hidden_path)


def _schema_of(tables: Iterable[pa.Table]) -> tuple[pa.Schema, Iterable[pa.Table]]:
    """The schema of the first table, and all tables, of which there is at least one."""
    pieces = iter(tables)
    first = next(pieces)
    return first.schema, itertools.chain([first], pieces)


def _free(disk: pafs.FileSystem, folder: str, *, append: bool) -> str:
    """The file in a folder for new rows: a further one, or the only one, so that one rename is enough."""
    names = [name for name in files.names_below(disk, folder) if not files.passed_over(name)]
    if append:
        if partitioned := [name for name in names if "=" in os.path.dirname(name)]:
            raise FeatureError(
                f"{folder} is partitioned ({os.path.dirname(partitioned[0])}), and a file beside the partitions would "
                "hide their columns. Write the partition's file yourself, or use a Delta table."
            )
        return f"{folder}/{uuid.uuid4().hex}.parquet"
    if len(names) > 1 or any("/" in name or not name.endswith(".parquet") for name in names):
        raise FeatureError(
            f"{folder} holds {len(names)} files, e.g. {names[0]}, which cannot be replaced in a single step: a process "
            "killed half way would leave rows twice. Remove them first, or use another folder, a .parquet file or "
            "a Delta table."
        )
    return f"{folder}/{names[0] if names else 'rows.parquet'}"


def _after(path: str, disk: pafs.FileSystem, tables: Iterable[pa.Table]) -> Iterable[pa.Table]:
    with disk.open_input_file(path) as opened:
        existing_file = pq.ParquetFile(opened)
        schema = existing_file.schema_arrow
        for batch in existing_file.iter_batches(_ROWS):
            yield pa.Table.from_batches([batch], schema)
    for table in tables:
        yield table.select(schema.names).cast(schema)
