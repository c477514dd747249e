"""Values as JSON: by orjson what it writes as it is, by Python the rest, and an error for what JSON cannot say."""

import json
import math
import uuid
from collections.abc import Mapping
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any


def encode(value: Any) -> bytes:
    """The value as one line of JSON.

    NaN, infinities, integers beyond 64 bits and halves of surrogate pairs, which orjson changes or refuses, are written
    as Python's json writes them, after a space, by which :func:`decode` knows them. Times become ISO 8601; decimals,
    UUIDs and paths text; enums their value; numpy's scalars and arrays plain numbers and lists; NaT and pandas.NA null.

    >>> encode({"at": date(2026, 1, 31), "share": Decimal("0.10"), "none": None})
    b'{"at":"2026-01-31","share":"0.10","none":null}'
    >>> encode([2**70, math.inf])
    b' [1180591620717411303424,Infinity]'

    Raises:
        TypeError: JSON has no form for it, such as bytes.
    """
    import orjson

    try:
        text = orjson.dumps(value, _plain, orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS)
    except TypeError:
        return _by_python(value)
    return text if b"null" not in text or _is_finite(value) else _by_python(value)


def decode(text: bytes | str) -> Any:
    """The value that :func:`encode` wrote."""
    import orjson

    return json.loads(text) if text[:1] in (" ", b" ") else orjson.loads(text)


def _by_python(value: Any) -> bytes:
    return b" " + json.dumps(value, separators=(",", ":"), default=_plain).encode()


def _is_finite(value: Any) -> bool:
    """False where orjson has written null for a number that is not finite."""
    if isinstance(value, float):
        return math.isfinite(value)
    if value is None or isinstance(value, str | int):
        return True
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return isinstance(value, uuid.UUID | Enum) or _is_finite(_plain(value))


def _plain(value: Any) -> Any:
    """The plain form of a value that JSON does not have."""
    if isinstance(value, datetime | date | time):
        return value.isoformat() if value == value else None  # not so NaT
    if isinstance(value, Decimal | uuid.UUID | PurePath):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return dict(value)
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind and kind in "biufUO":  # numpy, which is not imported for this
        plain = value.tolist()
        if type(plain) is not type(value):  # as of numpy.longdouble, which Python has no number for
            return plain
    if kind == "M":
        text = value.astype(str).tolist()
        return None if text == "NaT" else text
    if type(value).__name__ == "NAType":  # pandas.NA
        return None
    raise TypeError(f"JSON has no form for a value of type {type(value).__name__}; log a number, text, list or dict.")
