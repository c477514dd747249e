"""Registered models served by MLflow's own scoring server, behind the same rollout as a bento."""

from dagster_mlops.mlflow_serving.assets import scoring_package_asset
from dagster_mlops.mlflow_serving.resource import MlflowServingResource

__all__ = ["MlflowServingResource", "scoring_package_asset"]
