"""Better than the champion: by an amount, or also beyond chance on the same rows."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from dagster_mlops.core.bounds import refuse_useless
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.promotion.case import Case
from dagster_mlops.promotion.error_budget import ErrorBudget, Look
from dagster_mlops.promotion.rules.options import is_finite, option, refuse_no_metric
from dagster_mlops.promotion.verdict import FAILS, HOLDS, Row

_ROUNDING = 1e-9  # 0.745 - 0.735 is a little less than 0.01


@lazy_dataclass(frozen=True, kw_only=True)
class Improvement:
    """A metric is better than the champion's, by an amount or a share of it if one is given; a tie never wins.

    >>> Improvement(metric="rmse", greater_is_better=False, relative=0.02).name
    'better rmse, by 2%'
    """

    metric: str = option("Metric: of the evaluation, where the promotion has one, else of the training run.")
    greater_is_better: bool = option("Set to false for errors and losses.", default=True)
    absolute: float | None = option("How much better, at least.", default=None)
    relative: float | None = option("How much better, as a share of the champion's value.", default=None)

    def __post_init__(self) -> None:
        refuse_no_metric("Improvement", self.metric)
        amounts = {"absolute": self.absolute, "relative": self.relative}
        two_amounts = self.absolute is not None and self.relative is not None
        refuse_useless(
            "Improvement",
            {
                "greater_is_better is True or False": self.greater_is_better not in (True, False),
                "give absolute or relative, not both (or two rules, which must both hold)": two_amounts,
                **{
                    f"{name}={amount!r} is not a finite number from 0 on": not is_finite(amount) or amount < 0
                    for name, amount in amounts.items()
                    if amount is not None
                },
            },
        )

    @property
    def name(self) -> str:
        amount = f"{100 * self.relative:g}%" if self.relative else f"{self.absolute:g}" if self.absolute else ""
        return f"better {self.metric}" + (f", by {amount}" if amount else "")

    def judge(self, case: Case) -> Sequence[Row]:
        """The values of both, and the improvement."""
        if case.evaluation is not None:
            case.same_rows().refuse_direction(self.metric, greater=self.greater_is_better)
        candidate, champion = case.metric(self.metric), case.champion_metric(self.metric)
        holds, why, limit = self.compare(candidate, champion)
        return [Row.of(self.name, holds, why, candidate=candidate, champion=champion, limit=limit)]

    def compare(self, candidate: float, champion: float | None) -> tuple[bool, str, float | None]:
        """True if the candidate wins, the reason, and the value from which it does, if an amount is asked for.

        >>> Improvement(metric="auc", absolute=0.01).compare(0.745, 0.74)
        (False, 'auc 0.745 against 0.74: improvement 0.005 is less than 0.01', 0.75)
        >>> Improvement(metric="rmse", greater_is_better=False).compare(1.5, 2.0)
        (True, 'rmse 1.5 against 2: improvement 0.5', None)
        """
        if champion is None:
            return True, f"{self.metric} {candidate:.6g}: no other version holds the alias", None
        sign = 1 if self.greater_is_better else -1
        improvement, compared = sign * (candidate - champion), f"{self.metric} {candidate:.6g} against {champion:.6g}"
        if self.relative and not champion:
            return False, f"{compared}: a share of 0 is 0. Use absolute= in place of relative=", None
        amount = self.absolute or (self.relative or 0) * abs(champion)
        limit = champion + sign * amount if amount else None
        if improvement <= 0:
            return False, f"{compared}: no improvement", limit
        if improvement < amount * (1 - _ROUNDING):
            return False, f"{compared}: improvement {improvement:.6g} is less than {amount:.6g}", limit
        return True, f"{compared}: improvement {improvement:.6g}", limit


@lazy_dataclass(frozen=True, kw_only=True)
class Better:
    """A metric is better than the champion's on the evaluation's rows, and the difference is not chance.

    Of `looks` candidates that are no better, one is promoted with a probability of `error_rate` at most: each is asked
    for a p-value of ``error_rate / looks``.
    """

    needs_evaluation: ClassVar[bool] = True

    metric: str = option("Metric of the evaluation.")
    greater_is_better: bool = option("Set to false for errors and losses.", default=True)
    min_improvement: float = option("How much better the candidate has to be, at least.", default=0.0)
    error_rate: float = option(
        "How often, of `looks` candidates that are no better, one may be promoted.", default=0.05
    )
    looks: int = option("How many candidates share the error rate, such as those of a year.", default=52)

    def __post_init__(self) -> None:
        refuse_no_metric("Better", self.metric)
        proper = is_finite(self.min_improvement) and self.min_improvement >= 0
        share = is_finite(self.error_rate) and 0 < self.error_rate < 1
        refuse_useless(
            "Better",
            {
                f"min_improvement={self.min_improvement!r} is not a finite number from 0 on": not proper,
                f"error_rate={self.error_rate!r} with looks={self.looks!r}: the rate is between 0 and 1, such as 0.05, "
                "and at least one candidate shares it. Without a test, use Improvement, or error_rate=None of the "
                "promotion": not share or not isinstance(self.looks, int) or self.looks < 1,
            },
        )

    @property
    def name(self) -> str:
        return f"{self.improvement.name}, beyond chance"

    @property
    def improvement(self) -> Improvement:
        """The rule without its test."""
        return Improvement(metric=self.metric, greater_is_better=self.greater_is_better, absolute=self.min_improvement)

    @property
    def budget(self) -> ErrorBudget:
        """The rate and the number of candidates that share it."""
        return ErrorBudget(self.error_rate, self.looks)

    def judge(self, case: Case) -> Sequence[Row]:
        """The values of both, the improvement, its p-value and the level that this must not exceed."""
        [row] = self.improvement.judge(case)
        if row.verdict != HOLDS or case.champion is None:
            return [dataclasses.replace(row, rule=self.name)]
        rows = case.same_rows()
        change = rows.difference(self.metric)
        look = Look(self.budget, rows.evaluation.rows_hash, case.candidate.version, case.judged)
        holds, tested = look.judge(change.p_value, change.test)
        verdict = HOLDS if holds else FAILS
        return [dataclasses.replace(row, rule=self.name, verdict=verdict, why=f"{row.why}; {tested}")]
