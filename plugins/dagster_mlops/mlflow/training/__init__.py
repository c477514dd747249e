"""A training step: its facts, its run, its checkpoints."""

from dagster_mlops.mlflow.training.checkpoints import Checkpoints, torch_checkpoints

__all__ = [
    "Checkpoints",
    "torch_checkpoints",
]
