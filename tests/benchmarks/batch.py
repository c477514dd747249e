"""Rows per second of a batch of predictions, and the memory that scoring takes beside its rows."""

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from dagster_mlops.serving.batch import scoring as batch_scoring
from tests.benchmarks.measure import show
from tests.serving import test_batch


def run(rounds: int | None = None) -> dict[str, Any]:
    """A logistic regression of two features in chunks of 20,000 rows, without a prediction log and with one."""
    results: dict[str, Any] = {}
    for rows, has_log in ((200_000, False), (200_000, True), (1_000_000, False)):
        root = Path(tempfile.mkdtemp(prefix="batch-"))
        world = test_batch.World(root)
        world.change = lambda _, rows=rows: test_batch.table("2026-03-01", rows)
        for title in ("first", "once more"):
            with measured() as facts:
                world.score(chunk_rows=20_000, prediction_log=root / "log" if has_log else None)
            name = f"{rows:,} rows{', with a log' if has_log else ''}, {title}"
            results[name] = {"rows_per_second": rows / facts["seconds"], "megabytes": facts["megabytes"]}
    table = [(name, f"{row['rows_per_second']:,.0f}", f"{row['megabytes']:,.0f}") for name, row in results.items()]
    show("Batches of predictions", ["batch", "rows per second", "MB beside the rows"], table)
    return results


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Seconds and additional memory of the call of :func:`batch_scoring.score` in the block."""
    facts: dict[str, float] = {}
    original, process, over = batch_scoring.score, psutil.Process(), threading.Event()

    def score(*arguments: Any) -> Any:
        before, start, peak = process.memory_info().rss, time.perf_counter(), 0

        def watch() -> None:
            nonlocal peak
            while not over.wait(0.02):
                peak = max(peak, process.memory_info().rss)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            return original(*arguments)
        finally:
            over.set()
            thread.join()
            facts.update(seconds=time.perf_counter() - start, megabytes=(peak - before) / 1e6)

    batch_scoring.score = score
    try:
        yield facts
    finally:
        batch_scoring.score = original
