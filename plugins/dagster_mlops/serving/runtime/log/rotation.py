"""Rotates the finished segments of a prediction log: sorted Parquet takes the place of JSON lines.

A Parquet file gets its name when it is whole and on the disk, and says of which bytes of which segments it is made;
then they are removed. So a rotation that is killed at any point loses no row, and readers see none twice. One process
rotates a log at a time; the system frees the lock of one that was killed.
"""

import fcntl
import inspect
import os
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster_mlops.core.private_files import open_private, sync
from dagster_mlops.serving.runtime.log.folder import Listing, Part, RotatedFile, listing
from dagster_mlops.serving.runtime.log.row_tables import compute, merged, metadata, table_of, with_forms
from dagster_mlops.serving.runtime.log.segments import Line, first_header, is_locked_by_its_writer, lines

if TYPE_CHECKING:
    import pyarrow as pa

PART_ROWS, PART_BYTES = 20_000, 2**24
FILE_ROWS, FILE_BYTES = 1_000_000, 2**28  # the bytes in memory
GROUP_ROWS = 65_536  # of which one is read to find a request
LOCK = ".rotation.lock"


def rotate(log_dir: str | Path) -> int:
    """Rotate all finished segments, and return their number; 0, too, where another process does it already.

    The files of a day are merged as they grow, smaller ones first, up to :data:`FILE_ROWS` rows in each.
    """
    folder, count = Path(log_dir), 0
    if not folder.is_dir():
        return 0
    with _locked(folder / LOCK) as is_free:
        if not is_free:
            return 0
        for draft in folder.glob(".*.parquet.tmp"):  # of a rotation that was killed
            draft.unlink()
        files = listing(folder)
        for path in files.superseded:
            path.unlink()
        for day, names in groupby(sorted(files.segments), key=lambda name: name[:10]):
            finished = [name for name in names if _is_finished(folder / name)]
            _rotate_day(folder, day, finished, files)
            count += len(finished)
    return count


def main(log_dir: str) -> None:
    """Rotate with the lowest priority: predictions come first."""
    os.nice(19)
    try:
        import pyarrow as pyarrow
    except ImportError:
        sys.exit(f"{log_dir} is not rotated to Parquet: pyarrow is not installed here. It is readable as it is.")
    rotate(log_dir)


def _rotate_day(folder: Path, day: str, names: list[str], files: Listing) -> None:
    """Write Parquet files of the segments, each as soon as it is large enough, and remove what they are made of."""
    small = sorted((file for file in files.rotated if file.path.name.startswith(day)), key=lambda file: file.rows)
    tables: list[pa.Table] = []
    parts: list[Part] = []
    sources: list[Path] = []

    def flush(more: list[RotatedFile]) -> None:
        if any(part.rows for part in parts):
            _write(folder, day, [*tables, *map(_read, more)], [*parts, *(part for file in more for part in file.parts)])
        for path in [*sources, *(file.path for file in more)]:
            path.unlink()
        for pending in (tables, parts, sources):
            pending.clear()

    for name in names:
        for part, table in _parts(folder / name, files.segments[name]):
            parts.append(part)
            if table is not None:
                tables.append(table)
            if sum(map(len, tables)) >= FILE_ROWS or sum(each.nbytes for each in tables) >= FILE_BYTES:
                flush([])
        sources.append(folder / name)
    rows, size, merging = sum(map(len, tables)), sum(table.nbytes for table in tables), []
    for file in small:  # as many rows as there are: each row is written again as often as the log doubles
        if not rows or file.rows > rows or rows + file.rows > FILE_ROWS or size + file.bytes > FILE_BYTES:
            break
        merging.append(file)
        rows, size = rows + file.rows, size + file.bytes
    flush(merging)


def _parts(path: Path, start: int) -> "Iterator[tuple[Part, pa.Table | None]]":
    """The rows of a segment from the byte `start`, in parts that fit into memory."""
    with path.open("rb") as file:
        size, chunk = os.fstat(file.fileno()).st_size, list[Line]()
        for line in lines(file, start):
            if chunk and (len(chunk) >= PART_ROWS or line.end - start > PART_BYTES):
                yield Part(path.name, start, chunk[-1].end, len(chunk)), table_of(path.name, chunk)
                start, chunk = chunk[-1].end, []
            chunk.append(line)
        if start < size:
            yield Part(path.name, start, size, len(chunk)), table_of(path.name, chunk) if chunk else None


def _write(folder: Path, day: str, tables: "list[pa.Table]", parts: list[Part]) -> None:
    import pyarrow.parquet as pq

    pc = compute()
    table = merged(tables)
    tables.clear()
    forms = metadata(table)["forms"]
    bounds = pc.min_max(table["timestamp"]).as_py()
    first, last = (at.astimezone(UTC).isoformat(timespec="microseconds") if at else "" for at in bounds.values())
    table = with_forms(table, forms, parts=parts, first=first, last=last, bytes=table.nbytes)
    order = pc.sort_indices(table, sort_keys=[("request_id", "ascending"), ("timestamp", "ascending")])
    options: dict[str, Any] = {
        "compression": "zstd",
        "use_dictionary": [name for name in table.column_names if name not in ("request_id", "trace_id", "position")],
        "sorting_columns": [pq.SortingColumn(table.column_names.index("request_id"))],
    }
    if "bloom_filter_options" in inspect.signature(pq.write_table).parameters:  # since pyarrow 24
        options["bloom_filter_options"] = {"request_id": {"ndv": GROUP_ROWS, "fpp": 0.01}}
    name = f"{day}-{uuid.uuid4().hex[:16]}.parquet"
    draft = folder / f".{name}.tmp"
    try:
        descriptor = open_private(draft, os.O_WRONLY)
        with open(descriptor, "wb") as file, pq.ParquetWriter(file, table.schema, **options) as writer:
            for start in range(0, len(table), GROUP_ROWS):  # one group at a time: the whole is not in memory twice
                writer.write_table(table.take(order.slice(start, GROUP_ROWS)))
        sync(draft)
        draft.rename(folder / name)
    except OSError:
        draft.unlink(missing_ok=True)  # the disk may be full, and the log needs what room there is
        raise
    sync(folder)


def _read(file: RotatedFile) -> "pa.Table":
    import pyarrow.parquet as pq

    with file.path.open("rb") as source:
        return pq.read_table(source)


def _is_finished(path: Path) -> bool:
    """True for a segment to which no process will write again."""
    status = path.stat()
    with path.open("rb") as file:
        # A writer has the lock before it writes. Locks do not reach from machine to machine everywhere.
        if is_locked_by_its_writer(path.name) and first_header(file).get("host") == os.uname().nodename:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError:
                pass  # a disk without locks
            else:
                return True
    before = f"{datetime.now(UTC) - timedelta(days=2):%Y-%m-%d}"
    return path.name[:10] <= before and time.time() - status.st_mtime > 24 * 3600


@contextmanager
def _locked(file: Path) -> Iterator[bool]:
    descriptor = open_private(file, os.O_RDWR)
    try:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield True
            return
        yield False
    finally:
        os.close(descriptor)
