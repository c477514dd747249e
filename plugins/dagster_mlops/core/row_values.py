"""Values of rows in messages: they may be personal data, so that they are shown on request only."""

import os
from typing import Any

_VARIABLE = "DAGSTER_MLOPS_SHOW_ROWS"
HINT = f"Set {_VARIABLE}=1 to see values."


def are_shown() -> bool:
    """True if the environment asks for the values of rows in messages."""
    return os.environ.get(_VARIABLE, "") not in ("", "0", "false")


def if_shown(value: Any, instead: str = "") -> str:
    """The value in a message, or the text that says what it is.

    >>> if_shown({"age": 52}, "features age")
    'features age'
    """
    return str(value) if are_shown() else instead
