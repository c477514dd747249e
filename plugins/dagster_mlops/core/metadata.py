"""Dagster metadata as it is shown on an asset's page: tables, links and short texts."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import dagster as dg

# Dagster's own keys: its UI shows them beside the asset's columns and plots them over time.
ROW_COUNT = "dagster/row_count"
COLUMN_SCHEMA = "dagster/column_schema"
DATA_VERSION = "dagster/data_version"  # a tag of its events
_TYPES: dict[Any, str] = {str: "string", int: "int"}  # of columns, by that of a field


def about(description: str) -> Any:
    """A field of a dataclass whose objects are rows of a :func:`table`, with the description of its column."""
    return dataclasses.field(metadata={"description": description})


def table(key: str, rows: Iterable[Any], *, schema: dg.TableSchema | None = None) -> dict[str, dg.TableMetadataValue]:
    """A table under `key`; nothing if it has no rows. Values that a table cannot hold become text.

    A row is a mapping, or an object of a dataclass, whose fields then are the columns.

    >>> table("mlflow/params", [{"param": "rates", "value": [1, 2]}])["mlflow/params"].records[0].data
    {'param': 'rates', 'value': '[1, 2]'}
    >>> table("mlflow/params", [])
    {}
    """
    rows = list(rows)
    if rows and dataclasses.is_dataclass(rows[0]):
        fields, rows = dataclasses.fields(rows[0]), list(map(vars, rows))
        columns = [dg.TableColumn(f.name, _TYPES.get(f.type, "float"), f.metadata.get("description")) for f in fields]
        schema = dg.TableSchema(columns)
    records = [dg.TableRecord({name: plain_value(value) for name, value in row.items()}) for row in rows]
    return {key: dg.MetadataValue.table(records, schema=schema)} if records else {}


def link(key: str, url: str | None) -> dict[str, dg.UrlMetadataValue]:
    """A link under `key`; nothing if the tool has no page on the web to link to."""
    return {key: dg.MetadataValue.url(url)} if url and url.startswith(("http://", "https://")) else {}


def shorten(text: str, length: int) -> str:
    """The first part of a text, with an ellipsis if something is left out.

    >>> shorten("a long story", 7)
    'a long…'
    """
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def plain_value(value: Any) -> str | int | float | bool | None:
    """The value, as text if the UI shows no values of its type."""
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
