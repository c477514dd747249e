"""Datasets as assets: each version cached, committed and pushed by DVC, its content hash the Dagster data version."""

from dagster_mlops.dvc.resource import DvcResource

__all__ = ["DvcResource"]
