"""Values of rows in messages: they may be personal data, so that they are shown on request only."""

import os
from pathlib import Path
from traceback import extract_tb
from typing import Any

from dagster_mlops.provenance import mask_credentials

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


def refusal(error: Exception) -> str:
    """The reason for which a model takes no such rows. MLflow and pandas quote rows, so by default only its place."""
    [*_, last] = extract_tb(error.__traceback__) or [None]
    where = f" in {Path(last.filename).name}:{last.lineno}" if last else ""
    return f"{type(error).__name__}{if_shown(f': {mask_credentials(str(error))[:500]}', f'{where}. {HINT}')}"


def cause(error: Exception) -> Exception | None:
    """The error as the cause of another, whose traceback shows its text, too."""
    return error if are_shown() else None
