"""Datasets as assets: each version cached, committed and pushed by DVC, its content hash the Dagster data version."""

from dagster_mlops.dvc.assets import dataset_asset, observed_dataset_assets
from dagster_mlops.dvc.checks import dataset_checks
from dagster_mlops.dvc.component import DatasetComponent
from dagster_mlops.dvc.io_manager import DvcIOManager, dvc_io_manager
from dagster_mlops.dvc.resource import DvcResource

__all__ = [
    "DatasetComponent",
    "DvcIOManager",
    "DvcResource",
    "dataset_asset",
    "dataset_checks",
    "dvc_io_manager",
    "observed_dataset_assets",
]
