"""Feature views as assets that load windows into the online store, and a whole Feast repository as an asset graph."""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_deps, asset_key
from dagster_mlops.core.asset_records import dagster_facts, refs_read, upstream_reads
from dagster_mlops.core.metadata import ROW_COUNT, table
from dagster_mlops.core.options import specs_with_options, with_signature
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.lazy import FeatureStore
from dagster_mlops.feast.metadata_keys import KEPT_NEWER, LAST_EVENT, ONLINE_WRITES
from dagster_mlops.feast.repository import definitions, registry
from dagster_mlops.feast.repository.definitions import Definition, OnDemandViewDefinition, ViewDefinition
from dagster_mlops.feast.repository.load import load_repository, read_config
from dagster_mlops.feast.repository.names import prefixed, refuse_equal
from dagster_mlops.feast.resource import FeastResource
from dagster_mlops.provenance import FeatureView

if TYPE_CHECKING:
    from dagster_mlops.feast.offline.source import Window, WindowFacts

_INCLUDE = ("sources", "label_views", "on_demand_views", "services", "saved_datasets")
_PLOTTED = 8  # features whose five numbers the UI plots over time; the table has all features


def feature_view_assets(
    *,
    repo: str | Path,
    views: Sequence[str] | None = None,
    partitions_def: dg.PartitionsDefinition | None = None,
    deps: Mapping[str, Sequence[Any]] | None = None,
    group_name: str | None = None,
    key_prefix: Sequence[str] | None = None,
    backfill_policy: dg.BackfillPolicy | None = None,
    get_asset_spec: Callable[[ViewDefinition | OnDemandViewDefinition], dg.AssetSpec] | None = None,
    **asset_options: Any,
) -> list[dg.AssetsDefinition]:
    """One asset per feature view of the Feast repository in `repo`, with the view's name and description.

    On-demand views that are stored online (``write_to_online_store=True``) have assets, too.

    Materializing an asset applies the repository if it changed, loads the partition's window (without partitions,
    everything up to now) into the online store, and records rows, null shares and the window. The data version is a
    hash of the view's definition and of the rows in the window, so it stays the same while both do. The assets need
    a :class:`FeastResource` under the key ``feast``.

        months = dg.MonthlyPartitionsDefinition("2013-01-01", end_date="2014-01-01")
        views = feature_view_assets(
            repo="feature_repo",
            partitions_def=months,
            deps={"origin_weather": ["features/origin_weather"]},
            group_name="features",
        )
        defs = dg.Definitions(assets=views, resources={"feast": FeastResource(repo="feature_repo")})

    Args:
        repo: Folder with ``feature_store.yaml``. It is parsed outside this process, and only when its files changed.
        views: Names of feature views; all by default.
        partitions_def: Time-window partitions. A run over many partitions materializes their span at once.
        deps: Assets that write a view's source, by the name of the view: anything that `deps` of an asset accepts.
        backfill_policy: Backfill policy; by default one run for all partitions.
        get_asset_spec: Function from a view to its spec; by default
            :func:`~dagster_mlops.feast.repository.get_asset_spec`. `deps`, `key_prefix`, `group_name` and
            `asset_options` are added to the spec.
        asset_options: Further arguments of :func:`dagster.asset`, for each asset. Give a ``pool`` with limit 1 when
            several machines materialize the same view; on one machine a lock prevents conflicts.

    Raises:
        FeatureError: Feast cannot read the repository, it does not define one of the named views, two of them have one
            asset key, or a stored on-demand view is one that no materialization can compute.
    """
    if partitions_def is not None and not isinstance(partitions_def, dg.TimeWindowPartitionsDefinition):
        raise FeatureError(
            f"feature views are materialized by event time, and {type(partitions_def).__name__} has no time windows."
        )
    repository = load_repository(repo, kinds=["views", "stored_views"])
    views_by_name = definitions.loaded_views(repository)
    unknown = sorted({*(views or ()), *(deps or {})} - set(views_by_name))
    if unknown:
        raise FeatureError(
            f"{repository.path} defines no feature view {', '.join(unknown)} "
            f"(it has: {', '.join(sorted(views_by_name)) or 'none'})."
        )
    default_spec = partial(definitions.get_asset_spec, project=repository.project)
    policy = backfill_policy or (dg.BackfillPolicy.single_run() if partitions_def else None)
    selected_views = {name: views_by_name[name] for name in views or views_by_name}
    specs: dict[str, dg.AssetSpec] = {}
    for name, view in selected_views.items():
        definitions.refuse_uncomputable(view, repository)
        spec = (get_asset_spec or default_spec)(view)
        key, group = prefixed(spec.key, key_prefix), group_name or spec.group_name
        specs[name] = spec.replace_attributes(key=key, group_name=group, partitions_def=partitions_def)
    refuse_equal((f"feature view {name!r}", spec.key.to_python_identifier()) for name, spec in specs.items())

    def upstream(name: str, spec: dg.AssetSpec) -> list[Any]:
        view = selected_views[name]
        inputs = view.views if isinstance(view, OnDemandViewDefinition) else ()
        known_keys = {dep.asset_key for dep in spec.deps}
        keys = dict.fromkeys(specs[source].key for source in inputs if source in specs)
        new_keys = [key for key in keys if key not in known_keys]
        return [*spec.deps, *new_keys, *asset_deps((deps or {}).get(name, ()))]

    return [
        _feature_view_asset(
            spec=spec.replace_attributes(deps=upstream(name, spec)),
            view=name,
            options={**asset_options, "backfill_policy": policy},
        )
        for name, spec in specs.items()
    ]


