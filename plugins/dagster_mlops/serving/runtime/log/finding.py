"""Finds a prediction by its request id among all rows of a log."""

import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dagster_mlops.serving.runtime.log.folder import names
from dagster_mlops.serving.runtime.log.row_json import encode
from dagster_mlops.serving.runtime.log.row_tables import metadata, records
from dagster_mlops.serving.runtime.log.segments import first_header, parse


def find(log_dir: str | Path, request_id: str) -> dict[str, Any] | None:
    """The whole record of one prediction, the latest if an id was used twice, or None."""
    while True:
        files = [Path(log_dir, name) for name in names(log_dir)]
        try:
            rows = [
                *_in_segments([file for file in files if file.suffix == ".jsonl"], request_id),
                *_in_parquet([file for file in files if file.suffix == ".parquet"], request_id),
            ]
        except FileNotFoundError:  # rotated meanwhile
            continue
        # A row may be in two files for a while, and is the same in both.
        return max(rows, key=lambda record: str(record.get("timestamp", "")), default=None)


def _in_segments(files: list[Path], request_id: str) -> Iterator[dict[str, Any]]:
    needles = {encode(request_id).strip(), json.dumps(request_id).encode()}
    for path in files:
        with path.open("rb") as file:
            if not path.stat().st_size:
                continue
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                for needle in needles:
                    position = content.find(needle)
                    while position >= 0:
                        start, end = content.rfind(b"\n", 0, position) + 1, content.find(b"\n", position)
                        end = len(content) if end < 0 else end
                        row = parse(content[start:end])
                        if row and row.get("request_id") == request_id:
                            yield {**first_header(file), **row}
                        position = content.find(needle, end)


def _in_parquet(files: list[Path], request_id: str) -> Iterator[dict[str, Any]]:
    if not files:
        return
    import duckdb
    import pyarrow.parquet as pq

    places = "select filename, file_row_number from read_parquet(?, filename = true, file_row_number = true) "
    try:
        with duckdb.connect() as database:
            choice = f"{places} where request_id = ? order by timestamp desc limit 1"
            rows = database.execute(choice, [[str(file) for file in files], request_id]).fetchall()
    except duckdb.IOException:
        if all(file.exists() for file in files):
            raise
        rows = None
    if rows is None:
        raise FileNotFoundError(files[0].parent)
    for name, number in rows:
        with open(name, "rb") as source, pq.ParquetFile(source) as file:
            group = 0
            while number >= (size := file.metadata.row_group(group).num_rows):
                group, number = group + 1, number - size
            # Not by DuckDB, for which two names that differ in case are one.
            yield from records(file.read_row_group(group).slice(number, 1), metadata(file.schema_arrow)["forms"])
