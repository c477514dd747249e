"""How good a model version is: metrics by slice with confidence intervals, against baselines and the champion."""

from dagster_mlops.mlflow.evaluation.measure import Difference, Estimate, Evaluation, Part

__all__ = [
    "Difference",
    "Estimate",
    "Evaluation",
    "Part",
]
