"""Models in MLflow: how they are logged in safe formats, verified and loaded."""

from dagster_mlops.core.model_loading import LoadedModel
from dagster_mlops.mlflow.models.log import FittedModel, log_model
from dagster_mlops.mlflow.registry.models import find_version, load_version

__all__ = [
    "FittedModel",
    "LoadedModel",
    "find_version",
    "load_version",
    "log_model",
]
