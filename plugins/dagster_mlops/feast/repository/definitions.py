"""Definitions of a Feast repository as plain data, and their asset specs."""

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg

from dagster_mlops.core import markdown
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.metadata import COLUMN_SCHEMA, table
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.metadata_keys import FEATURES
from dagster_mlops.feast.repository.names import asset_name
from dagster_mlops.provenance import mask_credentials

_TAG_VALUE = re.compile(r"[A-Za-z0-9_.-]{1,63}")
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
_SHORTEST_POLICY = timedelta(minutes=1)  # Dagster refuses a freshness policy with a shorter window


@lazy_dataclass(frozen=True)
class Definition:
    """Attributes of every definition of a Feast repository; `permissions` are the names of those that apply to it."""

    name: str
    description: str
    owner: str
    tags: Mapping[str, str]
    permissions: Sequence[str]


@lazy_dataclass(frozen=True)
class ViewDefinition(Definition):
    """A feature view. `kind` is batch, stream or label; `features` have a name, a dtype and a description.

    `sources` are the names of its sources, the batch source first; `source` is the path of the batch source.
    """

    kind: str
    online: bool
    ttl_seconds: float | None
    join_keys: Sequence[str]
    join_key_types: Mapping[str, str]
    features: Sequence[Mapping[str, str]]
    timestamp_field: str
    source: str
    sources: Sequence[str]


@lazy_dataclass(frozen=True)
class OnDemandViewDefinition(Definition):
    """An on-demand feature view, computed from the feature views `views` and the request sources `requests`.

    `stored` is Feast's ``write_to_online_store``, `join_keys` are those of a stored view, and the function of a
    `singleton` takes one row.
    """

    mode: str
    features: Sequence[Mapping[str, str]]
    views: Sequence[str]
    requests: Sequence[str]
    stored: bool
    join_keys: Sequence[str]
    singleton: bool


@lazy_dataclass(frozen=True)
class SourceDefinition(Definition):
    """A data source. `type` is Feast's class, `path` a path or table, `batch_source` that of a push source."""

    type: str
    path: str
    timestamp_field: str
    features: Sequence[Mapping[str, str]]
    batch_source: str


@lazy_dataclass(frozen=True)
class ServiceDefinition(Definition):
    """A feature service: the names of the features it takes, by view."""

    features: Mapping[str, Sequence[str]]


@lazy_dataclass(frozen=True)
class EntityDefinition(Definition):
    """An entity and its join key."""

    join_key: str
    type: str


@lazy_dataclass(frozen=True)
class PermissionDefinition(Definition):
    """A permission: the `actions` that the `holders` of its `policy` may do with which definitions.

    They are of one of `types`, have a name that matches one of `name_patterns`, if any, and the `required_tags`.
    `holders` are lists by kind, such as roles.
    """

    types: Sequence[str]
    name_patterns: Sequence[str]
    required_tags: Mapping[str, str]
    actions: Sequence[str]
    policy: str
    holders: Mapping[str, Sequence[str]]


@lazy_dataclass(frozen=True)
class ProjectDefinition(Definition):
    """The project of the definitions."""


@lazy_dataclass(frozen=True)
class SavedDatasetDefinition(Definition):
    """A saved dataset of the registry: where it is, and the feature `service` or `features` that it was made of."""

    path: str
    service: str
    features: Sequence[str]
    join_keys: Sequence[str]


@lazy_dataclass(frozen=True)
class Repository:
    """The definitions of a Feast repository; saved datasets only where they are read from the registry."""

    path: Path
    project: str
    views: Sequence[ViewDefinition]
    on_demand_views: Sequence[OnDemandViewDefinition]
    sources: Sequence[SourceDefinition]
    services: Sequence[ServiceDefinition]
    entities: Sequence[EntityDefinition]
    permissions: Sequence[PermissionDefinition]
    projects: Sequence[ProjectDefinition]
    saved_datasets: Sequence[SavedDatasetDefinition]


