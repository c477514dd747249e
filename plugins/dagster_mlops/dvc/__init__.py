"""Datasets as assets: each version cached, committed and pushed by DVC, its content hash the Dagster data version."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.dvc.assets import dataset_asset, observed_dataset_assets
    from dagster_mlops.dvc.checks import DatasetCheck, dataset_checks
    from dagster_mlops.dvc.component import DatasetComponent, PipelineComponent
    from dagster_mlops.dvc.component_fields import (
        DatasetChecks,
        DvcRepository,
        ImportedDataset,
        ImportedUrl,
        RevisionSensor,
    )
    from dagster_mlops.dvc.imports import imported_dataset_asset, imported_url_asset
    from dagster_mlops.dvc.io_manager import PATH_KEY, RESTORE_KEY, DvcIOManager, dvc_io_manager
    from dagster_mlops.dvc.pipeline import GetAssetSpec, pipeline_assets, stage_asset_spec
    from dagster_mlops.dvc.resource import DvcResource
    from dagster_mlops.dvc.sensors import revision_sensor

__all__ = [
    "PATH_KEY",
    "RESTORE_KEY",
    "DatasetCheck",
    "DatasetChecks",
    "DatasetComponent",
    "DvcIOManager",
    "DvcRepository",
    "DvcResource",
    "GetAssetSpec",
    "ImportedDataset",
    "ImportedUrl",
    "PipelineComponent",
    "RevisionSensor",
    "dataset_asset",
    "dataset_checks",
    "dvc_io_manager",
    "imported_dataset_asset",
    "imported_url_asset",
    "observed_dataset_assets",
    "pipeline_assets",
    "revision_sensor",
    "stage_asset_spec",
]

__getattr__, __dir__ = lazy_door(__name__)
