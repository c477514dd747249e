"""Counts of requests that were not answered with predictions, beside the log that has those that were."""

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dagster_mlops.core.private_files import open_private
from dagster_mlops.serving.runtime.log.row_json import decode, encode

Kind = Literal["failed", "refused"]


class Failure(NamedTuple):
    """Requests that failed by the server's fault, and those that it refused, in the second before `time`."""

    time: datetime
    failed: int
    refused: int


class Failures:
    """The counts of one writer that are not written down yet."""

    def __init__(self, log_dir: str, writer: str) -> None:
        self._log_dir, self._writer = Path(log_dir), writer
        self._lock = threading.Lock()
        self._counts: dict[Kind, int] = {"failed": 0, "refused": 0}

    def count(self, status: int) -> None:
        """Count a request that was answered with this status of HTTP: from 500 on as failed, below as refused."""
        with self._lock:
            self._counts["failed" if status >= 500 else "refused"] += 1

    def write_down(self) -> None:
        """Append a line with the counts since the last one, if any; without room for it, the counts go on."""
        with self._lock, suppress(OSError):
            if not any(self._counts.values()):
                return
            # The time of this line, not of the failures: a reader who has read up to now misses none.
            time = datetime.now(UTC).isoformat(timespec="microseconds")
            line = encode({"time": time, **self._counts}) + b"\n"
            file = open_private(self._log_dir / f"{time[:10]}-{self._writer}.failures", os.O_WRONLY | os.O_APPEND)
            try:
                if os.write(file, line) == len(line):
                    self._counts = {"failed": 0, "refused": 0}
            finally:
                os.close(file)


def failures(log_dir: str | Path, start: datetime, end: datetime) -> list[Failure]:
    """The counts that the writers of a log have written down from `start` to `end`, oldest first."""
    return sorted(entry for entry in _entries(Path(log_dir), start, end) if start <= entry.time < end)


def _entries(log_dir: Path, start: datetime, end: datetime) -> Iterator[Failure]:
    first, last = (f"{time.astimezone(UTC):%Y-%m-%d}" for time in (start, end))
    for file in log_dir.glob("*.failures"):
        if first <= file.name[:10] <= last:
            for line in file.read_bytes().splitlines():
                with suppress(ValueError, KeyError, TypeError):  # torn by a kill or a full disk
                    stored: Any = decode(line)
                    time = datetime.fromisoformat(stored["time"]).astimezone(UTC)
                    yield Failure(time, int(stored["failed"]), int(stored["refused"]))
