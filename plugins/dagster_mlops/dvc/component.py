"""Datasets and DVC projects in YAML: fields, and one call of a factory."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import dagster as dg
from dagster.components.utils.translation import TranslationFn, TranslationFnResolver
from pydantic import Field

from dagster_mlops.core.yaml_fields import Count, NotNegative, Positive, YamlFields, folder
from dagster_mlops.dvc.assets import observed_dataset_assets
from dagster_mlops.dvc.checks import DatasetCheck, dataset_checks
from dagster_mlops.dvc.imports import imported_dataset_asset, imported_url_asset
from dagster_mlops.dvc.io_manager import dvc_io_manager
from dagster_mlops.dvc.pipeline import pipeline_assets, stage_asset_spec
from dagster_mlops.dvc.resource import DvcResource
from dagster_mlops.dvc.sensors import revision_sensor
from dagster_mlops.dvc.stages.project import Stage, TrackedData
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


class _Imported(YamlFields):
    """Fields of both kinds of imports."""

    path: str = Field(description="Its path in the repository of the resource `dvc`.")
    timeout: Positive = Field(default=3600.0, description="Seconds that the download may take.")
    key: dg.ResolvedAssetKey | None = Field(default=None, description="Asset key; `path` without suffix by default.")
    group_name: str | None = Field(default=None, description="Asset group; that of the component by default.")
    description: str | None = Field(default=None, description="Description of the asset.")

    def set_fields(self, group_name: str | None) -> dict[str, Any]:
        """The fields that are set, because the factories treat a missing option of an asset differently from None."""
        options = {**self.__dict__, "group_name": self.group_name or group_name}
        return {name: value for name, value in options.items() if value is not None}


class ImportedDataset(_Imported):
    """A dataset or file of another git repository: `imported_dataset_asset`."""

    url: str = Field(description="git URL, or folder of a git repository.")
    source_path: str | None = Field(default=None, description="Its path there; the same as `path` by default.")
    rev: str = Field(default="HEAD", description="Branch, tag or full commit hash.")

    def build(self, group_name: str | None) -> dg.AssetsDefinition:
        """The asset."""
        return imported_dataset_asset(**self.set_fields(group_name))


class ImportedUrl(_Imported):
    """A file or folder at a URL, downloaded when it changed: `imported_url_asset`."""

    url: str = Field(description="URL as for `dvc import-url`: https://…, s3://…, remote://<DVC remote>/…, a path.")
    options: dict[str, Any] | None = Field(
        default=None, description="Options of the storage as DVC names them; secrets as {env: NAME}."
    )

    def build(self, group_name: str | None) -> dg.AssetsDefinition:
        """The asset."""
        return imported_url_asset(**self.set_fields(group_name))


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


_Item = Stage | TrackedData


class DatasetComponent(YamlFields, dg.Component):
    """DVC datasets: observed where someone else stores them, imported from elsewhere, checked, watched for revisions.

    ```yaml
    type: dagster_mlops.dvc.DatasetComponent
    attributes:
      resource: {repo: /data/flights, remote_url: "s3://ml-data/dvc"}
      repo: /data/vendor
      datasets:
        vendor/prices: vendor/prices.parquet
      group_name: vendor
      imported_datasets:
        - {path: weather.parquet, url: "https://git.example.com/weather", rev: main}
      checks:
        - {asset: raw/flights, checks: [row_count, no_column_lost], min_rows: 20000}
      revision_sensors:
        - {branches: [main], remote: origin}
    ```

    With `resource`, it brings the resources `dvc` and `dvc_io_manager`, which any asset may use.
    """

    datasets: dict[str, str] = Field(default={}, description="Observed: path in the repository by asset key ('a/b').")
    repo: str | None = Field(
        default=None,
        description="Folder of the DVC repository of observed datasets and sensors; else that of the resource 'dvc'. "
        "A relative one counts from this file's folder.",
    )
    rev: str = Field(default="HEAD", description="Git branch, tag or commit that observed datasets follow.")
    name: str = Field(default="observed_datasets", description="Name of the observing step; unique in a code location.")
    group_name: str | None = Field(default=None, description="Group of the assets.")
    resource: DvcRepository | None = Field(
        default=None, description="The resource `dvc`, unless other definitions have it."
    )
    imported_datasets: Sequence[ImportedDataset] = Field(default=(), description="Datasets of other repositories.")
    imported_urls: Sequence[ImportedUrl] = Field(default=(), description="Files or folders at URLs.")
    checks: Sequence[DatasetChecks] = Field(default=(), description="Checks of dataset assets.")
    revision_sensors: Sequence[RevisionSensor] = Field(default=(), description="Sensors of new versions.")

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The assets, their checks, the sensors and the resource."""
        repo = folder(context, self.repo) if self.repo else None
        assets = [source.build(self.group_name) for source in [*self.imported_datasets, *self.imported_urls]]
        if self.datasets:
            observed = observed_dataset_assets(
                datasets=self.datasets, repo=repo, rev=self.rev, name=self.name, group_name=self.group_name
            )
            assets.append(observed)
        return dg.Definitions(
            assets=assets,
            asset_checks=[check for fields in self.checks for check in fields.build()],
            sensors=[sensor.build(self.datasets, repo) for sensor in self.revision_sensors],
            resources=self.resource.build(context) if self.resource else {},
        )