def loaded_views(repository: Repository) -> dict[str, ViewDefinition | OnDemandViewDefinition]:
    """The views that Feast loads into the online store, by name: all but labels, and stored on-demand views."""
    stored = [view for view in repository.on_demand_views if view.stored]
    return {view.name: view for view in [*(view for view in repository.views if view.kind != "label"), *stored]}


def refuse_repeated_names(repository: Repository) -> None:
    """Refuse names that are defined more than once, by what Feast itself refuses or would overwrite silently.

    Views of all kinds share their names, and so do sources, whatever the case of the letters.

    Raises:
        FeatureError: Names the definitions.
    """
    kinds = [[*repository.views, *repository.on_demand_views], repository.sources]
    for things in [*kinds, repository.entities, repository.services]:
        owners: dict[str, Definition] = {}
        for thing in things:
            key = thing.name.lower() if things in kinds else thing.name
            if (other := owners.setdefault(key, thing)) is not thing:
                raise FeatureError(
                    f"{repository.path} defines two things of one name: {noun(other)} {other.name!r} and {noun(thing)} "
                    f"{thing.name!r}. Rename one of them, or leave its file out by .feastignore."
                )


def refuse_uncomputable(view: Definition, repository: Repository) -> None:
    """Refuse a stored on-demand view whose values no materialization can compute.

    Raises:
        FeatureError: Says why, and what to do.
    """
    if not isinstance(view, OnDemandViewDefinition):
        return
    keys = {source.name: {*source.join_keys} for source in repository.views if source.name in view.views}
    reason = ""
    if view.requests:
        reason = f"takes request data ({', '.join(view.requests)}), which no materialization has"
    elif view.singleton:
        reason = "is a singleton, which Feast's historical features do not compute"
    elif {*view.join_keys} not in keys.values() or any(used - {*view.join_keys} for used in keys.values()):
        facts = ", ".join(f"{name} by {', '.join(sorted(used)) or 'nothing'}" for name, used in keys.items())
        reason = f"is stored by {', '.join(view.join_keys) or 'no join key'}, and computed from {facts or 'no view'}: "
        reason += "one of these must have all of its join keys, and none others"
    if reason:
        raise FeatureError(
            f"on-demand feature view {view.name!r} is stored online (write_to_online_store=True), and {reason}. Write "
            "it yourself (store.write_to_online_store) and name the views to load without it (views=[…])."
        )


def get_asset_spec(thing: Definition, project: str) -> dg.AssetSpec:
    """The spec, without upstream assets, of any definition of a Feast repository.

    A view's key is its name. The others have a prefix (``sources/NAME``, ``feature_services/NAME``,
    ``saved_datasets/NAME``, ``entities/NAME``, ``permissions/NAME``, ``projects/NAME``), because in Feast a source or a
    service may have the same name as a view.
    """
    if isinstance(thing, ViewDefinition):
        return feature_view_spec(thing, project)
    if isinstance(thing, OnDemandViewDefinition):
        keys = [dg.TableColumn(key, "join key") for key in thing.join_keys] if thing.stored else []
        metadata = {
            COLUMN_SCHEMA: _schema(thing.features, keys),
            "feast/mode": thing.mode,
            "feast/online": thing.stored,
        }
        return _spec(thing, project, "On-demand feature view", [], metadata)
    if isinstance(thing, SourceDefinition):
        times = [dg.TableColumn(thing.timestamp_field, "timestamp")] if thing.timestamp_field else []
        facts: dict[str, Any] = {"feast/source": mask_credentials(thing.path)} if thing.path else {}
        if times or thing.features:
            facts[COLUMN_SCHEMA] = _schema(thing.features, times)
        return _spec(thing, project, thing.type, ["sources"], {"feast/source_type": thing.type, **facts})
    if isinstance(thing, ServiceDefinition):
        names = [{"feature view": view, "features": ", ".join(f)} for view, f in thing.features.items()]
        return _spec(thing, project, "Feature service", ["feature_services"], table(FEATURES, names))
    if isinstance(thing, SavedDatasetDefinition):
        saved = {"feast/source": mask_credentials(thing.path), FEATURES: list(thing.features)}
        return _spec(thing, project, "Saved dataset", ["saved_datasets"], saved)
    if isinstance(thing, PermissionDefinition):
        facts = {name: value for name, value in vars(thing).items() if name not in Definition.__annotations__}
        return _spec(thing, project, "Permission", ["permissions"], {"feast/permission": facts})
    if isinstance(thing, ProjectDefinition):
        return _spec(thing, project, "Project", ["projects"], {})
    assert isinstance(thing, EntityDefinition)
    return _spec(thing, project, "Entity", ["entities"], {"feast/join_key": thing.join_key, "feast/type": thing.type})


