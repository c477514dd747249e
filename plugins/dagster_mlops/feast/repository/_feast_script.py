"""Tasks of Feast in a process of their own, because it is slow to import and runs the user's files."""

import logging
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def describe(repo: Path, registry_only: bool) -> dict[str, Any]:
    """The definitions of `repo` by Feast's own parser, or those in its registry."""
    from feast.repo_config import load_repo_config
    from feast.repo_operations import parse_repo

    config = load_repo_config(repo, repo / "feature_store.yaml")
    contents, saved_datasets = _registered(config) if registry_only else (parse_repo(repo), [])
    # Feast adds a dummy entity to a view without entities, which no repository defines.
    entities = _distinct(entity for entity in contents.entities if not entity.name.startswith("__"))
    join_keys = {entity.name: (entity.join_key, entity.value_type.name.lower()) for entity in entities}
    sources = sorted(_distinct(contents.data_sources), key=lambda source: source.name)
    pairs: dict[str, list[tuple[Any, dict[str, Any]]]] = {
        "views": [
            *((view, _view(view, "batch", join_keys)) for view in contents.feature_views),
            *((view, _view(view, "stream", join_keys)) for view in contents.stream_feature_views),
            *((view, _view(view, "label", join_keys)) for view in contents.label_views),
        ],
        "on_demand_views": [(view, _on_demand_view(view, join_keys)) for view in contents.on_demand_feature_views],
        "sources": [(source, _source(source)) for source in sources],
        "services": [(service, _service(service)) for service in _distinct(contents.feature_services)],
        "entities": [(entity, _entity(entity)) for entity in entities],
        "permissions": [(permission, _permission(permission)) for permission in contents.permissions],
        "projects": [(project, _about(project)) for project in _distinct(contents.projects)],
        "saved_datasets": [(saved, _saved_dataset(saved)) for saved in saved_datasets],
    }
    description: dict[str, Any] = {"project": config.project}
    for kind, things in pairs.items():
        description[kind] = [{**facts, "permissions": _names(contents.permissions, thing)} for thing, facts in things]
    return description


def _distinct(things: Iterable[Any]) -> list[Any]:
    """The definitions without those that equal another one, which Feast applies as one."""
    distinct: list[Any] = []
    for thing in things:
        if not any(type(thing) is type(other) and thing == other for other in distinct):
            distinct.append(thing)
    return distinct


def _registered(config: Any) -> tuple[Any, list[Any]]:
    """The registry's contents, without code of transformations, which may import packages that are not installed."""
    from feast import FeatureStore
    from feast.repo_contents import RepoContents

    registry, project = FeatureStore(config=config).registry, config.project
    saved = _listed(registry.list_saved_datasets, project)
    contents = RepoContents(
        projects=[thing for thing in _listed(registry.list_projects) if thing.name == project],
        data_sources=registry.list_data_sources(project),
        feature_views=registry.list_feature_views(project, skip_udf=True),
        on_demand_feature_views=registry.list_on_demand_feature_views(project, skip_udf=True),
        stream_feature_views=registry.list_stream_feature_views(project, skip_udf=True),
        label_views=registry.list_label_views(project),
        entities=registry.list_entities(project),
        feature_services=registry.list_feature_services(project),
        permissions=_listed(registry.list_permissions, project),
    )
    return contents, [dataset for dataset in saved if not dataset.name.startswith("dagster_mlops/")]


def _names(permissions: list[Any], thing: Any) -> list[str]:
    """The permissions that apply to a definition, by Feast's own rules."""
    return [permission.name for permission in permissions if permission.match_resource(thing)]


def _listed(definitions: Callable[..., list[Any]], *arguments: Any) -> list[Any]:
    """The definitions that a registry lists; none, with a warning, if it refuses or cannot read them."""
    try:
        return definitions(*arguments)
    except Exception as error:  # noqa: BLE001 - of any registry's client; views and services matter more
        logging.getLogger(__name__).warning("%s of the registry fails: %s", definitions.__name__, error)
        return []


def _about(thing: Any) -> dict[str, Any]:
    return {
        "name": thing.name,
        "description": getattr(thing, "description", ""),
        "owner": getattr(thing, "owner", ""),
        "tags": {str(key): str(value) for key, value in (thing.tags or {}).items()},
    }


