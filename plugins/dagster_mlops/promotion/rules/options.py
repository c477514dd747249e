"""Options of rules: fields that describe themselves, and values with which no candidate could ever win."""

import dataclasses
import math
from datetime import timedelta
from typing import Any

from dagster_mlops.core.bounds import refuse_useless

DESCRIPTION = "description"


def option(description: str, **default: Any) -> Any:
    """A field of a rule, with its description for YAML; `default` as :func:`dataclasses.field` takes it."""
    return dataclasses.field(metadata={DESCRIPTION: description}, **default)


def is_finite(value: Any) -> bool:
    """True for a number that is neither NaN nor infinite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def refuse_no_metric(what: str, metric: Any) -> None:
    """Refuse a metric without a name."""
    refuse_useless(
        what, {f"metric={metric!r} is not a name, such as 'auc'": not isinstance(metric, str) or not metric.strip()}
    )


def refuse_age(what: str, argument: str, age: Any) -> None:
    """Refuse an age that is not a time, or that nothing is younger than."""
    wrong = not isinstance(age, timedelta) or age <= timedelta(0)
    refuse_useless(what, {f"{argument}={age!r} is not a time above 0, such as timedelta(days=7)": wrong})
