"""Tables for people, who open them in a spreadsheet: a text in a cell is data there, too, and never a formula."""

import csv
import io
import re
from collections.abc import Mapping, Sequence

# Also the wide signs, which Excel takes for the others.
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*(?:e[+-]?\d+)?|nan|inf)", re.IGNORECASE)


def csv_text(rows: Sequence[Mapping[str, object]]) -> str:
    r"""Rows as CSV. A text that a spreadsheet would take for a formula begins with an apostrophe.

    >>> csv_text([{"slice": "=HYPERLINK(1)", "value": "-0.5"}])
    '"slice","value"\r\n"\'=HYPERLINK(1)","-0.5"\r\n'
    """
    file = io.StringIO()
    # In quotes, a text stays one cell where a semicolon or a tab separates cells, as in most of Europe.
    csv.writer(file, quoting=csv.QUOTE_ALL).writerows(
        [list(map(_cell, rows[0])), *(map(_cell, row.values()) for row in rows)]
    )
    return file.getvalue()


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text
