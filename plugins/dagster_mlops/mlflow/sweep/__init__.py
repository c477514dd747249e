"""Sweeps: Optuna tries a training function's parameters, in one step or in as many as there are trials."""

from dagster_mlops.mlflow.sweep.asset import sweep_asset
from dagster_mlops.mlflow.sweep.partitions import PartitionedSweep, sweep_trials

__all__ = ["PartitionedSweep", "sweep_asset", "sweep_trials"]
