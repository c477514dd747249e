"""Dagster metadata as it is shown on an asset's page: tables, links and short texts."""

from collections.abc import Iterable, Mapping
from typing import Any

import dagster as dg

# Dagster's own keys: its UI shows them beside the asset's columns and plots them over time.
ROW_COUNT = "dagster/row_count"
COLUMN_SCHEMA = "dagster/column_schema"


def table(
    key: str, rows: Iterable[Mapping[str, Any]], *, schema: dg.TableSchema | None = None
) -> dict[str, dg.TableMetadataValue]:
    """A table under `key`; nothing if it has no rows. Values that a table cannot hold become text.

    >>> table("mlflow/params", [{"param": "rates", "value": [1, 2]}])["mlflow/params"].records[0].data
    {'param': 'rates', 'value': '[1, 2]'}
    >>> table("mlflow/params", [])
    {}
    """
    records = [dg.TableRecord({name: _cell(value) for name, value in row.items()}) for row in rows]
    return {key: dg.MetadataValue.table(records, schema=schema)} if records else {}


def link(key: str, url: str | None) -> dict[str, dg.UrlMetadataValue]:
    """A link under `key`; nothing if the tool has no page to link to."""
    return {key: dg.MetadataValue.url(url)} if url else {}


def shorten(text: str, length: int) -> str:
    """The first part of a text, with an ellipsis if something is left out.

    >>> shorten("a long story", 7)
    'a long…'
    """
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def _cell(value: Any) -> str | int | float | bool | None:
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
