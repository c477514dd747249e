"""Ranges in which a metric is acceptable, and arguments with which a check would say the same of everything."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg

Range = tuple[float | None, float | None]
"""The least and the greatest acceptable value, with None for an open end."""
_LARGEST = 1.797e308  # a little less than the largest float


def refuse_useless(what: str, faults: Mapping[str, bool]) -> None:
    """Refuse arguments with which a check could never fail, or never pass.

    Raises:
        DagsterInvalidDefinitionError: one of the `faults` (whether it is there, by its text) is there.
    """
    if wrong := [fault for fault, is_wrong in faults.items() if is_wrong]:
        raise dg.DagsterInvalidDefinitionError(f"{what}: {'; '.join(wrong)}.")


def ranges(what: str, bounds: Mapping[str, Any], greater_is_better: Callable[[str], bool | None]) -> dict[str, Range]:
    """The bounds of metrics as ranges; a number alone is the end on which a value would be worse.

    >>> ranges("checks", {"auc": 0.7, "rmse": (None, 2.5)}, lambda metric: metric != "rmse")
    {'auc': (0.7, None), 'rmse': (None, 2.5)}

    Raises:
        DagsterInvalidDefinitionError: a bound is malformed, no value could fail it, or none could pass.
    """
    result: dict[str, Range] = {}
    for metric, bound in bounds.items():
        pair: Any = bound
        if _is_number(bound):
            better = greater_is_better(metric)
            pair = None if better is None else (bound, None) if better else (None, bound)
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(map(_is_end, pair)):
            raise dg.DagsterInvalidDefinitionError(
                f"{what}: the bounds of {metric!r} are {bound!r}. Give (least, greatest), with None for an open end."
            )
        low, high = pair
        refuse_useless(
            what,
            {
                f"the bounds of {metric!r} are ({low}, {high}): no value could fail them, or none could pass. Give "
                "(least, greatest), with None for an open end": low is high is None
                or (low is not None and high is not None and low > high)
            },
        )
        result[metric] = (low, high)
    return result


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _is_end(value: Any) -> bool:
    return value is None or _is_number(value)


def as_logged(value: float) -> float:
    """A metric as it was logged: infinity comes back from a SQL store of MLflow as the largest number.

    https://github.com/mlflow/mlflow/issues/1573

    >>> as_logged(1.7976931348623157e308), as_logged(-1.7976931348623157e308), as_logged(0.7)
    (inf, -inf, 0.7)
    """
    return math.copysign(math.inf, value) if abs(value) >= _LARGEST else value


def within(low: float | None, high: float | None) -> str:
    """A range in words.

    >>> within(0.7, None), within(0, 1)
    ('at least 0.7', 'between 0 and 1')
    """
    if low is None:
        return f"at most {high:g}"
    return f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"
