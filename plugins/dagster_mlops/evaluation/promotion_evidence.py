"""The evidence that promotion takes from an evaluation: both versions on the same rows."""

from dataclasses import dataclass
from typing import Any

import dagster as dg

from dagster_mlops.core.asset_records import partitions_read
from dagster_mlops.errors import EvaluationError
from dagster_mlops.evaluation.measure import Difference, Evaluation
from dagster_mlops.evaluation.metrics import greater_is_better
from dagster_mlops.evaluation.ui_metadata import latest_evaluation
from dagster_mlops.provenance import ModelVersion


@dataclass(frozen=True)
class SameRows:
    """An evaluation of the candidate; `partition` is its own, where it has partitions."""

    evaluation: Evaluation
    partition: str = ""

    def candidate(self, metric: str) -> float:
        """The candidate's metric.

        Raises:
            EvaluationError: It was not measured.
        """
        estimate = self.evaluation.whole.metrics.get(metric)
        if estimate is None:
            metrics = ", ".join(self.evaluation.whole.metrics) or f"none: {self.evaluation.whole.why_not}"
            raise EvaluationError(
                f"the evaluation of version {self.evaluation.version} of {self.evaluation.model!r} has no "
                f"finite {metric!r}; it has {metrics}. Promote on a metric that is there."
            )
        return estimate.value

    def holder(self, version: str, metric: str) -> float:
        """The metric of the version that holds the alias, on the same rows.

        Raises:
            EvaluationError: The evaluation compares with another version, or could not score this one.
        """
        self.refuse_other(version)
        evaluation = self.evaluation
        estimate = evaluation.whole.rival.get(metric)
        if estimate is None:
            raise EvaluationError(
                f"the evaluation has no {metric!r} of version {version}, which holds {evaluation.alias!r}: "
                f"{evaluation.no_rival or 'only the candidate has this metric'}. Promote on another metric, without "
                "evaluation=, or move the alias by hand."
            )
        return estimate.value

    def difference(self, metric: str) -> Difference:
        """Candidate minus rival.

        Raises:
            EvaluationError: They are not compared by this metric.
        """
        differences = self.evaluation.whole.differences
        if metric not in differences:
            metrics = ", ".join(differences) or f"none: {self.evaluation.no_rival or self.evaluation.whole.why_not}"
            raise EvaluationError(f"the versions are not compared by {metric!r}, but by {metrics}. Name one of these.")
        return differences[metric]

    def refuse_other(self, version: str) -> None:
        """Refuse a holder of the alias with which the evaluation does not compare.

        Raises:
            EvaluationError: It compares with another version, or with none.
        """
        evaluation = self.evaluation
        if evaluation.rival_version != version:
            compared = f"version {evaluation.rival_version}" if evaluation.rival_version else "no version"
            raise EvaluationError(
                f"version {version} holds {evaluation.alias!r} of {evaluation.model!r}, but the evaluation compares "
                f"with {compared}. Materialize the evaluation again, then promote."
            )

    def refuse_direction(self, metric: str, *, greater: bool) -> None:
        """Refuse that more of a metric (`greater`) is better for promotion where it is not for the evaluation.

        Raises:
            EvaluationError: It is not, or the metric has no direction.
        """
        evaluation = self.evaluation
        direction = greater_is_better(metric, evaluation.lower_is_better)
        if metric in evaluation.whole.metrics and direction is not greater:
            raise EvaluationError(
                f"for promotion {'more' if greater else 'less'} of {metric!r} is better, and for the evaluation it is "
                "not. Set greater_is_better of the promotion, or lower_is_better of the evaluation; a metric without a "
                "direction, such as 'bias', decides nothing."
            )

    def to_dict(self, metric: str | None = None) -> dict[str, Any]:
        """The facts that a version's history of promotions keeps: the rows, and the comparison by a metric."""
        change = self.evaluation.whole.differences.get(metric or "")
        facts = {"rows": self.evaluation.whole.rows, "rows_hash": self.evaluation.rows_hash}
        names = ("wins", "low", "high", "p_value", "test")
        return {**facts, **({name: getattr(change, name) for name in names} if change else {})}


def same_rows(context: dg.AssetExecutionContext, key: dg.AssetKey, candidate: ModelVersion, alias: str) -> SameRows:
    """The latest evaluation, which must be about this candidate and alias.

    If the evaluation has partitions, it is that of the last one which is about the candidate.

    Raises:
        EvaluationError: There is none, or it is about another version or alias.
    """
    version, problem = f"{candidate.name}/{candidate.version}", ""
    for partition in reversed(partitions_read(context, key) or [""]):
        try:
            evaluation = latest_evaluation(context, key, partition)
        except EvaluationError as error:
            problem = problem or str(error)
            continue
        subject = f"{evaluation.model}/{evaluation.version}"
        # A new model with the name of one that was deleted counts its versions from 1.
        same_run = candidate.run_id in (evaluation.run_id, "") or not evaluation.run_id
        if subject == version and same_run and evaluation.alias == alias:
            return SameRows(evaluation, partition)
        problem = (
            f"{key.to_user_string()} is about {subject} and {evaluation.alias!r}, the candidate is "
            f"{version} for {alias!r}. Materialize the evaluation (with compare_with={alias!r}), then promote."
        )
    raise EvaluationError(problem)
