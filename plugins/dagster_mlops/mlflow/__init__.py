"""Training runs, model versions and aliases in MLflow."""

from dagster_mlops.mlflow.assets import training_asset
from dagster_mlops.mlflow.checks import metric_checks
from dagster_mlops.mlflow.component import MetricChecksComponent, PromotionComponent
from dagster_mlops.mlflow.evaluation.asset import evaluation_asset
from dagster_mlops.mlflow.promotion import promotion_asset
from dagster_mlops.mlflow.resource import MlflowResource
from dagster_mlops.mlflow.sensors import close_orphan_runs_sensor

__all__ = [
    "MetricChecksComponent",
    "MlflowResource",
    "PromotionComponent",
    "close_orphan_runs_sensor",
    "evaluation_asset",
    "metric_checks",
    "promotion_asset",
    "training_asset",
]
