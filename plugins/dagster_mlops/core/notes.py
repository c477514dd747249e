"""Tags and notes that other people may have written: one that cannot be read stops nothing."""

from collections.abc import Callable
from typing import TypeVar

import dagster as dg

from dagster_mlops.provenance import mask_credentials

_T = TypeVar("_T")


def read_note(text: str | None, read: Callable[[str], _T], *, of: str, default: _T) -> _T:
    """The result of `read` for a tag or note; `default` without one, and with a warning for one that cannot be read.

    Whoever may write tags could else stop every later run with one wrong character.

    >>> import json
    >>> read_note("[1, 2]", json.loads, of="tag moves of run 7", default=[])
    [1, 2]
    """
    if not text:
        return default
    try:
        return read(text)
    except Exception as error:  # noqa: BLE001 - whatever text someone wrote, such as a number that no int holds
        why = f"{type(error).__name__}: {mask_credentials(str(error))[:200]}"
        dg.get_dagster_logger().warning(f"The {of} cannot be read and counts as missing: {why}. Someone changed it.")
        return default
