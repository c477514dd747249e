"""Training runs, model versions and aliases in MLflow."""

from dagster_mlops.mlflow.assets import training_asset
from dagster_mlops.mlflow.promotion import promotion_asset
from dagster_mlops.mlflow.resource import MlflowResource

__all__ = ["MlflowResource", "promotion_asset", "training_asset"]
