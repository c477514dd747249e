"""The capability of a registry to keep evaluations; where it lacks that, Dagster alone keeps them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

import dagster as dg

from dagster_mlops.evaluation.measure import Evaluation
from dagster_mlops.provenance import NAMESPACE, ModelVersion, TrainingRun

EVALUATION = f"{NAMESPACE}.evaluation"
"""Key of the note on a version about its latest evaluation; in MLflow also a tag of the evaluation's run, its hash."""
Pngs = Mapping[str, bytes]
_SUMMARY_LIMIT = 5000  # characters of a version's tag in MLflow's database


@dataclass(frozen=True, kw_only=True)
class Training:
    """The facts of a version's training that its model card shows.

    `origin` says which run made the version, in Markdown; `licences` are those of the installed packages, by name.
    """

    registered: datetime | None = None
    origin: str = ""
    record: TrainingRun | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    container: str = ""
    gpu: str = ""
    licences: Mapping[str, str] = field(default_factory=dict)


@runtime_checkable
class KeepsEvaluations(Protocol):
    """A registry that shows evaluations and model cards beside its versions."""

    def training(self, version: ModelVersion) -> Training:
        """The facts of a version's training."""
        ...

    def keep_evaluation(
        self, context: dg.AssetExecutionContext, version: ModelVersion, evaluation: Evaluation, pngs: Pngs, card: str
    ) -> tuple[str, str]:
        """Keep an evaluation, its figures and the model card; the same result again is kept once.

        Returns:
            Id and address of the run that they are kept as; the address is empty if it has none.
        """
        ...


def summary(evaluation: Evaluation, run_id: str) -> str:
    """The note on a version about its latest evaluation: the run that keeps it, rows, metrics and verdicts."""
    facts: dict[str, Any] = {
        "run_id": run_id,
        "rows": evaluation.whole.rows,
        "rows_asset": evaluation.rows_asset,
        "rows_hash": evaluation.rows_hash,
        "metrics": {name: [metric.value, metric.low, metric.high] for name, metric in evaluation.whole.metrics.items()},
    }
    if evaluation.whole.differences:
        facts["compared_with"] = evaluation.rival_version
        facts["verdicts"] = {name: change.verdict for name, change in evaluation.whole.differences.items()}
    text = json.dumps(facts)
    return text if len(text) <= _SUMMARY_LIMIT else json.dumps({"run_id": run_id})
