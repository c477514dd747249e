"""Datasets as assets: each version cached, committed and pushed by DVC, its content hash the Dagster data version."""

from dagster_mlops.dvc.assets import dataset_asset, observed_dataset_assets
from dagster_mlops.dvc.checks import dataset_checks
from dagster_mlops.dvc.component import DatasetComponent, PipelineComponent
from dagster_mlops.dvc.io_manager import dvc_io_manager
from dagster_mlops.dvc.pipeline import pipeline_assets
from dagster_mlops.dvc.resource import DvcResource

__all__ = [
    "DatasetComponent",
    "DvcResource",
    "PipelineComponent",
    "dataset_asset",
    "dataset_checks",
    "dvc_io_manager",
    "observed_dataset_assets",
    "pipeline_assets",
]
