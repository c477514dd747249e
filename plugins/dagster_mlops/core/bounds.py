"""Ranges in which a metric is acceptable: (least, greatest), with None for an open end."""

from collections.abc import Mapping

import dagster as dg


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


def within(low: float | None, high: float | None) -> str:
    """A range in words.

    >>> within(0.7, None), within(0, 1)
    ('at least 0.7', 'between 0 and 1')
    """
    if low is None:
        return f"at most {high:g}"
    return f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"
