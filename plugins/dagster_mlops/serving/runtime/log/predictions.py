"""One row per prediction that a deployment answered, in append-only JSON lines that are rotated to Parquet."""

import errno
import os
import threading
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dagster_mlops.core.private_files import private_folder
from dagster_mlops.serving.runtime.log.background import rotate_soon
from dagster_mlops.serving.runtime.log.failures import Failure, Failures, failures
from dagster_mlops.serving.runtime.log.losses import Losses, losses
from dagster_mlops.serving.runtime.log.rules import LogRules
from dagster_mlops.serving.runtime.log.segments import header, row_line, row_start
from dagster_mlops.serving.runtime.log.synced_file import SyncedFile

if TYPE_CHECKING:
    import pandas as pd

# The record schema of dagster_mlops.provenance, spelt out because this file also runs where that one is not installed.
SCHEMA = 1
MOST_BYTES = 2**20
"""Of one row: what a client sends is not to fill the disk, nor the memory of who reads the log."""
SEGMENT_BYTES = 2**26
SHADOW = "shadow"  # folder of the rows of mirrored requests, in that of the log


class RowTooLarge(ValueError):
    """A client sent a row that is larger than :data:`MOST_BYTES`."""


class Rows(NamedTuple):
    """The rows of one request; see :meth:`PredictionLog.write`."""

    inputs: Sequence[Mapping[str, Any]]
    outputs: Sequence[Any]
    request_ids: Sequence[str]
    trace_id: str = ""
    seconds: float | None = None
    params: Mapping[str, Any] | None = None


