"""Counts of answered predictions that the disk refused, written down beside the log once there is room."""

import logging
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dagster_mlops.core.private_files import open_private
from dagster_mlops.serving.runtime.log.row_json import decode, encode

_logger = logging.getLogger(__name__)


class Losses:
    """The rows that one writer has lost, and not written down yet. A warning is logged when it begins to lose some."""

    def __init__(self, log_dir: str, writer: str, facts: Mapping[str, Any]) -> None:
        self._log_dir, self._writer, self._facts = Path(log_dir), writer, facts
        self._lock = threading.Lock()
        self._rows, self._since, self._reason = 0, "", ""

    def count(self, rows: int, error: OSError) -> None:
        """Count rows that were answered and are not in the log."""
        with self._lock:
            if not self._rows:
                self._since, self._reason = _time(), str(error)
                _logger.warning("predictions are answered that %s does not have: %s", self._log_dir, error)
            self._rows += rows

    def write_down(self) -> None:
        """Write down what was lost, if any, and begin to count anew; without room for it, the count goes on."""
        if not self._rows:
            return
        with self._lock, suppress(OSError):
            until = _time()
            facts = {"rows": self._rows, "since": self._since, "until": until, "reason": self._reason, **self._facts}
            file = open_private(self._log_dir / f"{until[:10]}-{self._writer}.losses", os.O_WRONLY | os.O_APPEND)
            try:
                line = encode(facts) + b"\n"
                if os.write(file, line) == len(line):
                    self._rows = 0
            finally:
                os.close(file)


def losses(log_dir: str | Path) -> list[dict[str, Any]]:
    """The losses that the writers of a log have written down."""
    lines = [line for file in sorted(Path(log_dir).glob("*.losses")) for line in file.read_bytes().splitlines()]
    entries = []
    for line in lines:
        with suppress(ValueError):  # torn by a kill or a full disk, and written once more after it
            entries.append(decode(line))
    return entries


def _time() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
