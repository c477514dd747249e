"""A training step: its facts, its run, its checkpoints."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.mlflow.training.checkpoints import Checkpoints as Checkpoints
    from dagster_mlops.mlflow.training.checkpoints import torch_checkpoints as torch_checkpoints

__getattr__, __dir__ = lazy_door(__name__)
