"""Models in MLflow: how they are logged in safe formats, verified and loaded."""

from dagster_mlops.core.model_loading import LoadedModel
from dagster_mlops.mlflow.models.loading import find_version, load_version
from dagster_mlops.mlflow.models.log import FittedModel, log_model

__all__ = [
    "FittedModel",
    "LoadedModel",
    "find_version",
    "load_version",
    "log_model",
]
