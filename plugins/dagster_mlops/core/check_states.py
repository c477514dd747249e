"""The outcome of a check that weighs evidence: ok, detected or undecided, as metadata that a machine can read."""

from typing import Any, Literal

import dagster as dg

State = Literal["ok", "detected", "undecided"]
_STATE, _REASON = "/state", "/reason"


def state_key(tool: str) -> str:
    """The name of the metadata that holds the outcome."""
    return f"{tool}{_STATE}"


def reason_key(tool: str) -> str:
    """The name of the metadata that holds the reason for it."""
    return f"{tool}{_REASON}"


def state_metadata(tool: str, state: State, reason: str = "") -> dict[str, Any]:
    """The outcome of a check under ``<tool>/state``, and the reason for it under ``<tool>/reason``.

    >>> state_metadata("evidently", "undecided", "40 rows are too few")
    {'evidently/state': 'undecided', 'evidently/reason': '40 rows are too few'}
    """
    return {state_key(tool): state, **({reason_key(tool): reason} if reason else {})}


def undecided_because(evaluation: dg.AssetCheckEvaluation) -> str | None:
    """The reason why an evaluation is undecided; None for one that has an answer.

    An undecided check passes, so that it stops nothing, and is not evidence that all is well.
    """
    for key, value in evaluation.metadata.items():
        if key.endswith(_STATE) and value.value == "undecided":
            reason = evaluation.metadata.get(f"{key.removesuffix(_STATE)}{_REASON}")
            return str(reason.value) if reason else evaluation.description or "too little to tell"
    return None