def _feature_view_asset(*, spec: dg.AssetSpec, view: str, options: Mapping[str, Any]) -> dg.AssetsDefinition:
    [spec], step_options = specs_with_options([spec], options)

    @dg.multi_asset(**step_options, name=spec.key.to_python_identifier(), specs=[spec])
    @with_signature
    def load_feature_view(context: dg.AssetExecutionContext, feast: FeastResource) -> dg.MaterializeResult:
        # For steps, not for code locations.
        from dagster_mlops.feast.offline import source, stored_views
        from dagster_mlops.feast.offline.retrieval import is_stored
        from dagster_mlops.feast.online.materialization import alone, materialize
        from dagster_mlops.feast.online.serving import Written

        store = feast.applied_store()
        path = read_config(feast.repo).path
        feature_view: Any = registry.feature_view(store, view)
        definition = registry.view_hash(store, view)
        windows = _windows(context, store, feature_view)
        span = source.Window(min(w.start for w in windows.values()), max(w.end for w in windows.values()))
        stored = is_stored(feature_view)
        with alone(store, path, view, feast.timeout):
            describe = stored_views.describe if stored else source.describe_windows
            facts = describe(store, feature_view, list(windows.values()))
            writes = materialize(store, view, span) if stored or feature_view.online else Written()
            for partition, fact in zip(windows, facts, strict=True):
                record = FeatureView(
                    name=view,
                    project=store.project,
                    repo=str(path),
                    version=_digest(definition, partition or "", fact.content_hash),
                    start=fact.window.start.isoformat(),
                    end=fact.window.end.isoformat(),
                    rows=fact.rows,
                    upstream=refs_read(upstream_reads(context)),
                    **{**dagster_facts(context), "dagster_partition": partition or ""},
                )
                registry.put_record(store, record)
                metadata = record.to_metadata(_window_metadata(fact))
                context.add_asset_metadata(metadata, partition_key=partition)
        content = _digest(definition, *(fact.content_hash for fact in facts))
        return dg.MaterializeResult(
            metadata={ONLINE_WRITES: writes.keys, KEPT_NEWER: writes.kept_newer}, data_version=dg.DataVersion(content)
        )

    return load_feature_view


def _digest(*parts: str) -> str:
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:32]


def _windows(context: dg.AssetExecutionContext, store: FeatureStore, view: Any) -> "dict[str | None, Window]":
    """The windows to load, by partition key; without partitions, one window under the key None."""
    from dagster_mlops.feast.offline import stored_views
    from dagster_mlops.feast.offline.retrieval import is_stored
    from dagster_mlops.feast.offline.source import Window, whole_window

    if not context.has_partition_key and not context.has_partition_key_range:
        return {None: (stored_views.whole_window if is_stored(view) else whole_window)(store, view)}
    definition = context.assets_def.partitions_def
    assert isinstance(definition, dg.TimeWindowPartitionsDefinition)  # the factory accepts no other kind
    spans = {key: definition.time_window_for_partition_key(key) for key in context.partition_keys}
    return {k: Window(s.start.astimezone(UTC), s.end.astimezone(UTC)) for k, s in spans.items()}


