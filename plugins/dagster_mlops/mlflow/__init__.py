"""Training runs, model versions and aliases in MLflow."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.evaluation import (
        EvaluationChecks,
        EvaluationComponent,
        MetricBounds,
        evaluation_asset,
        evaluation_checks,
        reference_asset,
    )
    from dagster_mlops.mlflow.assets import training_asset
    from dagster_mlops.mlflow.checks import metric_checks
    from dagster_mlops.mlflow.component import MetricChecksComponent
    from dagster_mlops.mlflow.io_manager import MlflowModelIOManager, mlflow_model_io_manager
    from dagster_mlops.mlflow.reference import load_reference
    from dagster_mlops.mlflow.resource import MlflowResource
    from dagster_mlops.mlflow.sensors import close_orphan_runs_sensor
    from dagster_mlops.mlflow.sweep.asset import sweep_asset
    from dagster_mlops.mlflow.sweep.partitions import PartitionedSweep, sweep_trials
    from dagster_mlops.promotion import PromotionComponent, promotion_asset

__all__ = [
    "EvaluationChecks",
    "EvaluationComponent",
    "MetricBounds",
    "MetricChecksComponent",
    "MlflowModelIOManager",
    "MlflowResource",
    "PartitionedSweep",
    "PromotionComponent",
    "close_orphan_runs_sensor",
    "evaluation_asset",
    "evaluation_checks",
    "load_reference",
    "metric_checks",
    "mlflow_model_io_manager",
    "promotion_asset",
    "reference_asset",
    "sweep_asset",
    "sweep_trials",
    "training_asset",
]

__getattr__, __dir__ = lazy_door(__name__)
