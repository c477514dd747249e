"""Not worse than the champion on any slice of the evaluation."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from dagster_mlops.core.bounds import refuse_useless
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.errors import EvaluationError
from dagster_mlops.promotion.case import Case
from dagster_mlops.promotion.rules.options import is_finite, option, refuse_no_metric
from dagster_mlops.promotion.verdict import Row

if TYPE_CHECKING:
    from dagster_mlops.evaluation.measure import Part

_MOST = 10  # slices that a reason names


@lazy_dataclass(frozen=True, kw_only=True)
class NotWorseOnSlices:
    """No slice of the evaluation shows that the candidate is worse than the champion.

    Each slice has a one-sided test on its rows. Holm's method (Scandinavian Journal of Statistics 6, 1979) adjusts the
    p-values, so that a candidate that is as good on all slices is refused with a probability of `error_rate` at most,
    however many slices there are and however they overlap. A loss that a slice has too few rows to show is not seen.
    """

    needs_evaluation: ClassVar[bool] = True

    metric: str = option("Metric of the evaluation.")
    error_rate: float = option("How often a candidate that is as good on every slice may be refused.", default=0.05)

    def __post_init__(self) -> None:
        refuse_no_metric("NotWorseOnSlices", self.metric)
        wrong = not is_finite(self.error_rate) or not 0 < self.error_rate < 1
        refuse_useless("NotWorseOnSlices", {f"error_rate={self.error_rate!r} is not between 0 and 1": wrong})

    @property
    def name(self) -> str:
        return f"{self.metric} not worse on any slice"

    def judge(self, case: Case) -> Sequence[Row]:
        """A row for all slices, and one for each that is worse."""
        if case.champion is None:
            return [Row.of(self.name, True, "no other version holds the alias")]
        rows = case.same_rows()
        rows.refuse_other(case.champion.version)
        rows.difference(self.metric)
        parts = rows.evaluation.slices
        if not parts:
            raise EvaluationError("the evaluation has no slices. Give it some: slices=['carrier', …].")
        values = {part.name: p for part in parts if (p := _p_value(part, self.metric)) is not None}
        left_out = [f"{part.name} ({_why_not(part, self.metric)})" for part in parts if part.name not in values]
        if not values:
            raise EvaluationError(
                f"none of {len(parts)} slices is tested: {_first(left_out)}. Evaluate on more rows, or choose another "
                "metric."
            )
        adjusted = holm(values)
        level = f"{self.error_rate:.2g} or less shows a loss (Holm, {len(values)} slices)"
        worse = [part for part in parts if adjusted.get(part.name, 1.0) <= self.error_rate]
        lowest = min(values, key=lambda name: values[name])
        size = next(part.rows for part in parts if part.name == lowest)
        summary = (
            f"{len(worse) or 'none'} of {len(values)} slices is worse; the lowest p = {values[lowest]:.2g}, adjusted "
            f"{adjusted[lowest]:.2g}, is that of {lowest} with {size} rows; {level}"
        )
        summary += f". Not tested: {_first(left_out)}" if left_out else ""
        return [
            Row.of(self.name, not worse, summary, limit=f"p above {self.error_rate:g}"),
            *(
                Row.of(
                    f"{self.metric} on {part.name}",
                    False,
                    f"p = {values[part.name]:.2g} ({part.differences[self.metric].test}), adjusted "
                    f"{adjusted[part.name]:.2g}, {part.rows} rows; {level}",
                    candidate=part.metrics[self.metric].value,
                    champion=part.rival[self.metric].value,
                )
                for part in worse
            ),
        ]


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values adjusted for their number, by Holm's method: those up to a level keep the rate of any false one.

    >>> holm({"a": 0.02, "b": 0.01, "c": 0.5})
    {'b': 0.03, 'a': 0.04, 'c': 0.5}
    """
    adjusted, highest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return adjusted


def _p_value(part: "Part", metric: str) -> float | None:
    """The p-value of a loss on a slice; None where it has too few rows for a test.

    Raises:
        EvaluationError: It has enough rows, and still no p-value.
    """
    if part.why_not:
        return None
    change = part.differences.get(metric)
    if change is None:
        raise EvaluationError(f"on {part.name}, {metric} is not finite for both versions. Choose another metric.")
    if change.p_worse is None and change.p_value is None:
        return None
    if change.p_worse is None:
        raise EvaluationError(f"on {part.name}, the p-value of a loss of {metric} is missing. Evaluate again.")
    return change.p_worse


def _why_not(part: "Part", metric: str) -> str:
    return part.why_not or part.differences[metric].test


def _first(texts: Sequence[str]) -> str:
    more = len(texts) - _MOST
    return "; ".join(texts[:_MOST]) + (f"; and {more} more" if more > 0 else "")