def _window_metadata(fact: "WindowFacts") -> dict[str, Any]:
    numbers = {
        f"feast/{name}/{feature.feature}": value
        for feature in fact.features[:_PLOTTED]
        for name, value in feature.__dict__.items()
        if isinstance(value, float)
    }
    last = {LAST_EVENT: dg.MetadataValue.timestamp(fact.last_event)} if fact.last_event else {}
    return {ROW_COUNT: fact.rows, **last, **table("feast/statistics", fact.features), **numbers}


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

    Batch and stream feature views, and on-demand views that are stored online, are materialized by
    :func:`feature_view_assets`. Sources, label views, the other on-demand views and feature services are asset specs
    that show lineage and are never executed.

        defs = dg.Definitions.merge(
            feature_repository_defs(repo="feature_repo", sources={"origin_weather_source": "features/origin_weather"}),
            dg.Definitions(assets=[origin_weather]),
        )

    Args:
        repo: Folder with ``feature_store.yaml``. It is parsed outside this process, and only when its files changed.
        sources: Your assets that write data sources, by the name of the source. The other sources become specs.
        views: Names of feature views to materialize; all by default.
        deps: Further upstream assets, by the name of the feature view.
        include: Kinds of specs: ``sources``, ``label_views``, ``on_demand_views``, ``services``, ``saved_datasets``,
            ``entities``, ``permissions``, ``projects``. By default all but the last three, which have no data.
        freshness: Use a view's ttl as its freshness policy. False for a replay of the past.
        partitions_def: As in :func:`feature_view_assets`.
        get_asset_spec: Function from a definition to its spec; by default
            :func:`~dagster_mlops.feast.repository.get_asset_spec`. `key_prefix`, `group_name`, freshness and
            upstream assets are added to the spec.
        resource: The resource; by default ``FeastResource(repo=repo)``.
        asset_options: Further arguments of :func:`dagster.asset`, for each feature view.

    Raises:
        FeatureError: Feast cannot read the repository, or it does not define something that is named.
    """
    repository = load_repository(repo)
    loaded = [view for name, view in definitions.loaded_views(repository).items() if name in (views or [name])]
    parts: dict[str, Sequence[Definition]] = {
        "sources": [source for source in repository.sources if source.name not in (sources or {})],
        "label_views": [view for view in repository.views if view.kind == "label"],
        "on_demand_views": [view for view in repository.on_demand_views if view not in loaded],
        "services": repository.services,
        "saved_datasets": repository.saved_datasets,
        "entities": repository.entities,
        "permissions": repository.permissions,
        "projects": repository.projects,
    }
    if unknown := sorted(set(include) - set(parts)):
        raise FeatureError(f"include= accepts {', '.join(parts)}, not {', '.join(unknown)}.")
    if unknown := sorted(set(sources or {}) - {source.name for source in repository.sources}):
        available = ", ".join(sorted(source.name for source in repository.sources)) or "none"
        raise FeatureError(f"{repository.path} defines no source {', '.join(unknown)} (it has: {available}).")

    default_spec = partial(definitions.get_asset_spec, project=repository.project)

    def translate(thing: Definition) -> dg.AssetSpec:
        spec = (get_asset_spec or default_spec)(thing)
        spec = spec.replace_attributes(key=prefixed(spec.key, key_prefix), group_name=group_name or spec.group_name)
        if freshness and not spec.freshness_policy and isinstance(thing, ViewDefinition) and thing.kind != "label":
            spec = spec.replace_attributes(freshness_policy=definitions.ttl_freshness_policy(thing))
        return spec

    external = {part: things if part in include else [] for part, things in parts.items()}
    source_keys = {source.name: translate(source).key for source in external["sources"]}
    source_keys |= {name: asset_key(asset) for name, asset in (sources or {}).items()}
    shown_views = [*loaded, *external["label_views"], *external["on_demand_views"]]
    view_keys = {view.name: translate(view).key for view in shown_views}
    service_keys = {service.name: translate(service).key for service in external["services"]}

    def linked(thing: Definition) -> dg.AssetSpec:
        """The spec with those upstream assets that are shown."""
        parents: list[dg.AssetKey | None] = []
        if isinstance(thing, ViewDefinition):
            parents = [source_keys.get(name) for name in thing.sources]
        elif isinstance(thing, definitions.OnDemandViewDefinition):
            parents = [*map(view_keys.get, thing.views), *map(source_keys.get, thing.requests)]
        elif isinstance(thing, definitions.ServiceDefinition):
            parents = [view_keys.get(name) for name in thing.features]
        elif isinstance(thing, definitions.SavedDatasetDefinition):
            views_of = [view_keys.get(feature.partition(":")[0]) for feature in thing.features]
            parents = [service_keys.get(thing.service), *([] if thing.service else views_of)]
        spec = translate(thing)
        return spec.replace_attributes(deps=[*spec.deps, *filter(None, dict.fromkeys(parents))])

    executed = feature_view_assets(
        repo=repo, views=views, partitions_def=partitions_def, deps=deps, get_asset_spec=linked, **asset_options
    )
    external_things = [thing for things in external.values() for thing in things]
    specs = [linked(thing) for thing in external_things]
    keys = [(thing, translate(thing).key.to_user_string()) for thing in [*loaded, *external_things]]
    refuse_equal((f"{definitions.noun(thing)} {thing.name!r}", key) for thing, key in keys)
    return dg.Definitions(
        assets=[*executed, *specs],
        resources={"feast": resource or FeastResource(repo=str(repo))},
    )
