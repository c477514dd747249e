"""Parts of a DVC repository in YAML beside observed datasets: each is one call of a factory."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import dagster as dg
from pydantic import Field

from dagster_mlops.core.yaml_fields import Count, NotNegative, Positive, YamlFields, folder
from dagster_mlops.dvc.checks import DatasetCheck, dataset_checks
from dagster_mlops.dvc.imports import imported_dataset_asset, imported_url_asset
from dagster_mlops.dvc.io_manager import dvc_io_manager
from dagster_mlops.dvc.resource import DvcResource
from dagster_mlops.dvc.sensors import revision_sensor
from dagster_mlops.errors import DatasetError

_DESCRIPTIONS = {name: field.description for name, field in DvcResource.model_fields.items()}


class DvcRepository(YamlFields):
    """The repository that assets store their datasets in: `DvcResource`."""

    repo: str = Field(description=f"{_DESCRIPTIONS['repo']} A relative one counts from this file's folder.")
    remote: str | None = Field(default=None, description=_DESCRIPTIONS["remote"])
    remote_url: str | None = Field(default=None, description=_DESCRIPTIONS["remote_url"])
    remote_config: dict[str, Any] = Field(
        default={}, description="Options of the remote as DVC names them; secrets as {env: NAME}. They stay in memory."
    )
    push: bool = Field(default=True, description=_DESCRIPTIONS["push"])
    commit: bool = Field(default=True, description=_DESCRIPTIONS["commit"])
    lock_timeout: Positive = Field(default=60.0, description=_DESCRIPTIONS["lock_timeout"])
    author_name: str | None = Field(default=None, description=_DESCRIPTIONS["author_name"])
    author_email: str | None = Field(default=None, description=_DESCRIPTIONS["author_email"])

    def build(self, context: dg.ComponentLoadContext) -> dict[str, Any]:
        """The resources `dvc` and `dvc_io_manager`."""
        dvc = DvcResource(**{**self.__dict__, "repo": folder(context, self.repo)})
        return {"dvc": dvc, "dvc_io_manager": dvc_io_manager}


class ImportedDataset(YamlFields):
    """A dataset or file of another git repository: `imported_dataset_asset`."""

    path: str = Field(description="Its path in the repository of the resource `dvc`.")
    url: str = Field(description="git URL, or folder of a git repository.")
    source_path: str | None = Field(default=None, description="Its path there; the same as `path` by default.")
    rev: str = Field(default="HEAD", description="Branch, tag or full commit hash.")
    timeout: Positive = Field(default=3600.0, description="Seconds that the download may take.")
    key: dg.ResolvedAssetKey | None = Field(default=None, description="Asset key; `path` without suffix by default.")
    group_name: str | None = Field(default=None, description="Asset group; that of the component by default.")
    description: str | None = Field(default=None, description="Description of the asset.")

    def build(self, group_name: str | None) -> dg.AssetsDefinition:
        """The asset."""
        return imported_dataset_asset(**_fields_set(self, group_name))


class ImportedUrl(YamlFields):
    """A file or folder at a URL, downloaded when it changed: `imported_url_asset`."""

    path: str = Field(description="Its path in the repository of the resource `dvc`.")
    url: str = Field(description="URL as for `dvc import-url`: https://…, s3://…, remote://<DVC remote>/…, a path.")
    options: dict[str, Any] | None = Field(
        default=None, description="Options of the storage as DVC names them; secrets as {env: NAME}."
    )
    timeout: Positive = Field(default=3600.0, description="Seconds that the download may take.")
    key: dg.ResolvedAssetKey | None = Field(default=None, description="Asset key; `path` without suffix by default.")
    group_name: str | None = Field(default=None, description="Asset group; that of the component by default.")
    description: str | None = Field(default=None, description="Description of the asset.")

    def build(self, group_name: str | None) -> dg.AssetsDefinition:
        """The asset."""
        return imported_url_asset(**_fields_set(self, group_name))


def _fields_set(imported: ImportedDataset | ImportedUrl, group_name: str | None) -> dict[str, Any]:
    """The fields that are set, because the factories treat a missing option of an asset differently from None."""
    options = {**imported.__dict__, "group_name": imported.group_name or group_name}
    return {name: value for name, value in options.items() if value is not None}


class DatasetChecks(YamlFields):
    """Checks of a dataset asset: `dataset_checks`."""

    asset: dg.ResolvedAssetKey = Field(description="The dataset asset.")
    checks: Sequence[DatasetCheck] = Field(
        default=("remote_has_object", "row_count"), description="Names of the checks."
    )
    min_rows: Count = Field(default=1, description="For row_count: smallest number of rows in each partition.")
    min_ratio: NotNegative = Field(
        default=0.5, description="For row_count_within: smallest share of the previous rows."
    )
    max_ratio: NotNegative = Field(default=2.0, description="For row_count_within: largest share of the previous rows.")
    blocking: bool = Field(default=True, description="Whether a failure stops downstream assets of the same run.")

    def build(self) -> list[dg.AssetChecksDefinition]:
        """The checks.

        Raises:
            DatasetError: the bounds contradict each other.
        """
        if self.min_ratio > self.max_ratio:
            raise DatasetError(f"checks: min_ratio {self.min_ratio:g} is above max_ratio {self.max_ratio:g}.")
        return dataset_checks(**self.__dict__)


class RevisionSensor(YamlFields):
    """Notices new versions of datasets on branches and tags: `revision_sensor`."""

    datasets: dict[str, str] | None = Field(
        default=None, description="Dataset path by asset key; the observed datasets by default."
    )
    name: str = Field(default="dataset_revisions", description="Name of the sensor.")
    branches: Sequence[str] = Field(default=("main",), description="Names or patterns such as release/*.")
    tags: Sequence[str] = Field(default=(), description="Names or patterns.")
    remote: str | None = Field(default=None, description="git remote to fetch from first, such as origin.")
    mode: Literal["observe", "run"] = Field(default="observe", description="Report new versions, or request runs.")
    asset_selection: str | None = Field(default=None, description="Assets to run, such as 'group:training'.")
    minimum_interval_seconds: Count = Field(default=60, description="Seconds between ticks.")
    default_status: Literal["RUNNING", "STOPPED"] = Field(default="STOPPED", description="Status at first.")

    def build(self, observed: Mapping[str, str], repo: str | None) -> dg.SensorDefinition:
        """The sensor on a repository; that of the resource `dvc` unless `repo` is given."""
        status = dg.DefaultSensorStatus[self.default_status]
        datasets = self.datasets or observed
        if not datasets:
            raise DatasetError(f"revision_sensors: {self.name} has no datasets. Give it some, or the component.")
        return revision_sensor(**{**self.__dict__, "datasets": datasets, "repo": repo, "default_status": status})
