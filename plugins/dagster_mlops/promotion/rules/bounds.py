"""Bounds on a metric of the candidate, whatever the champion has."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from dagster_mlops.core.bounds import refuse_useless
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.promotion.case import Case
from dagster_mlops.promotion.rules.options import is_finite, option, refuse_no_metric
from dagster_mlops.promotion.verdict import Row


@lazy_dataclass(frozen=True, kw_only=True)
class AtLeast:
    """A metric is at least a limit.

    >>> AtLeast(metric="auc", limit=0.7).name
    'auc at least 0.7'
    """

    metric: str = option("Metric: of the evaluation, where the promotion has one, else of the training run.")
    limit: float = option("Smallest acceptable value.")
    of_run: bool = option("Take the metric that the training run has logged, in any case.", default=False)

    def __post_init__(self) -> None:
        _refuse(self, self.metric, self.limit)

    @property
    def name(self) -> str:
        return f"{self.metric} at least {self.limit:g}"

    def judge(self, case: Case) -> Sequence[Row]:
        """The candidate's value beside the limit, and the champion's."""
        return [_row(self, case, sign=1)]


@lazy_dataclass(frozen=True, kw_only=True)
class AtMost:
    """A metric, such as a loss or a time, is at most a limit.

    >>> AtMost(metric="log_loss", limit=0.5).name
    'log_loss at most 0.5'
    """

    metric: str = option("Metric: of the evaluation, where the promotion has one, else of the training run.")
    limit: float = option("Greatest acceptable value.")
    of_run: bool = option("Take the metric that the training run has logged, in any case.", default=False)

    def __post_init__(self) -> None:
        _refuse(self, self.metric, self.limit)

    @property
    def name(self) -> str:
        return f"{self.metric} at most {self.limit:g}"

    def judge(self, case: Case) -> Sequence[Row]:
        """The candidate's value beside the limit, and the champion's."""
        return [_row(self, case, sign=-1)]


def _refuse(rule: object, metric: str, limit: Any) -> None:
    what = type(rule).__name__
    refuse_no_metric(what, metric)
    refuse_useless(what, {f"limit={limit!r} is not a finite number, such as 0.7": not is_finite(limit)})


def _row(rule: AtLeast | AtMost, case: Case, *, sign: int) -> Row:
    if rule.of_run:
        case = dataclasses.replace(case, evaluation=None)
    value, limit = case.metric(rule.metric), rule.limit
    holds = sign * (value - limit) >= 0
    why = f"{value:.6g} is {'' if holds else 'not '}{'at least' if sign > 0 else 'at most'} {limit:.6g}"
    return Row.of(rule.name, holds, why, candidate=value, champion=case.champion_value(rule.metric), limit=limit)
