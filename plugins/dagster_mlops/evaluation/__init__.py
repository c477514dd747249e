"""Evaluation of model versions: metrics by slice with confidence intervals, against baselines and the champion."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.evaluation.asset import evaluation_asset
    from dagster_mlops.evaluation.checks import evaluation_checks
    from dagster_mlops.evaluation.component import EvaluationChecks, EvaluationComponent, MetricBounds
    from dagster_mlops.evaluation.measure import Difference, Estimate, Evaluation, Part
    from dagster_mlops.evaluation.reference import load_reference, reference_asset

__all__ = [
    "Difference",
    "Estimate",
    "Evaluation",
    "EvaluationChecks",
    "EvaluationComponent",
    "MetricBounds",
    "Part",
    "evaluation_asset",
    "evaluation_checks",
    "load_reference",
    "reference_asset",
]

__getattr__, __dir__ = lazy_door(__name__)
