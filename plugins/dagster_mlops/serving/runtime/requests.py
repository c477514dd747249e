"""Limits to what a client decides of the prediction log: the ids of its rows, and no names beside the features."""

import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

_ID = re.compile(r"[\x21-\x7e]{1,200}")


def checked_id(client_id: str | None) -> str:
    """The id that a client chose for its request, or a new UUID.

    >>> checked_id("r1")
    'r1'

    Raises:
        ValueError: A log line, a header or a reader would not have it as it is.
    """
    if not client_id:
        return str(uuid.uuid4())
    if not _ID.fullmatch(client_id):
        raise ValueError(f"request id {client_id[:80]!r} is not 1 to 200 printable ASCII characters without spaces.")
    return client_id


def ids_of_rows(request_id: str, rows: Sequence[Any], ids: Sequence[str] | None = None) -> list[str]:
    """An id for each row: those that the client chose, else that of the request, which several rows count from 0.

    >>> ids_of_rows("r1", [{}, {}])
    ['r1/0', 'r1/1']

    Raises:
        ValueError: There are no rows, another number of ids, or one that :func:`checked_id` refuses.
    """
    if not rows:
        raise ValueError("'rows' is empty; send at least one row of features.")
    row_ids = list(ids) if ids else [request_id] if len(rows) == 1 else [f"{request_id}/{n}" for n in range(len(rows))]
    if len(row_ids) != len(rows):
        raise ValueError(f"{len(row_ids)} ids for {len(rows)} rows; send one id per row, or none.")
    return [checked_id(row_id) for row_id in row_ids]


def features_only(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """The rows without what a client sent beside the features of the model."""
    return [{name: row[name] for name in names if name in row} for row in rows]