class PredictionLog:
    """Writes and reads the prediction log of one or more deployments.

    Every process writes segments of its own, and every call is one ``O_APPEND`` write: workers never wait for each
    other, and a worker killed in the middle leaves at most one torn last line, which readers skip. A power cut costs
    the rows of the last `sync_seconds` at most; with 0, each is on the disk before :meth:`write` returns. A segment is
    finished with `segment_bytes`, or with the day, or with its process, and becomes Parquet; see
    :mod:`~dagster_mlops.serving.runtime.log.rotation`.

    >>> import tempfile
    >>> log = PredictionLog(tempfile.mkdtemp(), deployment="delay/1", model_name="delay", model_version="3")
    >>> log.write(inputs=[{"hour": 7}], outputs=[0.25], request_ids=["a"])
    >>> log.find(log.log_dir, "a")["output"]
    0.25

    Args:
        segment_bytes: Size with which a segment is finished.
        rotate: Whether a new segment starts a process that rotates the finished ones.
        rules: Private features, the share of rows that is logged, and the answer when the disk refuses them.
        facts: More that all rows share, by the names of a record, such as ``upstream`` of rows that no deployment has
            answered.
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
        segment_bytes: int = SEGMENT_BYTES,
        rotate: bool = True,
        rules: LogRules | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.log_dir = str(log_dir)
        self._rules = (rules or LogRules()).check()
        self._key = self._rules.key()
        shared = {
            "schema": SCHEMA,
            "prediction_log": self.log_dir,
            "deployment": deployment,
            "bento": bento,
            "model_name": model_name,
            "model_version": model_version,
            "host": os.uname().nodename,
            **self._rules.facts(),
        }
        if deployment:
            upstream = {"tool": tool, "kind": "deployment", "id": deployment, "at": state_dir}
            shared["upstream"] = [upstream]
        self._header = header({**shared, **(facts or {})})
        self._writer, self._segments = f"{os.getpid()}-{uuid.uuid4().hex[:8]}", 0
        self._losses = Losses(self.log_dir, self._writer, {"deployment": deployment})
        self.failed = Failures(self.log_dir, self._writer)
        self._lock = threading.Lock()
        self._sync_seconds, self._segment_bytes, self._rotate = sync_seconds, segment_bytes, rotate
        self._day = ""
        self._file: SyncedFile | None = None
        private_folder(Path(log_dir))

    @classmethod
    def from_environment(cls, *, mirrored: bool = False, **facts: Any) -> "PredictionLog | None":
        """The log that the deployment asked for through its environment, or None when served without a deployment.

        That of `mirrored` requests, whose answers go to no one, is its folder ``shadow``.
        """
        log_dir = os.environ.get("DAGSTER_MLOPS_PREDICTION_LOG")
        if not log_dir:
            return None
        if tool := os.environ.get("DAGSTER_MLOPS_DEPLOYMENT_TOOL"):  # where another one deploys than has packaged
            facts["tool"] = tool
        return cls(
            Path(log_dir, SHADOW) if mirrored else log_dir,
            deployment=os.environ.get("DAGSTER_MLOPS_DEPLOYMENT", ""),
            state_dir=os.environ.get("DAGSTER_MLOPS_STATE_DIR", ""),
            sync_seconds=float(os.environ.get("DAGSTER_MLOPS_PREDICTION_LOG_SYNC", "1")),
            rules=LogRules.from_environment(),
            **facts,
        )

    def write(
        self,
        *,
        inputs: Sequence[Mapping[str, Any]],
        outputs: Sequence[Any],
        request_ids: Sequence[str],
        trace_id: str = "",
        seconds: float | None = None,
    ) -> None:
        """Append one row per prediction; when it returns, the rows survive a kill of this process.

        Args:
            inputs: The features of each row, by name, as the model has seen them; see
                :func:`~dagster_mlops.serving.runtime.log.row_json.encode` for values that JSON does not have.
            outputs: The output for each row.
            request_ids: An id for each row.
            trace_id: Id of the trace that the request belongs to; see :func:`trace_id_of`.
            seconds: Latency of the request.

        Raises:
            OSError: the disk refuses them, or has refused earlier ones, or is busy with those for too long; not where
                the rules say that predictions are answered all the same.
            RowTooLarge: none of the rows is logged.
            TypeError: a value has no form in JSON; none of the rows is logged.
        """
        rows = Rows(inputs, outputs, request_ids, trace_id, seconds)
        self.write_all([rows])

    def write_all(self, requests: "Sequence[Rows]") -> None:
        """Append the rows of several requests at once, which wait for the disk together; see :meth:`write`."""
        time = datetime.now(UTC)
        lines = [line for rows in requests for line in self._lines(rows, time)]
        if not lines:
            return
        if (largest := max(map(len, lines))) > MOST_BYTES:
            raise RowTooLarge(f"a row has {largest:,} bytes as JSON; at most {MOST_BYTES:,} are logged.")
        data = b"\n".join(lines) + b"\n"
        try:
            self._append(data, f"{time:%Y-%m-%d}")
        except OSError as error:
            if self._rules.refused == "error":
                raise
            self._losses.count(len(lines), error)
        else:
            self._losses.write_down()

    def close(self) -> None:
        """Write what is left to the disk, and finish the segment, so that it can be rotated."""
        with self._lock:
            if self._file:
                self._file.close()
                self._file = None

    def _lines(self, rows: "Rows", time: datetime) -> list[bytes]:
        shared: dict[str, Any] = {"timestamp": time.isoformat(timespec="microseconds")}
        if rows.trace_id:
            shared["trace_id"] = rows.trace_id
        if rows.seconds is not None:
            shared["seconds"] = float(rows.seconds)
        if rows.params:
            shared["params"] = rows.params
        start = row_start(shared)
        return [
            row_line(start, {"request_id": i, "inputs": self._rules.without_private(row, self._key), "output": out})
            for i, row, out in zip(rows.request_ids, rows.inputs, rows.outputs, strict=True)
            if self._rules.logs(i)
        ]

    def _append(self, data: bytes, day: str) -> None:
        if not self._lock.acquire(timeout=self._rules.patience):
            text = f"the disk has been busy with earlier rows for {self._rules.patience:g} s"
            raise TimeoutError(errno.ETIMEDOUT, text, self.log_dir)
        try:
            file = self._segment(day)
            number = file.append(data, self._header)
        finally:
            self._lock.release()
        file.settle(number)

    def _segment(self, day: str) -> SyncedFile:
        """The segment to write to, which is a new one after that of the day before, and after a full one."""
        if self._file is None or day > self._day or self._file.bytes >= self._segment_bytes:
            if self._file:
                self._file.close()
                self._file = None
            name = f"{day}-{self._writer}-{self._segments}.jsonl"
            self._segments += 1
            self._file = SyncedFile(Path(self.log_dir, name), self._sync_seconds)
            self._day = day
            if self._rotate:
                rotate_soon(self.log_dir, day)
        return self._file

    @staticmethod
    def read(
        log_dir: str | Path,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        deployment: str | None = None,
        columns: Collection[str] | None = None,
    ) -> "pd.DataFrame":
        """The logged predictions with ``start <= timestamp < end``, one row each, oldest first.

        Columns are ``request_id, timestamp (UTC), deployment, bento, model_name, model_version, trace_id, seconds``,
        then each input under its own name (``input.<name>`` where that would hide another column), then ``output``. Of
        some `columns`, only those are read.
        """
        from dagster_mlops.serving.runtime.log.frames import frame_of
        from dagster_mlops.serving.runtime.log.reading import Scan

        return frame_of(Scan(Path(log_dir), start, end, deployment, columns).tables(), columns)

    @staticmethod
    def frames(
        log_dir: str | Path,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        deployment: str | None = None,
        columns: Collection[str] | None = None,
    ) -> "Iterator[pd.DataFrame]":
        """The dataframe of :meth:`read` in parts that fit into memory; each is ordered by itself."""
        from dagster_mlops.serving.runtime.log.frames import frame_of
        from dagster_mlops.serving.runtime.log.reading import Scan

        for table in Scan(Path(log_dir), start, end, deployment, columns).tables():
            yield frame_of([table], columns)

    @staticmethod
    def read_after(
        log_dir: str | Path,
        cursor: str = "",
        *,
        start: datetime | None = None,
        deployment: str | None = None,
        columns: Collection[str] | None = None,
        absent: bool = False,
        most: int = 100_000,
    ) -> "tuple[pd.DataFrame, str]":
        """The predictions that were not read with the cursors before, and the cursor for the next ones.

        Who stores the cursor with the result of its work sees each prediction exactly once, also across restarts, and
        while segments are rotated. An empty frame says that there are no more for now.

        Args:
            cursor: The cursor that the last call returned; empty to start with the first prediction.
            start: Time of the first prediction, to leave out those before; with the next cursors the same or later.
            absent: Leave out those of the `columns` that no row has, in place of an error.
            most: Rows after which the frame ends. One whose segment is rotated already may have 20,000 more.
        """
        from dagster_mlops.serving.runtime.log.frames import frame_of
        from dagster_mlops.serving.runtime.log.progress import Progress
        from dagster_mlops.serving.runtime.log.reading import Scan

        while True:
            scan = Scan(Path(log_dir), start, None, deployment, columns, most, Progress(cursor))
            tables, before = list(scan.tables()), cursor
            cursor = str(scan.progress)
            if tables or cursor == before:  # else all that was read is left out, and there may be more
                return frame_of(tables, columns, absent=absent), cursor

    @staticmethod
    def losses(log_dir: str | Path) -> list[dict[str, Any]]:
        """Predictions that were answered and not logged, as ``LogRules(refused="answer")`` allows, by writer and time.

        Each has ``rows``, ``since``, ``until``, ``reason`` and ``deployment``.
        """
        return losses(log_dir)

    @staticmethod
    def failures(log_dir: str | Path, start: datetime, end: datetime) -> list[Failure]:
        """Requests that were not answered with predictions from `start` to `end`, counted by the second.

        Those that no server got, such as while none ran, are not among them.
        """
        return failures(log_dir, start, end)

    @staticmethod
    def find(log_dir: str | Path, request_id: str) -> dict[str, Any] | None:
        """The whole record of one prediction, the latest if an id was used twice, or None."""
        from dagster_mlops.serving.runtime.log.finding import find

        return find(log_dir, request_id)
