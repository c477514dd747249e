"""A training step: what is captured, logged and written on the run."""

from dagster_mlops.mlflow.training.checkpoints import Checkpoints, torch_checkpoints

__all__ = [
    "Checkpoints",
    "torch_checkpoints",
]