def _features(fields: Any) -> list[dict[str, str]]:
    return [{"name": f.name, "dtype": str(f.dtype), "description": f.description} for f in fields]


def _view(view: Any, kind: str, join_keys: dict[str, tuple[str, str]]) -> dict[str, Any]:
    stream = getattr(view, "stream_source", None)
    # A label view's only source is a push source, which has a batch source like every push source.
    batch = getattr(view, "batch_source", None) or getattr(view, "source", None)
    return {
        **_about(view),
        "kind": kind,
        "online": bool(view.online),
        "ttl_seconds": view.ttl.total_seconds() if view.ttl else None,
        "join_keys": [join_keys[name][0] for name in view.entities if name in join_keys],
        "join_key_types": dict(join_keys[name] for name in view.entities if name in join_keys),
        "features": _features(view.features),
        "timestamp_field": batch.timestamp_field if batch else "",
        "source": str(getattr(batch, "path", "") or getattr(batch, "name", "")),
        "sources": [source.name for source in (batch, stream) if source is not None],
    }


def _on_demand_view(view: Any, join_keys: dict[str, tuple[str, str]]) -> dict[str, Any]:
    entities = [getattr(entity, "name", entity) for entity in view.entities or []]
    return {
        **_about(view),
        "mode": str(getattr(view.mode, "value", view.mode)),
        "features": _features(view.features),
        "views": [projection.name for projection in view.source_feature_view_projections.values()],
        "requests": [source.name for source in view.source_request_sources.values()],
        "stored": bool(view.write_to_online_store),
        "join_keys": [join_keys[name][0] for name in entities if name in join_keys],
        "singleton": bool(view.singleton),
    }


def _source(source: Any) -> dict[str, Any]:
    batch = getattr(source, "batch_source", None)
    return {
        **_about(source),
        "type": type(source).__name__,
        "path": str(getattr(source, "path", "") or getattr(source, "table", "") or ""),
        "timestamp_field": source.timestamp_field or "",
        "features": _features(getattr(source, "schema", None) or []),
        "batch_source": batch.name if batch is not None else "",
    }


def _service(service: Any) -> dict[str, Any]:
    features = {view.name: [f.name for f in view.features] for view in service.feature_view_projections}
    return {**_about(service), "features": features}


def _entity(entity: Any) -> dict[str, Any]:
    return {**_about(entity), "join_key": entity.join_key, "type": entity.value_type.name.lower()}


def _permission(permission: Any) -> dict[str, Any]:
    policy = permission.policy
    return {
        **_about(permission),
        "types": sorted(kind.__name__ for kind in permission.types),
        "name_patterns": [str(pattern) for pattern in permission.name_patterns],
        "required_tags": {str(key): str(value) for key, value in (permission.required_tags or {}).items()},
        "actions": [action.value for action in permission.actions],
        "policy": type(policy).__name__,
        "holders": {key: list(value) for key, value in vars(policy).items() if isinstance(value, list | tuple)},
    }


def _saved_dataset(saved: Any) -> dict[str, Any]:
    source = saved.storage.to_data_source()
    return {
        **_about(saved),
        "path": str(getattr(source, "path", "") or getattr(source, "table", "") or ""),
        "service": saved.feature_service_name or "",
        "features": list(saved.features),
        "join_keys": list(saved.join_keys),
    }


def hashes() -> dict[str, str]:
    """The hash of each view and service in the files, comparable with the registry's."""
    from feast.repo_operations import parse_repo

    from dagster_mlops.feast import FeastResource
    from dagster_mlops.feast.repository import registry

    contents, store = parse_repo(Path.cwd()), FeastResource(repo=".").store()
    store.plan(contents)  # fills in what Feast infers
    views = [*contents.feature_views, *contents.stream_feature_views, *contents.on_demand_feature_views]
    return registry.definition_hashes([*views, *contents.label_views], contents.feature_services)


def answer(task: str) -> Any:
    """Result of a task: ``apply``, ``hashes``, or the definitions in the ``files`` or the ``registry``."""
    # Feast's parser expects module names relative to the working directory.
    sys.path.insert(0, str(Path.cwd()))
    if task == "apply":
        from feast.cli.cli import cli

        return cli(["apply"], standalone_mode=False)
    return hashes() if task == "hashes" else describe(Path.cwd(), registry_only=task == "registry")
