"""Rows of a prediction log that a reader has taken over, kept with the cursor up to which it has read."""

import hashlib
import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster_mlops.core.arrays import pd
from dagster_mlops.core.files import exclusive, write_atomically
from dagster_mlops.errors import PredictionError
from dagster_mlops.serving.runtime import PredictionLog
from dagster_mlops.serving.runtime.log.frames import frame_of
from dagster_mlops.serving.runtime.log.progress import Progress
from dagster_mlops.serving.runtime.log.reading import Scan
from dagster_mlops.serving.runtime.log.row_tables import compute, merged, metadata, with_forms

if TYPE_CHECKING:
    import pyarrow as pa

_MOST = 100_000  # rows of one step along the log
_WAIT = 3600.0  # seconds for another run


class LoggedRows:
    """The rows of a log so far, each once: what was read before, from a file, and what was logged since.

    The file holds rows and cursor, and is replaced as a whole, so that a kill leaves those of before or those of after.
    With other options, it begins anew.
    """

    def __init__(
        self,
        log: Path,
        folder: Path,
        *,
        deployment: str | None = None,
        columns: Sequence[str] | None = None,
        keep: timedelta | None = None,
    ) -> None:
        self._log, self._file, self._keep = log, folder / "predictions.parquet", keep
        self._deployment, self._columns = deployment, columns
        options = json.dumps([str(log), deployment, columns])
        self._options = hashlib.sha256(options.encode()).hexdigest()

    def read(self) -> "tuple[pd.DataFrame, int]":
        """All rows as :meth:`PredictionLog.read` gives them, and how many of them are new.

        Raises:
            PredictionError: another run is at it for an hour, or no row has one of the columns.
        """
        with exclusive(self._file.with_suffix(".lock"), _WAIT, error=PredictionError):
            before, cursor = self._before()
            tables, cursor_after = self._since(cursor)
            count = sum(map(len, tables))
            tables = [*before, *tables]
            if self._keep:
                first = datetime.now(UTC) - self._keep
                pc = compute()
                tables = [each.filter(pc.greater_equal(each["timestamp"], first)) for each in tables]
                tables = [each for each in tables if len(each)]
            if cursor_after != cursor:
                self._write(tables, cursor_after)
        try:
            return frame_of(tables, self._columns), count
        except ValueError as error:
            raise PredictionError(f"{self._log}: {error}") from None

    def _since(self, cursor: str) -> "tuple[list[pa.Table], str]":
        tables: list[Any] = []
        while True:
            scan = Scan(self._log, None, None, self._deployment, self._columns, _MOST, Progress(cursor))
            tables.extend(scan.tables())
            if str(scan.progress) == cursor:
                return tables, cursor
            cursor = str(scan.progress)

    def _before(self) -> "tuple[list[pa.Table], str]":
        import pyarrow.parquet as pq

        if not self._file.exists():
            return [], ""
        stored = pq.read_table(io.BytesIO(self._file.read_bytes()))
        facts = metadata(stored)
        if facts.get("options") != self._options:
            return [], ""
        return [stored] if len(stored) else [], facts["cursor"]

    def _write(self, tables: "Sequence[pa.Table]", cursor: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        union = merged(tables) if tables else pa.table({})
        union = with_forms(union, metadata(union)["forms"], cursor=cursor, options=self._options)
        content = io.BytesIO()
        pq.write_table(union, content, compression="zstd")
        write_atomically(self._file, content.getvalue(), private=True, durable=True)


def losses_in(log: Path, start: datetime | None, end: datetime | None, deployment: str | None) -> list[dict[str, Any]]:
    """The losses of a log that reach into a time window."""

    def is_inside(entry: dict[str, Any]) -> bool:
        since, until = (datetime.fromisoformat(str(entry[name])) for name in ("since", "until"))
        return not ((start and until < start) or (end and since >= end)) and deployment in (None, entry["deployment"])

    return [entry for entry in PredictionLog.losses(log) if is_inside(entry)]
