"""The evidence that promotion takes from an evaluation: both versions on the same rows."""

from dataclasses import dataclass
from typing import Any

import dagster as dg

from dagster_mlops.core.asset_records import partitions_read
from dagster_mlops.errors import EvaluationError
from dagster_mlops.evaluation.measure import Evaluation
from dagster_mlops.evaluation.metrics import greater_is_better
from dagster_mlops.evaluation.ui_metadata import latest_evaluation
from dagster_mlops.provenance import ModelVersion


@dataclass(frozen=True)
class SameRows:
    """An evaluation of the candidate, to decide by `metric`; `min_wins` is the share of resamples it has to win.

    `partition` is that of the evaluation, where it has partitions.
    """

    evaluation: Evaluation
    metric: str
    min_wins: float = 0.0
    partition: str = ""

    def candidate(self) -> float:
        """The candidate's metric.

        Raises:
            EvaluationError: it was not measured.
        """
        found = self.evaluation.whole.metrics.get(self.metric)
        if found is None:
            known = ", ".join(self.evaluation.whole.metrics) or f"none: {self.evaluation.whole.why_not}"
            raise EvaluationError(
                f"the evaluation of version {self.evaluation.version} of {self.evaluation.model!r} has no "
                f"{self.metric!r}; it has {known}. Promote on a metric that is there."
            )
        return found.value

    def holder(self, version: str) -> float:
        """The metric of the version that holds the alias, on the same rows.

        Raises:
            EvaluationError: the evaluation was about another one, or could not score it.
        """
        evaluation = self.evaluation
        if evaluation.rival_version != version:
            compared = f"version {evaluation.rival_version}" if evaluation.rival_version else "no version"
            raise EvaluationError(
                f"version {version} holds {evaluation.alias!r} of {evaluation.model!r}, but the evaluation compares "
                f"with {compared}. Materialize the evaluation again, then promote."
            )
        found = evaluation.whole.rival.get(self.metric)
        if found is None:
            raise EvaluationError(
                f"the evaluation has no {self.metric!r} of version {version}, which holds {evaluation.alias!r}: "
                f"{evaluation.no_rival or 'only the candidate has this metric'}. Promote on another metric, without "
                "evaluation=, or move the alias by hand."
            )
        return found.value

    def confirm(self, why: str) -> tuple[bool, str]:
        """Whether a candidate that is better wins often enough, and why."""
        wins = self.evaluation.whole.differences[self.metric].wins
        told = f"{why}; better in {wins:.1%} of resamples"
        return (True, told) if wins >= self.min_wins else (False, f"{told}, {self.min_wins:.1%} is asked")

    def to_dict(self) -> dict[str, Any]:
        """What a version's history of promotions keeps."""
        found = self.evaluation.whole.differences.get(self.metric)
        facts = {"rows": self.evaluation.whole.rows, "rows_hash": self.evaluation.rows_hash}
        return {**facts, **({"wins": found.wins, "low": found.low, "high": found.high} if found else {})}


def same_rows(
    context: dg.AssetExecutionContext,
    key: dg.AssetKey,
    candidate: ModelVersion,
    alias: str,
    metric: str,
    min_wins: float,
    *,
    greater: bool,
) -> SameRows:
    """The latest evaluation, once it is sure that it is about this candidate and alias.

    Of an evaluation with partitions, it is that of the last partition that is about the candidate. `greater` says
    whether more of the metric is better for whoever decides by it.

    Raises:
        EvaluationError: there is none, it is about another version or alias, or less of the metric is better for it.
    """
    version, problem = f"{candidate.name}/{candidate.version}", ""
    for partition in reversed(partitions_read(context, key) or [""]):
        try:
            found = latest_evaluation(context.instance, key, partition)
        except EvaluationError as error:
            problem = problem or str(error)
            continue
        if f"{found.model}/{found.version}" == version and found.alias == alias:
            if metric in found.whole.metrics and greater_is_better(metric, found.lower_is_better) is not greater:
                raise EvaluationError(
                    f"promotion is told that {'more' if greater else 'less'} of {metric!r} is better, and "
                    f"{key.to_user_string()} is not. Set greater_is_better of the promotion, or lower_is_better of the "
                    "evaluation; a metric without a direction, such as 'bias', decides nothing."
                )
            return SameRows(found, metric, min_wins, partition)
        problem = (
            f"{key.to_user_string()} is about {found.model}/{found.version} and {found.alias!r}, the candidate is "
            f"{version} for {alias!r}. Materialize the evaluation (with compare_with={alias!r}), then promote."
        )
    raise EvaluationError(problem)
