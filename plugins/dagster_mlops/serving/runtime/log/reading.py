"""Readers of a prediction log by time, and on from where an earlier reader ended. They hold a part of it in memory."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster_mlops.serving.runtime.log.folder import Part, RotatedFile, listing
from dagster_mlops.serving.runtime.log.progress import Progress
from dagster_mlops.serving.runtime.log.row_tables import INPUT, compute, metadata, table_of, with_forms
from dagster_mlops.serving.runtime.log.segments import lines

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK = 20_000  # rows in memory at once
_FIXED = ("request_id", "timestamp", "rest")


@dataclass
class Scan:
    """A pass over the rows of a log, each once, although its files are rotated meanwhile.

    Only the `columns` are read, beside those by which rows are chosen and ordered. With `most`, the pass ends with the
    part of a segment in which it has had as many rows.
    """

    log_dir: Path
    start: datetime | None = None
    end: datetime | None = None
    deployment: str | None = None
    columns: Collection[str] | None = None
    most: int | None = None
    progress: Progress = field(default_factory=Progress)

    def tables(self) -> Iterator["pa.Table"]:
        """The rows, :data:`CHUNK` at most in each table."""
        self._left: float = float("inf") if self.most is None else self.most
        while True:
            with suppress(FileNotFoundError):  # a rotation has replaced what was to be read next
                yield from self._listed()
                return

    def _listed(self) -> Iterator["pa.Table"]:
        folder = listing(self.log_dir, self._days())
        for file in folder.rotated:
            if self._left > 0 and self._has_time(file):
                yield from self._of_file(file)
        for name, rotated in folder.segments.items():
            if self._left > 0:
                yield from self._of_segment(name, rotated)
        if self.start and not self.end:
            self.progress.forget_before(self._days()[0])
        elif self._left > 0 and not self.end:
            self.progress.keep({*folder.segments, *(part.segment for file in folder.rotated for part in file.parts)})

    def _days(self) -> tuple[str, str]:
        first = self.start.astimezone(UTC) if self.start else None
        # A segment of one day may have a row of the day before: the time of a request is taken before it is written.
        last = self.end.astimezone(UTC) + timedelta(days=1) if self.end else None
        return (f"{first:%Y-%m-%d}" if first else "", f"{last:%Y-%m-%d}" if last else "")

    def _has_time(self, file: RotatedFile) -> bool:
        first, last = (
            at.astimezone(UTC).isoformat(timespec="microseconds") if at else "" for at in (self.start, self.end)
        )
        return not ((first and file.last < first) or (last and file.first >= last))

    def _of_file(self, file: RotatedFile) -> Iterator["pa.Table"]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        parts: list[Part] = []
        for part in sorted(file.parts):
            if self._left > 0 and not self.progress.covers(part.segment, part.start, part.end):
                parts.append(part)
                self._left -= part.rows
        if not parts:
            return
        read = [(part, self.progress.within(part.segment, part.start, part.end)) for part in parts]
        is_whole = len(parts) == len(file.parts) and not any(ranges for _, ranges in read)
        with file.path.open("rb") as source, pq.ParquetFile(source) as content:
            columns = self._names(content.schema_arrow.names, [] if is_whole else ["segment", "position"])
            forms = metadata(content.schema_arrow)["forms"]
            for batch in content.iter_batches(CHUNK, columns=columns):
                table = with_forms(pa.Table.from_batches([batch]), forms)
                yield from self._chosen(table if is_whole else table.filter(_mask(table, read)))
        for part in parts:
            self.progress.add(part.segment, part.start, part.end)

    def _of_segment(self, name: str, rotated: int) -> Iterator["pa.Table"]:
        with Path(self.log_dir, name).open("rb") as file:
            start = self.progress.next(name, rotated)
            rows = lines(file, start)
            while self._left > 0 and (chunk := list(islice(rows, int(min(CHUNK, self._left))))):
                self._left -= len(chunk)
                yield from self._chosen(table_of(name, chunk, self._features()))
                self.progress.add(name, start, chunk[-1].end)
                start = chunk[-1].end

    def _names(self, stored: Sequence[str], more: Sequence[str]) -> list[str]:
        if self.columns is None:
            return list(stored)
        selection = {*_FIXED, *more, *self.columns, *(f"{INPUT}{name}" for name in self.columns)}
        return [name for name in stored if name in selection or (name == "deployment" and self.deployment is not None)]

    def _features(self) -> frozenset[str] | None:
        return None if self.columns is None else frozenset(self.columns)

    def _chosen(self, table: "pa.Table") -> Iterator["pa.Table"]:
        pc = compute()
        for test, bound in ((pc.greater_equal, self.start), (pc.less, self.end)):
            if bound:
                table = table.filter(test(table["timestamp"], bound.astimezone(UTC)))
        if self.deployment is not None:
            table = table.filter(pc.equal(table["deployment"], self.deployment))
        if len(table):
            yield table.select(self._names(table.column_names, []))


def _mask(table: "pa.Table", parts: Sequence[tuple[Part, list[tuple[int, int]]]]) -> Any:
    """True for the rows of the parts, without those in the ranges that were read before."""
    pc = compute()

    def between(segment: str, start: int, end: int) -> Any:
        inside = pc.and_(pc.greater_equal(table["position"], start), pc.less(table["position"], end))
        return pc.and_(pc.equal(table["segment"], segment), inside)

    mask = pc.less(table["position"], -1)
    for part, ranges in parts:
        mask = pc.or_(mask, between(part.segment, part.start, part.end))
        for start, end in ranges:
            mask = pc.and_not(mask, between(part.segment, start, end))
    return mask
