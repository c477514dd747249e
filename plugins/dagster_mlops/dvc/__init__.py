"""Datasets as assets: each version cached, committed and pushed by DVC, its content hash the Dagster data version."""

from dagster_mlops.dvc.assets import dataset_asset, observed_dataset_assets
from dagster_mlops.dvc.io_manager import DvcIOManager, dvc_io_manager
from dagster_mlops.dvc.resource import DvcResource

__all__ = ["DvcIOManager", "DvcResource", "dataset_asset", "dvc_io_manager", "observed_dataset_assets"]
