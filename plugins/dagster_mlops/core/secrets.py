"""Register of the credentials that this process has used, by their value: tools quote them in any form."""

import json
import re
from collections.abc import Iterable
from html import escape
from itertools import pairwise
from urllib.parse import quote, quote_plus

MASK = "***"
_SHORTEST = 6  # characters
_WORD = re.compile(r"[a-z]{1,10}|[A-Z]{1,10}|[A-Z][a-z]{1,9}|\d{1,9}|(?:/[a-z0-9._-]+)+/?")
_GENERATED = re.compile(r"(?!/)[A-Za-z0-9+/=_~.\-]{16,200}")
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


def is_generated(value: str) -> bool:
    """True for a value that looks like a generated key: small and capital letters and digits in no order.

    Names, places, versions, hashes and identifiers have long runs of one kind of character, or no capitals.

    >>> is_generated("wJalrXUtnFEMI0K7MDENGbPxRfiCY")
    True
    >>> is_generated("TrainingPipelineV2East") or is_generated("9f86d081884c7d659a2feaa0c55ad015")
    False
    """
    if not _GENERATED.fullmatch(value):
        return False
    kinds = ["A" if letter.isupper() else "a" if letter.islower() else "0" for letter in value if letter.isalnum()]
    changes = sum(first != second for first, second in pairwise(kinds))
    return {*kinds} == {"A", "a", "0"} and changes >= len(kinds) / 2


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
