"""A whole Feast repository as an asset graph: sources, views, on-demand views, services."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.assets import feature_view_assets
from dagster_mlops.feast.repository import specs
from dagster_mlops.feast.repository.definitions import (
    Definition,
    EntityDefinition,
    ServiceDefinition,
    SourceDefinition,
    ViewDefinition,
)
from dagster_mlops.feast.repository.load import load_repository
from dagster_mlops.feast.resource import FeastResource

_INCLUDE = ("sources", "label_views", "on_demand_views", "services")


def feature_repository_defs(
    *,
    repo: str | Path,
    sources: Mapping[str, AssetLike] | None = None,
    views: Sequence[str] | None = None,
    deps: Mapping[str, Sequence[Any]] | None = None,
    include: Collection[str] = _INCLUDE,
    freshness: bool = True,
    partitions_def: dg.PartitionsDefinition | None = None,
    group_name: str | None = None,
    key_prefix: Sequence[str] | None = None,
    get_asset_spec: Callable[[Definition], dg.AssetSpec] | None = None,
    resource: FeastResource | None = None,
    **asset_options: Any,
) -> dg.Definitions:
    """All definitions of the Feast repository in `repo` as assets with their lineage, and the resource `feast`.

    Batch and stream feature views are materialized by :func:`feature_view_assets`. Sources, label views, on-demand
    views and feature services are asset specs that show lineage and are never executed.

        defs = dg.Definitions.merge(
            feature_repository_defs(repo="feature_repo", sources={"origin_weather_source": "features/origin_weather"}),
            dg.Definitions(assets=[origin_weather]),
        )

    Args:
        repo: Folder with ``feature_store.yaml``. It is parsed outside this process, and only when its files changed.
        sources: Your assets that write data sources, by the name of the source. The other sources become specs.
        views: Names of feature views to materialize; all by default.
        deps: Further upstream assets, by the name of the feature view.
        include: Kinds of specs: ``sources``, ``label_views``, ``on_demand_views``, ``services``, ``entities``. By
            default all but the entities, which have no data.
        freshness: Use a view's ttl as its freshness policy. False for a replay of the past.
        partitions_def: As in :func:`feature_view_assets`.
        get_asset_spec: Function from a definition to its spec; by default
            :func:`~dagster_mlops.feast.repository.specs.get_asset_spec`. `key_prefix`, `group_name`, freshness and
            upstream assets are added to the spec.
        resource: The resource; by default ``FeastResource(repo=repo)``.
        asset_options: Further arguments of :func:`dagster.asset`, for each feature view.

    Raises:
        FeatureError: Feast cannot read the repository, or it does not define something that is named.
    """
    repository = load_repository(repo)
    labels = [view for view in repository.views if view.kind == "label"]
    loaded_views = {
        view.name: view for view in repository.views if view.kind != "label" and view.name in (views or [view.name])
    }
    parts: dict[str, Sequence[Definition]] = {
        "sources": [source for source in repository.sources if source.name not in (sources or {})],
        "label_views": labels,
        "on_demand_views": repository.on_demand_views,
        "services": repository.services,
        "entities": repository.entities,
    }
    if unknown := sorted(set(include) - set(parts)):
        raise FeatureError(f"include= accepts {', '.join(parts)}, not {', '.join(unknown)}.")
    if unknown := sorted(set(sources or {}) - {source.name for source in repository.sources}):
        available = ", ".join(sorted(source.name for source in repository.sources)) or "none"
        raise FeatureError(f"{repository.path} defines no source {', '.join(unknown)} (it has: {available}).")

    def translate(thing: Definition) -> dg.AssetSpec:
        spec = get_asset_spec(thing) if get_asset_spec else specs.get_asset_spec(thing, repository.project)
        spec = spec.replace_attributes(
            key=spec.key.with_prefix(key_prefix or ()), group_name=group_name or spec.group_name
        )
        if freshness and not spec.freshness_policy and isinstance(thing, ViewDefinition) and thing.kind != "label":
            spec = spec.replace_attributes(freshness_policy=specs.ttl_freshness_policy(thing))
        return spec

    external_definitions = [thing for name in parts if name in include for thing in parts[name]]
    keys = {("views", view.name): translate(view).key for view in loaded_views.values()}
    keys |= {(_kind(thing), thing.name): translate(thing).key for thing in external_definitions}
    keys |= {("sources", name): asset_key(key) for name, key in (sources or {}).items()}

    def keys_of(kind: str, name: str) -> list[dg.AssetKey]:
        return [keys[kind, name]] if (kind, name) in keys else []

    upstream = {**(deps or {})}
    for name, view in loaded_views.items():
        upstream[name] = [
            *upstream.get(name, ()),
            *(key for source in view.sources for key in keys_of("sources", source)),
        ]
    executed = feature_view_assets(
        repo=repo, views=views, partitions_def=partitions_def, deps=upstream, get_asset_spec=translate, **asset_options
    )
    return dg.Definitions(
        assets=[*executed, *specs.external_specs(external_definitions, keys_of, translate)],
        resources={"feast": resource or FeastResource(repo=str(repo))},
    )


def _kind(thing: Definition) -> str:
    kinds = {SourceDefinition: "sources", ServiceDefinition: "services", EntityDefinition: "entities"}
    return kinds.get(type(thing), "views")
