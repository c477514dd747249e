"""Register of the credentials that this process has used, by their value: tools quote them in any form."""

import json
import re
from collections.abc import Iterable
from html import escape
from urllib.parse import quote, quote_plus

MASK = "***"
_SHORTEST = 6  # characters
_WORD = re.compile(r"[a-z]{1,10}|[A-Z]{1,10}|[A-Z][a-z]{1,9}|\d{1,9}|(?:/[a-z0-9._-]+)+/?")
_values: tuple[str, ...] = ()


def remember(values: Iterable[str]) -> None:
    """Replace these values in every text from now on.

    Short ones, plain words, numbers and paths are left out: ``postgresql://mlflow:mlflow@db`` must not blank the name
    of MLflow in all messages.
    """
    global _values
    new = {value for value in values if len(value) >= _SHORTEST and not _WORD.fullmatch(value) and MASK not in value}
    if not new <= set(_values):
        spelled = {form for value in new for form in _spellings(value)}
        _values = tuple(sorted({*_values, *spelled}, key=lambda value: (-len(value), value)))


def _spellings(value: str) -> tuple[str, ...]:
    """The value as URLs, SQLAlchemy, forms, JSON and HTML spell it."""
    encoded = (quote(value, safe=""), quote(value), quote(value, safe=" +"), quote_plus(value))
    return value, *encoded, json.dumps(value)[1:-1], escape(value)


def without_secrets(text: str) -> str:
    """The text with ``***`` in place of each value."""
    for value in _values:
        if value in text:
            text = text.replace(value, MASK)
    return text