def feature_view_spec(view: ViewDefinition, project: str) -> dg.AssetSpec:
    """The spec of a feature view: key, description, owner, tags, column schema, ttl and source as Feast has them."""
    types = {key: view.join_key_types.get(key, "unknown") for key in view.join_keys}
    keys = [dg.TableColumn(key, f"join key, {type}".removesuffix(", unknown")) for key, type in types.items()]
    keys += [dg.TableColumn(view.timestamp_field, "timestamp")] if view.timestamp_field else []
    facts = {
        COLUMN_SCHEMA: _schema(view.features, keys),
        "feast/source": mask_credentials(view.source),
        "feast/ttl": str(timedelta(seconds=view.ttl_seconds)) if view.ttl_seconds else "unlimited",
        "feast/online": view.online,
    }
    if not view.features:
        facts["feast/schema"] = "None is defined: Feast infers it from the source's columns when it applies the view."
    name = {"batch": "Feature view", "stream": "Stream feature view", "label": "Label view"}[view.kind]
    return _spec(view, project, name, [], facts)


def ttl_freshness_policy(view: ViewDefinition) -> dg.FreshnessPolicy | None:
    """A policy that fails if the view was not materialized for its ttl, after which its values count as missing.

    None for a view without a ttl, or with one below a minute.
    """
    ttl = timedelta(seconds=view.ttl_seconds or 0)
    return dg.FreshnessPolicy.time_window(fail_window=ttl) if ttl > _SHORTEST_POLICY else None


def noun(thing: Definition) -> str:
    """The kind of a definition in words, such as ``feature view``."""
    nouns = {ViewDefinition: "feature view", OnDemandViewDefinition: "on-demand feature view"}
    nouns |= {SourceDefinition: "source", ServiceDefinition: "feature service", EntityDefinition: "entity"}
    nouns |= {SavedDatasetDefinition: "saved dataset", PermissionDefinition: "permission", ProjectDefinition: "project"}
    return nouns[type(thing)]


def _spec(thing: Definition, project: str, noun: str, prefix: Sequence[str], facts: Mapping[str, Any]) -> dg.AssetSpec:
    key = asset_name(thing.name)  # a source without a name has its path as name
    original = {"feast/name": mask_credentials(thing.name)} if key != thing.name else {}
    tags = {"feast/tags": dict(thing.tags)} if thing.tags else {}
    tags |= {"feast/permissions": list(thing.permissions)} if thing.permissions else {}
    return dg.AssetSpec(
        key=[*prefix, key],
        description=thing.description
        or str(
            markdown.formatted("{} {} of Feast project {}.", noun, markdown.code(thing.name), markdown.code(project))
        ),
        owners=_owners(thing.owner),
        tags={f"feast/{k}": v for k, v in thing.tags.items() if _TAG_VALUE.fullmatch(v) and _TAG_VALUE.fullmatch(k)},
        metadata={"feast/project": project, **facts, **tags, **original},
        kinds={"feast"},
    )


def _schema(features: Sequence[Mapping[str, str]], first: Sequence[dg.TableColumn] = ()) -> dg.TableSchema:
    return dg.TableSchema(
        [*first, *(dg.TableColumn(f["name"], f["dtype"], f["description"] or None) for f in features)]
    )


def _owners(owner: str) -> list[str]:
    """Dagster's owners, e-mail addresses or teams, of Feast's owner, which is any text."""
    if _EMAIL.fullmatch(owner):
        return [owner]
    team = re.sub(r"[^A-Za-z0-9_.-]+", "-", owner.removeprefix("team:")).strip("-")
    return [f"team:{team}"] if team else []
