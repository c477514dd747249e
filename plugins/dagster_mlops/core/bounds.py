"""Ranges in which a metric is acceptable: (least, greatest), with None for an open end."""

import math
from collections.abc import Mapping

import dagster as dg

_LARGEST = 1.797e308  # a little less than the largest float


def refuse_useless(bounds: Mapping[str, tuple[float | None, float | None]]) -> None:
    """Refuse bounds without effect.

    Raises:
        DagsterInvalidDefinitionError: no value could fail them, or none could pass.
    """
    for metric, (low, high) in bounds.items():
        if (low is None and high is None) or (low is not None and high is not None and low > high):
            raise dg.DagsterInvalidDefinitionError(
                f"bounds of {metric!r} are ({low}, {high}): no value could fail them, or none could pass. Give "
                "(least, greatest), with None for an open end."
            )


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
