"""Segments of a prediction log: files of JSON lines, each written by one process until it is full or the day ends.

The first line of a segment says what all its rows share; after a write that the disk refused it stands there again.
Files of earlier versions have no such line: their rows are whole records, and stay readable.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

from dagster_mlops.serving.runtime.log.row_json import decode, encode

_HEADER = b'{"kind":"prediction_log",'
_ROW = b'{"timestamp":'  # by orjson; what Python's json has written begins with a space
_LOCKED = re.compile(r"\d{4}-\d\d-\d\d-\d+-[0-9a-f]{8}-\d+\.jsonl")

_logger = logging.getLogger(__name__)


class Line(NamedTuple):
    """A row of a segment, the bytes where it begins and ends, and what all rows of the segment share."""

    position: int
    end: int
    shared: Mapping[str, Any]
    row: Mapping[str, Any]

    @property
    def record(self) -> dict[str, Any]:
        """The whole record of the prediction."""
        return {**self.shared, **self.row}


def header(facts: Mapping[str, Any]) -> bytes:
    """The line that says what the rows after it share."""
    return encode({"kind": "prediction_log", **facts}) + b"\n"


def row_start(facts: Mapping[str, Any]) -> bytes:
    """The beginning of the lines of one call: the facts that its rows share, with ``timestamp`` first."""
    return encode(facts)[:-1] + b","


def row_line(start: bytes, facts: Mapping[str, Any]) -> bytes:
    """The line of one row, without its end.

    >>> row_line(row_start({"timestamp": "2026-01-31"}), {"request_id": "a"})
    b'{"timestamp":"2026-01-31","request_id":"a"}'
    """
    text = encode(facts)
    return start + text[1:] if text.startswith(b"{") else b" " + start + text[2:]


def is_locked_by_its_writer(name: str) -> bool:
    """True for a segment that its writer locks while it lives. Files of earlier versions have no lock."""
    return _LOCKED.fullmatch(name) is not None


def lines(file: BinaryIO, start: int = 0) -> Iterator[Line]:
    """The rows of a segment from the byte `start`, where a line begins.

    A line that a killed worker or a full disk has torn is left out, and so is the last one until it is whole.
    """
    shared = first_header(file) if start else {}
    file.seek(start)
    end = start
    for line in file:
        position, end = end, end + len(line)
        if not line.endswith(b"\n"):
            return
        row = parse(line)
        if row is None:
            _logger.warning("%s: the line at byte %d is damaged and was skipped", file.name, position)
        elif row.get("kind") == "prediction_log":
            shared = {**row, "kind": "prediction"}
        else:
            yield Line(position, end, shared, row)


def first_header(file: BinaryIO) -> dict[str, Any]:
    """The facts that the rows of a segment share; empty for a file of an earlier version."""
    file.seek(0)
    for line in file:
        if line.startswith(_HEADER) and (row := parse(line)):
            return {**row, "kind": "prediction"}
        if not line.startswith(b"{") or b'"kind":"prediction"' in line:
            break
    return {}


def parse(line: bytes) -> dict[str, Any] | None:
    """A line as a dictionary; None for one that is damaged."""
    try:
        # Python's json for what earlier versions have written, as orjson rounds integers beyond 64 bits.
        row = decode(line) if line.startswith((_ROW, _HEADER)) else json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
