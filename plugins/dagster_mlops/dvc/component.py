"""Datasets and DVC projects in YAML."""

from collections.abc import Mapping, Sequence
from typing import Annotated

import dagster as dg
from dagster.components.utils.translation import TranslationFn, TranslationFnResolver
from pydantic import Field

from dagster_mlops.core.yaml_fields import YamlFields, folder
from dagster_mlops.dvc.assets import observed_dataset_assets
from dagster_mlops.dvc.component_fields import (
    DatasetChecks,
    DvcRepository,
    ImportedDataset,
    ImportedUrl,
    RevisionSensor,
)
from dagster_mlops.dvc.pipeline import pipeline_assets, stage_asset_spec
from dagster_mlops.dvc.resource import DvcResource
from dagster_mlops.dvc.stages.project import Stage, TrackedData

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
        assets = pipeline_assets(
            repo=repo,
            stages=self.stages,
            get_asset_spec=self.get_asset_spec,
            key_prefix=self.key_prefix,
            group_name=self.group_name,
            name=self.name,
            step_per_stage=self.step_per_stage,
            observe_data=self.observe_data,
            pull=self.pull,
            env=self.env,
            pool=self.pool,
        )
        dvc = DvcResource(repo=repo, push=self.push, commit=self.commit)
        return dg.Definitions(assets=assets, resources={"dvc": dvc} if self.provide_resource else {})
