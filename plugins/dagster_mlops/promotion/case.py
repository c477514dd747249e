"""The case of a candidate: what the rules of a promotion judge it by."""

import math
from dataclasses import field
from typing import TYPE_CHECKING, Any, Protocol

import dagster as dg

from dagster_mlops.core.bounds import as_logged
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.errors import EvaluationError, ModelVersionError
from dagster_mlops.promotion.verdict import Row
from dagster_mlops.provenance import ModelVersion
from dagster_mlops.tools import HoldsModels, StoredModel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dagster_mlops.evaluation.promotion_evidence import SameRows


@lazy_dataclass(frozen=True)
class Case:
    """A candidate, the version that holds the alias, and the evidence about both.

    `champion` is None where no other version holds the alias. `evaluation` is None where the promotion names none, and
    an error where it has none about the candidate. `judged` is the number of candidates that its rows have judged, with
    this one.
    """

    registry: HoldsModels
    candidate: ModelVersion
    champion: ModelVersion | None = None
    evaluation: "SameRows | EvaluationError | None" = None
    judged: int = 1
    asset: dg.AssetKey = field(default_factory=lambda: dg.AssetKey("candidate"))  # that made the candidate
    context: Any = None  # of the step
    fetch: "Callable[[ModelVersion], StoredModel] | None" = None  # copies the files of a version, once

    def same_rows(self) -> "SameRows":
        """The evaluation of the candidate.

        Raises:
            EvaluationError: There is none.
        """
        if isinstance(self.evaluation, EvaluationError):
            raise self.evaluation
        if self.evaluation is None:
            raise EvaluationError("the promotion has no evaluation. Name one by evaluation=.")
        return self.evaluation

    @property
    def rows(self) -> "SameRows | None":
        """The evaluation of the candidate, if there is one."""
        return None if isinstance(self.evaluation, EvaluationError) else self.evaluation

    def metric(self, name: str) -> float:
        """The candidate's metric: on the rows of the evaluation where there is one, else of its training run.

        Raises:
            EvaluationError: It was not measured, or is not finite.
            ModelVersionError: It was not logged.
        """
        if self.evaluation is not None:
            value = as_logged(self.same_rows().candidate(name))
        else:
            value = logged(self.registry, self.candidate, name)
        if not math.isfinite(value):
            raise EvaluationError(
                f"the candidate's {name} is {value}, which never wins. Train a version with a finite {name}."
            )
        return value

    def stored(self, version: ModelVersion) -> "StoredModel":
        """The stored files of a version.

        Raises:
            ModelVersionError: They are gone, or were changed.
        """
        if self.fetch is None:
            raise ModelVersionError(f"the files of version {version.version} of {version.name!r} are not at hand.")
        return self.fetch(version)

    def champion_metric(self, name: str) -> float | None:
        """The same of the version that holds the alias; None where no other version does.

        Raises:
            EvaluationError: It was not measured on these rows, or is not finite.
            ModelVersionError: It was not logged.
        """
        if (champion := self.champion) is None:
            return None
        if self.evaluation is not None:
            value = as_logged(self.same_rows().holder(champion.version, name))
        else:
            value = logged(self.registry, champion, name)
        if not math.isfinite(value):
            raise EvaluationError(
                f"the {name} of version {champion.version}, which holds the alias, is {value}: nothing can be compared "
                "with it. Compare another metric, or move the alias by hand."
            )
        return value

    def champion_value(self, name: str) -> float | None:
        """The same, and None where it is missing: for a reader, not for a verdict."""
        try:
            return self.champion_metric(name)
        except (EvaluationError, ModelVersionError):
            return None


def logged(registry: HoldsModels, version: ModelVersion, metric: str) -> float:
    """A metric of a version's training run, perhaps not finite.

    Raises:
        ModelVersionError: It was not logged.
    """
    metrics = registry.metrics(version)
    if metric not in metrics:
        raise ModelVersionError(
            f"version {version.version} of {version.name!r} has no metric {metric!r}; run {version.run_id} has "
            f"{', '.join(sorted(metrics)) or 'none'}. Log it in the training function, or promote on one that is there."
        )
    return as_logged(float(metrics[metric]))


class Rule(Protocol):
    """A condition for the alias. `name` is how the table of a decision calls it."""

    @property
    def name(self) -> str: ...

    def judge(self, case: Case) -> "Sequence[Row]":
        """The verdict in one row, or in a row for each part. What it raises is a row that fails, for this reason."""
        ...
