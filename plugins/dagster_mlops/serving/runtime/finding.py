"""Finds a prediction by its request id among all rows of a log."""

import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dagster_mlops.serving.runtime.log_folder import names
from dagster_mlops.serving.runtime.row_json import encode
from dagster_mlops.serving.runtime.row_tables import metadata, records
from dagster_mlops.serving.runtime.segments import first_header, parse


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

    try:
        with duckdb.connect() as database:
            rows = database.execute(
                "select filename, segment, position from read_parquet(?, filename = true) where request_id = ? "
                "order by timestamp desc limit 1",
                [[str(file) for file in files], request_id],
            ).fetchall()
            for file, segment, position in rows:
                forms = metadata(pq.read_schema(file))["forms"]
                answer = database.sql(
                    "select * from read_parquet(?) where request_id = ? and segment = ? and position = ?",
                    params=[file, request_id, segment, position],
                )
                yield from records(answer.to_arrow_table(), forms)
    except duckdb.IOException as error:
        if missing := [file for file in files if not file.exists()]:
            raise FileNotFoundError(str(missing[0])) from error
        raise
