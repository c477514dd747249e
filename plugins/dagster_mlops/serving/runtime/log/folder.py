"""Files of a prediction log: segments that are being written or wait for rotation, and the Parquet files made of them.

A Parquet file says in its own metadata of which parts of which segments it is made. So the folder is the only truth,
and a row that is in two files for a while, because a rotation was killed, is read from one.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dagster_mlops.serving.runtime.log.row_tables import metadata

_NAME = re.compile(r"[^.].*\.jsonl|\d{4}-\d\d-\d\d-[0-9a-f]{16}\.parquet")  # not the exports of a user


class Part(NamedTuple):
    """The rows of a segment from the byte `start` to `end`."""

    segment: str
    start: int
    end: int
    rows: int


@dataclass(frozen=True)
class RotatedFile:
    """A Parquet file of the log."""

    path: Path
    parts: tuple[Part, ...]
    first: str  # timestamps, ISO 8601 in UTC; empty if no row has one
    last: str
    bytes: int  # in memory

    @property
    def rows(self) -> int:
        """The number of rows."""
        return sum(part.rows for part in self.parts)


@dataclass(frozen=True)
class Listing:
    """The files of a log that hold each row once."""

    rotated: tuple[RotatedFile, ...]
    superseded: tuple[Path, ...]  # Parquet files whose rows are all in another one
    segments: Mapping[str, int]  # how many bytes of each segment are in Parquet files


def names(log_dir: str | Path) -> list[str]:
    """The names of all files of a log, by day.

    A rotation creates a file before it removes others. A single look at a folder that changes may miss both, two that
    are alike do not: no name is ever used again.
    """
    before, current = None, _names(log_dir)
    while current != before:
        before, current = current, _names(log_dir)
    return current


def listing(log_dir: str | Path, days: tuple[str, str] = ("", "")) -> Listing:
    """The files of a log, or those that may have rows from the first to the last of `days`.

    Raises:
        FileNotFoundError: a rotation has replaced one meanwhile.
    """
    first, last = days
    files_of_days = [
        name for name in names(log_dir) if (not first or name[:10] >= first) and (not last or name[:10] <= last)
    ]
    rotated, superseded, seen = [], [], set[Part]()
    files = [rotated_file(Path(log_dir, name)) for name in files_of_days if name.endswith(".parquet")]
    for file in sorted(files, key=lambda file: (-len(file.parts), file.path)):
        if seen.issuperset(file.parts):
            superseded.append(file.path)
        else:
            rotated.append(file)
            seen.update(file.parts)
    ends: dict[str, int] = {}
    for part in seen:
        ends[part.segment] = max(part.end, ends.get(part.segment, 0))
    segments = {name: ends.get(name, 0) for name in files_of_days if name.endswith(".jsonl")}
    return Listing(tuple(sorted(rotated, key=lambda file: file.path)), tuple(superseded), segments)


def rotated_file(path: Path) -> RotatedFile:
    """A Parquet file with the parts and times that its metadata names."""
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        facts = metadata(pq.read_schema(file))
    return RotatedFile(
        path, tuple(Part(*part) for part in facts["parts"]), facts["first"], facts["last"], facts["bytes"]
    )


def _names(log_dir: str | Path) -> list[str]:
    try:
        with os.scandir(log_dir) as entries:
            return sorted(entry.name for entry in entries if _NAME.fullmatch(entry.name) and entry.is_file())
    except FileNotFoundError:
        return []