class PipelineComponent(YamlFields, dg.Component):
    """Every stage of a DVC project as an asset that DVC executes; its tracked data observed.

    ```yaml
    type: dagster_mlops.dvc.PipelineComponent
    attributes:
      repo: "{{ context.project_root }}/get-started"
      group_name: nlp
      push: false
      translation:
        owners: [team:nlp]
        metadata: {source: "{{ item.file }}"}
    ```

    It brings the resource `dvc` (`DvcResource`) for the repository, unless `provide_resource` is false. A subclass may
    override `get_asset_spec`.
    """

    repo: str = Field(description="Folder of the DVC repository; a relative one counts from this file's folder.")
    stages: Sequence[str] | None = Field(default=None, description="Names or patterns of stages; all by default.")
    translation: Annotated[
        TranslationFn[_Item] | None, TranslationFnResolver(template_vars_for_translation_fn=lambda item: {"item": item})
    ] = Field(default=None, description="Attributes of the assets, with the stage or tracked data as `item`.")
    key_prefix: Sequence[str] = Field(default=(), description="Put before every asset key.")
    group_name: str | None = Field(default=None, description="Group of the assets.")
    name: str = Field(default="dvc_pipeline", description="Name of the step; unique in a code location.")
    step_per_stage: bool = Field(default=False, description="One step per stage: independent ones run in parallel.")
    observe_data: bool = Field(default=True, description="Make tracked data and frozen stages observable.")
    pull: bool = Field(default=True, description="Fetch missing inputs and known outputs from cache and remote.")
    env: Mapping[str, str] | None = Field(default=None, description="Environment variables for the commands.")
    pool: str | None = Field(default=None, description="Pool of the steps.")
    push: bool = Field(default=True, description="Push outputs to the DVC remote.")
    commit: bool = Field(default=True, description="Commit each stage's entry in dvc.lock to git.")
    provide_resource: bool = Field(default=True, description="Bring the resource `dvc`; false when you define it.")

    def get_asset_spec(self, item: _Item) -> dg.AssetSpec:
        """The asset of a stage or of tracked data; dependencies are added later."""
        spec = stage_asset_spec(item)
        return self.translation(spec, item) if self.translation else spec

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The stages, the tracked data and the resource."""
        repo = folder(context, self.repo)
        # The other fields are arguments of the factory.
        not_passed = {"translation", "push", "commit", "provide_resource"}
        options = {name: value for name, value in self.__dict__.items() if name not in not_passed}
        assets = pipeline_assets(**{**options, "repo": repo, "get_asset_spec": self.get_asset_spec})
        dvc = DvcResource(repo=repo, push=self.push, commit=self.commit)
        return dg.Definitions(assets=assets, resources={"dvc": dvc} if self.provide_resource else {})
