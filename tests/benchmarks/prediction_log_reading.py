"""Processor time to write, rotate, read and search a prediction log, against whole records as JSON lines by Python."""

import json
import os
import random
import tempfile
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from dagster_mlops.serving.runtime import PredictionLog
from dagster_mlops.serving.runtime.log import rotation
from dagster_mlops.serving.runtime.log.folder import Part
from dagster_mlops.serving.runtime.log.row_tables import MODEL, with_forms
from tests.benchmarks.measure import console, show

ROWS, PER_CALL = 200_000, 1000
FILE_ROWS = 1_000_000
_START = 1_769_817_600_000_000  # microseconds; the first row's, on 2026-01-31, and each row comes a millisecond later
FACTS: dict[str, Any] = {
    "deployment": "delay/3-19581e27de7c-1767225600",
    "bento": "delay:3-19581e27de7c",
    "model_version": "3",
}


def run(rounds: int | None = None) -> dict[str, Any]:
    """One log written both ways, then searched as it grows to a hundred million rows."""
    with tempfile.TemporaryDirectory(prefix="prediction-log-") as name:
        folder = Path(name)
        found = {"rows": _both_ways(folder, rounds or 3), "files": _as_it_grows(folder, rounds or 3)}
    return found


def _both_ways(folder: Path, rounds: int) -> dict[str, Any]:
    draw = random.Random(1)
    rows = [{f"feature_{n}": draw.random() for n in range(12)} for _ in range(PER_CALL)]
    calls = [[str(uuid.uuid4()) for _ in rows] for _ in range(ROWS // PER_CALL)]
    outputs = [draw.random() for _ in rows]
    log, before = PredictionLog(folder / "log", **FACTS, rotate=False), folder / "before.jsonl"
    middle = calls[len(calls) // 2][0]
    seconds = {
        "write": (
            _cpu(lambda: [_write_before(before, rows, outputs, ids) for ids in calls]),
            _cpu(lambda: [log.write(inputs=rows, outputs=outputs, request_ids=ids) for ids in calls]),
        )
    }
    assert log._file
    log._file.close()
    bytes_of_lines = _size(folder / "log")
    seconds["rotate"] = (0.0, _cpu(lambda: rotation.rotate(folder / "log")))
    read, find = (lambda: _read_before(before)), (lambda: _find_before(before, middle))
    seconds["read"] = (_cpu(read), _cpu(lambda: PredictionLog.read(log.log_dir)))
    columns = ["feature_0", "output"]
    seconds["read two columns"] = (_cpu(read), _cpu(lambda: PredictionLog.read(log.log_dir, columns=columns)))
    ours = median(_cpu(lambda: PredictionLog.find(log.log_dir, middle)) for _ in range(rounds))
    seconds["find"] = (median(_cpu(find) for _ in range(rounds)), ours)
    table = [
        (name, *(f"{s * 1e6 / ROWS:.2f}" for s in pair), pair[1] / pair[0] if pair[0] else "")
        for name, pair in seconds.items()
    ]
    show(f"{ROWS:,} rows, 12 features", ["", "before, µs a row", "now, µs a row", "ratio"], table)
    sizes = before.stat().st_size, bytes_of_lines
    console.print(f"Bytes a row: {', '.join(f'{size / ROWS:.0f}' for size in sizes)} (before, now as lines).\n")
    return {"seconds": seconds, "bytes": sizes}


def _as_it_grows(folder: Path, rounds: int) -> dict[int, dict[str, float]]:
    """A request found, and five minutes read, of 1, 10 and 100 files of a million rows; most are links.

    Each in a new process, which shows the memory that it takes beyond the imports.
    """
    files = [_file(folder / "files", number) for number in range(10)]
    needle: Any = pd.read_parquet(files[0], columns=["request_id"])["request_id"][12_345]
    found: dict[int, dict[str, float]] = {}
    for count in (1, 10, 100):
        place = folder / f"files-{count}"
        place.mkdir()
        for number in range(count):
            source = files[0] if number == 0 else files[1 + number % 9]
            os.link(source, place / f"2026-01-31-{number:016x}.parquet")
        assert PredictionLog.find(place, needle)
        again = median(_cpu(lambda place=place: PredictionLog.find(place, needle)) for _ in range(rounds))
        found[count] = {"find again, CPU ms": again * 1000}
        for title, act in {"find": _find, "read 5 minutes": _read_five_minutes}.items():
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                seconds, wall, megabytes = process.submit(_alone, act, str(place), needle).result()
            facts = {"CPU ms": seconds * 1000, "ms": wall * 1000, "MB": megabytes}
            found[count] |= {f"{title}, {unit}": value for unit, value in facts.items()}
    table = [
        (f"{count * FILE_ROWS:,}", *(f"{value:,.0f}" for value in facts.values())) for count, facts in found.items()
    ]
    show("Searching and reading", ["rows", *found[1]], table)
    return found


def _alone(act: Callable[[str, str], object], place: str, needle: str) -> tuple[float, float, float]:
    """Seconds of the processor and of the clock, and the megabytes that this process has taken for it at most."""
    import pyarrow.parquet as _  # noqa: F401 - as those who read a log have it

    before, start, wall = _peak(), time.process_time(), time.perf_counter()
    act(place, needle)
    return time.process_time() - start, time.perf_counter() - wall, (_peak() - before) / 1e6


def _peak() -> int:
    """Bytes. ``getrusage`` would begin with what the parent has had."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def _find(place: str, needle: str) -> None:
    assert PredictionLog.find(place, needle)


def _read_five_minutes(place: str, _: str) -> None:
    start = datetime.fromtimestamp(_START / 10**6 + 200, UTC)
    frame = PredictionLog.read(place, start, start + timedelta(minutes=5), columns=["request_id", "hour", "output"])
    assert len(frame) >= 300_000


def _file(folder: Path, number: int) -> Path:
    """A Parquet file of random ids, as the rotation writes it."""
    folder.mkdir(exist_ok=True)
    size, draw, text = FILE_ROWS, np.random.default_rng(number), os.urandom(16 * FILE_ROWS).hex()
    same = {name: pa.array([""]).dictionary_encode() for name in MODEL}
    same |= {
        "rest": pa.array(['{"kind":"prediction"}']).dictionary_encode(),
        "segment": pa.array(["s"]).dictionary_encode(),
    }
    columns = {
        "request_id": [text[at : at + 32] for at in range(0, 32 * size, 32)],
        "timestamp": pa.array(np.arange(size) * 1000 + number * 10**9 + _START, pa.timestamp("us", "UTC")),
        "trace_id": pa.nulls(size, pa.string()),
        "seconds": pa.nulls(size, pa.float64()),
        **{name: column.take(pa.array(np.zeros(size, int))) for name, column in same.items()},
        "position": np.arange(size),
        "input.hour": draw.integers(0, 24, size),
        "output": draw.random(size),
    }
    table = with_forms(pa.table(columns), {"input.hour": ["int", ""], "output": ["float", ""]})
    before = set(folder.iterdir())
    rotation._write(folder, "2026-01-31", [table], [Part(f"s{number}", 0, size, size)])
    [file] = {*folder.iterdir()} - before
    return file


def _write_before(file: Path, rows: list[dict[str, float]], outputs: list[float], ids: list[str]) -> None:
    upstream = [{"tool": "bentoml", "kind": "deployment", "id": FACTS["deployment"], "at": "/srv/serving"}]
    facts = {"schema": 1, "kind": "prediction", "prediction_log": str(file), **FACTS, "upstream": upstream}
    facts["timestamp"] = "2026-01-31T07:00:00.000000+00:00"
    lines = [
        json.dumps({**facts, "request_id": i, "inputs": row, "output": out}, separators=(",", ":"), default=str)
        for i, row, out in zip(ids, rows, outputs, strict=True)
    ]
    with file.open("a") as stream:
        stream.write("\n".join(lines) + "\n")


def _read_before(file: Path) -> pd.DataFrame:
    records = [json.loads(line) for line in file.open()]
    return pd.DataFrame([{**record["inputs"], "output": record["output"]} for record in records])


def _find_before(file: Path, request_id: str) -> dict[str, Any]:
    assert request_id.encode() in file.read_bytes()
    return [record for line in file.open() if (record := json.loads(line))["request_id"] == request_id][-1]


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _cpu(act: Callable[[], object]) -> float:
    start = time.process_time()
    act()
    return time.process_time() - start
