"""A Feast repository in YAML."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import dagster as dg
from dagster.components.utils.translation import TranslationFn, TranslationFnResolver
from pydantic import Field

from dagster_mlops.feast.assets import feature_view_assets
from dagster_mlops.feast.definitions import Definition
from dagster_mlops.feast.graph import feature_repository_defs
from dagster_mlops.feast.repository import load_repository
from dagster_mlops.feast.resource import FeastResource
from dagster_mlops.feast.specs import get_asset_spec
from dagster_mlops.feast.training_set import training_set_asset

_Key = Annotated[dg.AssetKey, dg.Resolver(lambda _, key: dg.AssetKey.from_user_string(key), model_field_type=str)]
_PARTITIONS = {
    "hour": dg.HourlyPartitionsDefinition,
    "day": dg.DailyPartitionsDefinition,
    "week": dg.WeeklyPartitionsDefinition,
    "month": dg.MonthlyPartitionsDefinition,
}


class Partitions(dg.Model, dg.Resolvable):
    """Time partitions of the feature views."""

    every: Literal["hour", "day", "week", "month"] = Field(description="Length of a partition.")
    start: str = Field(description="First partition, such as 2013-01-01 (hourly: 2013-01-01-00:00).")
    end: str | None = Field(default=None, description="End, itself excluded; open by default.")


class TrainingSet(dg.Model, dg.Resolvable):
    """A training set from a feature service of the repository."""

    name: str = Field(description="Name of the asset.")
    feature_service: str = Field(description="Feature service whose features are joined.")
    entities: _Key = Field(description="Asset that gives the entity dataframe, as group/name.")
    timestamp_column: str = Field(default="event_timestamp", description="Event time column of the entity dataframe.")
    io_manager_key: str = Field(default="dvc_io_manager", description="IO manager that stores the training set.")


class FeatureRepositoryComponent(dg.Component, dg.Model, dg.Resolvable):
    """One asset per feature view of a Feast repository, and a point-in-time-correct training set from a service.

    ```yaml
    type: dagster_mlops.feast.FeatureRepositoryComponent
    attributes:
      repo: "{{ project_root }}/feature_repo"
      partitions: {every: month, start: "2013-01-01", end: "2014-01-01"}
      deps:
        origin_weather: [features/origin_weather]
      group_name: features
      training_set:
        name: training_set
        feature_service: arrival_delay
        entities: training_entities
    ```

    It brings the resource `feast` (`FeastResource`) for the repository, unless `provide_resource` is false. With
    `translation` (say `{owners: ["team:{{ item.owner }}"]}`) the assets get other attributes; a subclass may override
    `get_asset_spec`.
    """

    repo: str = Field(description="Folder with feature_store.yaml and the feature definitions.")
    views: Sequence[str] | None = Field(default=None, description="Feature views; all by default.")
    partitions: Partitions | None = Field(default=None, description="Time partitions; none by default.")
    deps: Mapping[str, Sequence[str]] | None = Field(default=None, description="Assets that write a view's source.")
    group_name: str | None = Field(default=None, description="Asset group.")
    key_prefix: Sequence[str] | None = Field(default=None, description="Asset key prefix of the feature views.")
    lineage: bool = Field(
        default=False,
        description="The whole repository: also sources, label and on-demand views and services; ttl as freshness.",
    )
    sources: Mapping[str, str] | None = Field(default=None, description="With lineage: the asset that writes a source.")
    offline_store: dict[str, Any] | None = Field(
        default=None,
        description="Offline store in place of that of feature_store.yaml, e.g. "
        "{type: dagster_mlops.feast.offline_store.AsofOfflineStore}.",
    )
    translation: Annotated[
        TranslationFn[Definition] | None,
        TranslationFnResolver(template_vars_for_translation_fn=lambda item: {"item": item}),
    ] = Field(default=None, description="Attributes of the assets, with the view, source or service as `item`.")
    training_set: TrainingSet | None = Field(default=None, description="Training set, none by default.")
    provide_resource: bool = Field(default=True, description="Bring the resource `feast`; false when you define it.")

    def get_asset_spec(self, item: Definition, project: str) -> dg.AssetSpec:
        """The asset of a definition; key prefix, group and dependencies are added later."""
        spec = get_asset_spec(item, project)
        return self.translation(spec, item) if self.translation else spec

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The views, with lineage the rest of the repository, the training set and the resource."""
        by, wanted, project = self.partitions, self.training_set, load_repository(self.repo).project
        partitions_def = _PARTITIONS[by.every](start_date=by.start, end_date=by.end) if by else None
        resource = FeastResource(repo=self.repo, offline_store=self.offline_store)
        if self.lineage:
            whole = feature_repository_defs(
                repo=self.repo,
                sources={name: dg.AssetKey.from_user_string(key) for name, key in (self.sources or {}).items()},
                views=self.views,
                deps=self._deps,
                partitions_def=partitions_def,
                group_name=self.group_name,
                key_prefix=self.key_prefix,
                get_asset_spec=lambda item: self.get_asset_spec(item, project),
            )
            assets = [*(whole.assets or ())]
        else:
            assets = feature_view_assets(
                repo=self.repo,
                views=self.views,
                partitions_def=partitions_def,
                deps=self._deps,
                group_name=self.group_name,
                key_prefix=self.key_prefix,
                get_asset_spec=lambda item: self.get_asset_spec(item, project),
            )
        views = [asset for asset in assets if isinstance(asset, dg.AssetsDefinition)]
        sets = [training_set_asset(**wanted.__dict__, deps=views, group_name=self.group_name)] if wanted else []
        resources = {"feast": resource} if self.provide_resource else {}
        return dg.Definitions(assets=[*assets, *sets], resources=resources)

    @property
    def _deps(self) -> dict[str, list[dg.AssetKey]]:
        return {view: [dg.AssetKey.from_user_string(k) for k in keys] for view, keys in (self.deps or {}).items()}
