"""Evaluation of model versions: metrics by slice with confidence intervals, against baselines and the champion."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.evaluation.asset import evaluation_asset as evaluation_asset
    from dagster_mlops.evaluation.calibration import calibration_error as calibration_error
    from dagster_mlops.evaluation.checks import evaluation_checks as evaluation_checks
    from dagster_mlops.evaluation.component import EvaluationChecks as EvaluationChecks
    from dagster_mlops.evaluation.component import EvaluationComponent as EvaluationComponent
    from dagster_mlops.evaluation.component import MetricBounds as MetricBounds
    from dagster_mlops.evaluation.measure import Difference as Difference
    from dagster_mlops.evaluation.measure import Estimate as Estimate
    from dagster_mlops.evaluation.measure import Evaluation as Evaluation
    from dagster_mlops.evaluation.measure import Part as Part
    from dagster_mlops.evaluation.reference import load_reference as load_reference
    from dagster_mlops.evaluation.reference import reference_asset as reference_asset

__getattr__, __dir__ = lazy_door(__name__)
