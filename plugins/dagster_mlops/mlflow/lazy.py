"""MLflow, Optuna and PyTorch, imported when first used, and their types, which only type checkers read."""

from typing import TYPE_CHECKING, Any

from dagster_mlops.core.extras import LazyModule

if TYPE_CHECKING:
    import mlflow.artifacts
    import mlflow.models
    import mlflow.store.artifact.artifact_repository_registry
    import optuna
    from mlflow import MlflowClient, entities
    from mlflow.entities import LoggedModel, Metric, Run
    from mlflow.entities.model_registry import ModelVersion as MlflowModelVersion
    from mlflow.models.model import ModelInfo
    from mlflow.store.artifact.artifact_repo import ArtifactRepository
else:
    mlflow, entities, optuna = LazyModule("mlflow"), LazyModule("mlflow.entities"), LazyModule("optuna")
    MlflowClient = LoggedModel = Metric = Run = MlflowModelVersion = ModelInfo = ArtifactRepository = Any
torch: Any = LazyModule("torch")

__all__ = ["ArtifactRepository", "LoggedModel", "Metric", "MlflowClient", "MlflowModelVersion", "ModelInfo", "Run"]
__all__ += ["entities", "mlflow", "optuna", "torch"]
