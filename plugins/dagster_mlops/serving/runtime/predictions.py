"""One row per prediction that a deployment answered, in append-only JSON lines."""

import json
import logging
import os
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster_mlops.core.private_files import private_folder
from dagster_mlops.serving.runtime.synced_file import SyncedFile

if TYPE_CHECKING:
    import pandas as pd

# The record schema of dagster_mlops.provenance, spelt out because this file also runs where that one is not installed.
SCHEMA = 1
MOST_BYTES = 2**20
"""Of one row: what a client sends is not to fill the disk, nor the memory of who reads the log."""
_META = ("request_id", "timestamp", "deployment", "bento", "model_name", "model_version")

_logger = logging.getLogger(__name__)


class RowTooLarge(ValueError):
    """A client sent a row that is larger than :data:`MOST_BYTES`."""


class PredictionLog:
    """Writes and reads the prediction log of one or more deployments.

    Every process writes files of its own, one per day, and every call is one ``O_APPEND`` write: workers never wait for
    each other, and a worker killed in the middle leaves at most one torn last line, which readers skip. A power cut
    costs the rows of the last `sync_seconds` at most; with 0, each is on the disk before :meth:`write` returns. Each
    line is a complete provenance record of kind ``prediction``.

    >>> import tempfile
    >>> log = PredictionLog(tempfile.mkdtemp(), deployment="delay/1", model_name="delay", model_version="3")
    >>> log.write(inputs=[{"hour": 7}], outputs=[0.25], request_ids=["a"])
    >>> log.find(log.log_dir, "a")["output"]
    0.25
    """

    def __init__(
        self,
        log_dir: str | Path,
        *,
        deployment: str = "",
        bento: str = "",
        model_name: str = "",
        model_version: str = "",
        state_dir: str = "",
        tool: str = "bentoml",
        sync_seconds: float = 1.0,
    ) -> None:
        self.log_dir = str(log_dir)
        self._facts = {
            "schema": SCHEMA,
            "kind": "prediction",
            "prediction_log": self.log_dir,
            "deployment": deployment,
            "bento": bento,
            "model_name": model_name,
            "model_version": model_version,
        }
        if deployment:
            upstream = {"tool": tool, "kind": "deployment", "id": deployment, "at": state_dir}
            self._facts["upstream"] = [upstream]
        self._suffix = f"{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
        self._lock = threading.Lock()
        self._sync_seconds = sync_seconds
        self._day = ""
        self._file: SyncedFile | None = None
        private_folder(Path(log_dir))

    @classmethod
    def from_environment(cls, **facts: str) -> "PredictionLog | None":
        """The log that the deployment asked for through its environment, or None when served without a deployment."""
        log_dir = os.environ.get("DAGSTER_MLOPS_PREDICTION_LOG")
        if not log_dir:
            return None
        return cls(
            log_dir,
            deployment=os.environ.get("DAGSTER_MLOPS_DEPLOYMENT", ""),
            state_dir=os.environ.get("DAGSTER_MLOPS_STATE_DIR", ""),
            sync_seconds=float(os.environ.get("DAGSTER_MLOPS_PREDICTION_LOG_SYNC", "1")),
            **facts,
        )

    def write(self, *, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Any], request_ids: Sequence[str]) -> None:
        """Append one row per prediction; when it returns, the rows survive a kill of this process.

        Raises:
            OSError: the disk refuses them, or has refused earlier ones.
            RowTooLarge: none of the rows is logged.
        """
        timestamp = datetime.now(UTC)
        facts = {**self._facts, "timestamp": timestamp.isoformat(timespec="microseconds")}
        lines = [
            json.dumps({**facts, "request_id": i, "inputs": row, "output": out}, separators=(",", ":"), default=str)
            for i, row, out in zip(request_ids, inputs, outputs, strict=True)
        ]
        if (largest := max(map(len, lines), default=0)) > MOST_BYTES:
            raise RowTooLarge(f"a row has {largest:,} bytes as JSON; at most {MOST_BYTES:,} are logged.")
        data = ("\n".join(lines) + "\n").encode()
        with self._lock:
            day = timestamp.strftime("%Y-%m-%d")
            if day != self._day:
                if self._file:
                    self._file.close()
                self._file = SyncedFile(Path(self.log_dir) / f"{day}-{self._suffix}", self._sync_seconds)
                self._day = day
            assert self._file is not None  # of this day
            file, number = self._file, self._file.append(data)
        file.settle(number)

    @staticmethod
    def read(
        log_dir: str | Path,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        deployment: str | None = None,
    ) -> "pd.DataFrame":
        """The logged predictions with ``start <= timestamp < end``, one row each, oldest first.

        Columns are ``request_id, timestamp (UTC), deployment, bento, model_name, model_version``, then each input under
        its own name (``input.<name>`` where that would hide another column), then ``output``.
        """
        import pandas as pd

        rows = []
        for record in _records(log_dir, start, end):
            if deployment is not None and record.get("deployment") != deployment:
                continue
            row = {name: record.get(name, "") for name in _META}
            for name, value in record.get("inputs", {}).items():
                row[f"input.{name}" if name in _META or name == "output" else name] = value
            row["output"] = record.get("output")
            rows.append(row)
        frame = pd.DataFrame(rows) if rows else pd.DataFrame({name: [] for name in (*_META, "output")})
        frame["timestamp"] = pd.to_datetime(frame["timestamp"], utc=True, format="ISO8601")
        frame = frame.sort_values(["timestamp", "request_id"], kind="stable", ignore_index=True)
        return frame.reindex(columns=[*(name for name in frame.columns if name != "output"), "output"])

    @staticmethod
    def find(log_dir: str | Path, request_id: str) -> dict[str, Any] | None:
        """The whole record of one prediction, the latest if an id was used twice, or None."""
        needle = json.dumps(request_id).encode()
        for path in sorted(Path(log_dir).glob("*.jsonl"), reverse=True):
            if needle in path.read_bytes():
                records = [record for record in _lines(path) if record.get("request_id") == request_id]
                if records:
                    return records[-1]
        return None


def _records(log_dir: str | Path, start: datetime | None, end: datetime | None) -> Iterator[dict[str, Any]]:
    first, last = (at.astimezone(UTC).isoformat(timespec="microseconds") if at else "" for at in (start, end))
    for path in sorted(Path(log_dir).glob("*.jsonl")):
        day = path.name[:10]
        if (first and day < first[:10]) or (last and day > last[:10]):
            continue
        for record in _lines(path):
            at = record.get("timestamp", "")
            if (not first or at >= first) and (not last or at < last):
                yield record


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
            except ValueError:
                # A killed worker tears only its last line; a worker still writing has not ended it yet.
                if line.endswith(b"\n"):
                    _logger.warning("%s line %d is damaged and was skipped", path, number)
                continue
            if isinstance(record, dict):
                yield record
