"""Datasets as assets: each version cached, committed and pushed by DVC, its content hash the Dagster data version."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.dvc.assets import dataset_asset as dataset_asset
    from dagster_mlops.dvc.assets import observed_dataset_assets as observed_dataset_assets
    from dagster_mlops.dvc.checks import DatasetCheck as DatasetCheck
    from dagster_mlops.dvc.checks import dataset_checks as dataset_checks
    from dagster_mlops.dvc.component import DatasetChecks as DatasetChecks
    from dagster_mlops.dvc.component import DatasetComponent as DatasetComponent
    from dagster_mlops.dvc.component import DvcRepository as DvcRepository
    from dagster_mlops.dvc.component import ImportedDataset as ImportedDataset
    from dagster_mlops.dvc.component import ImportedUrl as ImportedUrl
    from dagster_mlops.dvc.component import PipelineComponent as PipelineComponent
    from dagster_mlops.dvc.component import RevisionSensor as RevisionSensor
    from dagster_mlops.dvc.imports import imported_dataset_asset as imported_dataset_asset
    from dagster_mlops.dvc.imports import imported_url_asset as imported_url_asset
    from dagster_mlops.dvc.io_manager import PATH_KEY as PATH_KEY
    from dagster_mlops.dvc.io_manager import RESTORE_KEY as RESTORE_KEY
    from dagster_mlops.dvc.io_manager import DvcIOManager as DvcIOManager
    from dagster_mlops.dvc.io_manager import dvc_io_manager as dvc_io_manager
    from dagster_mlops.dvc.pipeline import GetAssetSpec as GetAssetSpec
    from dagster_mlops.dvc.pipeline import pipeline_assets as pipeline_assets
    from dagster_mlops.dvc.pipeline import stage_asset_spec as stage_asset_spec
    from dagster_mlops.dvc.resource import DvcResource as DvcResource
    from dagster_mlops.dvc.sensors import revision_sensor as revision_sensor

__getattr__, __dir__ = lazy_door(__name__)
