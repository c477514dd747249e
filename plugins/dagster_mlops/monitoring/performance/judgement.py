"""Metrics held against bounds and against a reference: worse, and by more than chance explains, is an alarm."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from dagster_mlops.core.arrays import np
from dagster_mlops.core.bounds import Range, within
from dagster_mlops.core.check_states import State
from dagster_mlops.core.extras import extra
from dagster_mlops.monitoring.performance.metrics import (
    Array,
    Metric,
    Spread,
    spread_between,
    spread_within,
)

Pair = tuple[Array, Array]
"""Labels and predictions."""


class Line(NamedTuple):
    """One metric of one part of the rows, and its verdict in words."""

    metric: str
    value: float
    error: float
    expected: float | None
    limit: str
    state: State
    text: str = ""
    segment: str = ""

    def row(self) -> dict[str, Any]:
        """The line of a table."""
        return {
            "segment": self.segment,
            "metric": self.metric,
            "value": self.value,
            "standard error": self.error,
            "expected": "" if self.expected is None else f"{self.expected:.4f}",
            "limit": self.limit,
            "verdict": self.state,
        }

    def sentence(self) -> str:
        """The verdict with the part of the rows that it is about."""
        return f"{self.segment}: {self.text}" if self.segment else self.text


class Terms(NamedTuple):
    """The terms that metrics are judged on. `greater` are the metrics of which more is better."""

    metrics: Mapping[str, Metric]
    greater: frozenset[str]
    bounds: Mapping[str, Range]
    max_drop: float
    false_alarm_rate: float


def judge(current: Pair, reference: Pair | None, terms: Terms, *, questions: int, segment: str = "") -> list[Line]:
    """A line for each metric.

    An alarm is a metric that is out of its bounds, or worse than in the reference by more than `max_drop` relatively,
    and so by more than chance explains: the false alarm rate is shared among all `questions` (C. Bonferroni, 1936).

    With a reference of at least three windows as long as the current one, chance is the larger of two errors: within
    the current rows (block jackknife), and from one window of the reference to the next: a prediction interval
    (G. Hahn and W. Meeker, Statistical Intervals, 1991). So a reference in order of time knows how good and bad hours
    alternate; one of rows drawn at random does not.
    """
    return [
        _line(name, current, reference, terms, terms.false_alarm_rate / questions, segment) for name in terms.metrics
    ]


def _line(name: str, current: Pair, reference: Pair | None, terms: Terms, rate: float, segment: str) -> Line:
    metric, greater = terms.metrics[name], name in terms.greater
    spread = spread_within(metric, *current)
    low, high = terms.bounds.get(name, (None, None))
    expected = None
    chance = _quantile(rate, spread.freedom) * spread.error
    if reference is not None:
        expected, chance = _against(metric, greater, spread, reference, len(current[0]), rate)
    drop = None if expected is None else terms.max_drop * abs(expected)
    limits = [within(low, high)] if name in terms.bounds else []
    if expected is not None and drop is not None:
        limits.append(within(expected - drop, None) if greater else within(None, expected + drop))
    line = Line(name, spread.value, spread.error, expected, ", ".join(limits), "ok", segment=segment)
    if not limits:
        return line
    if not math.isfinite(spread.value) or (expected is not None and not math.isfinite(expected)):
        return line._replace(state="undecided", text=f"{name} cannot be computed")
    beyond = [low - spread.value if low is not None else 0.0, spread.value - high if high is not None else 0.0]
    worse = 0.0 if expected is None else (expected - spread.value) * (1 if greater else -1)
    is_drop = drop is not None and worse > drop
    if not is_drop and max(beyond) <= 0:
        return line
    text = f"{name} is {spread.value:.4f}, {line.limit} was expected"
    if not math.isfinite(chance):
        return line._replace(state="undecided", text=f"{text}; its error cannot be computed")
    if (is_drop and worse > chance) or max(beyond) > chance:
        return line._replace(state="detected", text=text)
    return line._replace(state="undecided", text=f"{text}; chance alone moves it by {chance:.4f}")


def _against(
    metric: Metric, greater: bool, spread: Spread, reference: Pair, rows: int, rate: float
) -> tuple[float, float]:
    """The metric that the reference lets expect of as many rows, and how far chance takes it from there.

    Metrics of bad hours have heavier tails than Student's t: the bad windows of the reference itself are chance, too.
    """
    between = spread_between(metric, *reference, rows)
    if between is None:
        overall = spread_within(metric, *reference)
        freedom = min(spread.freedom, overall.freedom)
        return overall.value, _quantile(rate, freedom) * math.hypot(spread.error, overall.error)
    error = max(between.error, spread.error if math.isfinite(spread.error) else 0.0)
    freedom = min(between.freedom, spread.freedom)
    worse = (np.array(between.windows) - between.value) * (-1 if greater else 1)
    bad = float(np.quantile(worse, 1 - rate, method="higher"))
    return between.value, max(bad, _quantile(rate, freedom) * error * math.sqrt(1 + 1 / (between.freedom + 1)))


def _quantile(rate: float, freedom: int) -> float:
    """The one-sided quantile of Student's t."""
    stats: Any = extra("scipy.stats")
    return float(stats.t.isf(rate, max(freedom, 1)))
