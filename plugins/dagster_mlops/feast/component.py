"""A Feast repository in YAML."""

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

import dagster as dg
from dagster.components.utils.translation import TranslationFn, TranslationFnResolver
from pydantic import Field

from dagster_mlops.core.yaml_fields import FromTemplate, ResolvedPartitions, YamlFields, folder
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.assets import feature_repository_defs
from dagster_mlops.feast.checks.online import online_offline_parity_check
from dagster_mlops.feast.checks.server import feature_server_health_check
from dagster_mlops.feast.component_fields import FreshnessCheck, ParityCheck, Push, ServerCheck, TrainingSet
from dagster_mlops.feast.pushes import push_asset
from dagster_mlops.feast.repository.definitions import Definition, Repository, get_asset_spec
from dagster_mlops.feast.repository.load import load_repository
from dagster_mlops.feast.repository.names import prefixed
from dagster_mlops.feast.resource import FeastResource


class FeatureRepositoryComponent(YamlFields, dg.Component):
    """A Feast repository: an asset per feature view, training sets, pushes, and checks of served features.

    ```yaml
    type: dagster_mlops.feast.FeatureRepositoryComponent
    attributes:
      repo: "{{ context.project_root }}/feature_repo"
      partitions: {every: month, start: "2013-01-01", end: "2014-01-01"}
      deps:
        origin_weather: [features/origin_weather]
      group_name: features
      training_sets:
        - name: training_set
          feature_service: arrival_delay
          entities: training_entities
          checks: {label: late, unique: [flight_id]}
      parity_checks:
        - {asset: training_set, feature_service: arrival_delay}
      freshness_checks:
        - {view: origin_weather, max_lag: {hours: 6}}
    ```

    It defines the resource `feast` (`FeastResource`) for the repository, unless `provide_resource` is false.
    `translation` (say `{owners: ["team:{{ item.owner }}"]}`) changes attributes of the assets; a subclass may override
    `get_asset_spec`.
    """

    repo: str = Field(description="Folder with feature_store.yaml; a relative one counts from this file's folder.")
    views: Sequence[str] | None = Field(default=None, description="Feature views; all by default.")
    partitions: ResolvedPartitions | None = Field(default=None, description="Time partitions; none by default.")
    deps: Mapping[str, Sequence[str]] | None = Field(default=None, description="Assets that write a view's source.")
    group_name: str | None = Field(default=None, description="Asset group.")
    key_prefix: Sequence[str] | None = Field(default=None, description="Asset key prefix of the feature views.")
    automation_condition: FromTemplate | None = Field(
        default=None, description="When feature views materialize automatically: '{{ automation_condition.eager() }}'."
    )
    pool: str | None = Field(default=None, description="Concurrency pool of the feature views.")
    lineage: bool = Field(
        default=False,
        description="Include sources, label and on-demand views and services, and use the ttl as freshness policy.",
    )
    sources: Mapping[str, str] | None = Field(default=None, description="With lineage: the asset that writes a source.")
    include: Sequence[
        Literal[
            "sources",
            "label_views",
            "on_demand_views",
            "services",
            "saved_datasets",
            "entities",
            "permissions",
            "projects",
        ]
    ] = Field(
        default=("sources", "label_views", "on_demand_views", "services", "saved_datasets"),
        description="With lineage: kinds shown beside the views; by default all but the last three, without data.",
    )
    freshness: bool = Field(default=True, description="With lineage: a view's ttl is its freshness policy.")
    offline_store: dict[str, Any] | None = Field(
        default=None, description=FeastResource.model_fields["offline_store"].description
    )
    translation: Annotated[
        TranslationFn[Definition] | None,
        TranslationFnResolver(template_vars_for_translation_fn=lambda item: {"item": item}),
    ] = Field(default=None, description="Attributes of the assets, with the view, source or service as `item`.")
    training_sets: Sequence[TrainingSet] = Field(default=(), description="Training sets of feature services.")
    pushes: Sequence[Push] = Field(default=(), description="Assets that push rows through a push source.")
    freshness_checks: Sequence[FreshnessCheck] = Field(default=(), description="Checks of how old features are.")
    parity_checks: Sequence[ParityCheck] = Field(default=(), description="Checks that online equals offline.")
    server_checks: Sequence[ServerCheck] = Field(default=(), description="Checks of feature servers.")
    provide_resource: bool = Field(default=True, description="Define the resource `feast`; false if you define it.")

    def get_asset_spec(self, item: Definition, project: str) -> dg.AssetSpec:
        """The asset of a definition; key prefix, group and dependencies are added later."""
        spec = get_asset_spec(item, project)
        return self.translation(spec, item) if self.translation else spec

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Assets of the views (with lineage of all definitions), training sets, pushes, checks and the resource."""
        repo = folder(context, self.repo)
        repository = load_repository(repo)
        self._refuse_unknown(repository)
        passed_on = ["views", "deps", "group_name", "key_prefix", "automation_condition", "pool"]
        passed_on += ["sources", "include", "freshness"] if self.lineage else []
        graph = feature_repository_defs(
            repo=repo,
            partitions_def=self.partitions,
            get_asset_spec=lambda item: self.get_asset_spec(item, repository.project),
            **{"include": (), "freshness": False, **{name: getattr(self, name) for name in passed_on}},
        )
        assets = [*(graph.assets or ())]
        keys = {
            view.name: prefixed(self.get_asset_spec(view, repository.project).key, self.key_prefix)
            for view in repository.views
        }
        views = {asset.key: asset for asset in assets if isinstance(asset, dg.AssetsDefinition)}
        training_sets = [
            fields.build(
                self.group_name,
                [views[keys[name]] for name in _views_of(repository, fields.feature_service) if keys[name] in views],
            )
            for fields in self.training_sets
        ]
        own_defs = dg.Definitions(
            assets=[*assets, *(push_asset(**push.arguments(self.group_name)) for push in self.pushes)],
            asset_checks=[
                *(check for fields in self.freshness_checks for check in fields.build(keys)),
                *(online_offline_parity_check(**vars(fields)) for fields in self.parity_checks),
                *(feature_server_health_check(**vars(fields)) for fields in self.server_checks),
            ],
            resources={"feast": FeastResource(repo=repo, offline_store=self.offline_store)}
            if self.provide_resource
            else {},
        )
        return dg.Definitions.merge(own_defs, *training_sets)

    def _refuse_unknown(self, repository: Repository) -> None:
        """Refuse names that the repository does not define; otherwise only a run would notice."""
        services = {service.name for service in repository.services}
        pushed = {source.name for source in repository.sources if source.type == "PushSource"}
        loaded = {view.name for view in repository.views if view.kind != "label"}
        references = [
            ("training_sets", "feature_service", services),
            ("pushes", "push_source", pushed),
            ("pushes", "feature_view", loaded),
            ("freshness_checks", "view", loaded.intersection(self.views or loaded)),
            ("parity_checks", "feature_service", services),
            ("server_checks", "feature_service", services),
        ]
        for part, field, available in references:
            for name in filter(None, (getattr(fields, field) for fields in getattr(self, part))):
                if name not in available:
                    noun = {"view": "feature view"}.get(field, field.replace("_", " "))
                    raise FeatureError(
                        f"{part}: {field}: {repository.path} defines no {noun} {name!r} "
                        f"(it has: {', '.join(sorted(available)) or 'none'})."
                    )


def _views_of(repository: Repository, service: str) -> Collection[str]:
    """The stored feature views that a feature service needs, including those behind its on-demand views."""
    [features] = [definition.features for definition in repository.services if definition.name == service]
    computed = {view.name: view.views for view in repository.on_demand_views}
    stored = {view.name for view in repository.views}
    return [name for view in features for name in computed.get(view, [view]) if name in stored]
