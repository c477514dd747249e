"""Asset specs of a Feast repository's definitions."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any

import dagster as dg

from dagster_mlops.core.metadata import COLUMN_SCHEMA, table
from dagster_mlops.feast.metadata_keys import FEATURES
from dagster_mlops.feast.repository.definitions import (
    Definition,
    EntityDefinition,
    OnDemandViewDefinition,
    ServiceDefinition,
    SourceDefinition,
    ViewDefinition,
)
from dagster_mlops.provenance import mask_credentials

_TAG_VALUE = re.compile(r"[A-Za-z0-9_.-]{1,63}")
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
_SHORTEST_POLICY = timedelta(minutes=1)  # Dagster refuses a freshness policy with a shorter window


def get_asset_spec(thing: Definition, project: str) -> dg.AssetSpec:
    """The spec, without upstream assets, of any definition of a Feast repository.

    A view's key is its name. The others have a prefix (``sources/NAME``, ``feature_services/NAME``,
    ``entities/NAME``), because in Feast a source or a service may have the same name as a view.
    """
    if isinstance(thing, ViewDefinition):
        return feature_view_spec(thing, project)
    if isinstance(thing, OnDemandViewDefinition):
        metadata = {COLUMN_SCHEMA: _schema(thing.features), "feast/mode": thing.mode}
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
    assert isinstance(thing, EntityDefinition)
    return _spec(thing, project, "Entity", ["entities"], {"feast/join_key": thing.join_key, "feast/type": thing.type})


def feature_view_spec(view: ViewDefinition, project: str) -> dg.AssetSpec:
    """The spec of a feature view: key, description, owner, tags, column schema, ttl and source as Feast has them."""
    keys = [
        dg.TableColumn(key, "join key" if type in ("unknown", "") else f"join key, {type}")
        for key, type in ((key, view.join_key_types.get(key, "")) for key in view.join_keys)
    ]
    keys += [dg.TableColumn(view.timestamp_field, "timestamp")] if view.timestamp_field else []
    facts = {
        COLUMN_SCHEMA: _schema(view.features, keys),
        "feast/source": mask_credentials(view.source),
        "feast/ttl": str(timedelta(seconds=view.ttl_seconds)) if view.ttl_seconds else "unlimited",
        "feast/online": view.online,
    }
    name = {"batch": "Feature view", "stream": "Stream feature view", "label": "Label view"}[view.kind]
    return _spec(view, project, name, [], facts)


def ttl_freshness_policy(view: ViewDefinition) -> dg.FreshnessPolicy | None:
    """A policy that fails if the view was not materialized for its ttl, after which its values count as missing.

    None for a view without a ttl, or with one below a minute.
    """
    ttl = timedelta(seconds=view.ttl_seconds or 0)
    return dg.FreshnessPolicy.time_window(fail_window=ttl) if ttl > _SHORTEST_POLICY else None


def external_specs(
    things: Collection[Definition],
    keys: Callable[[str, str], list[dg.AssetKey]],
    translate: Callable[..., dg.AssetSpec],
) -> list[dg.AssetSpec]:
    """Specs of definitions that are not executed, with their upstream assets.

    Args:
        things: Label and on-demand views, sources, services, entities.
        keys: Function from ``"views"`` or ``"sources"`` and a name to asset keys.
        translate: Function from a definition to its spec.
    """
    specs = []
    for thing in things:
        parents: list[dg.AssetKey] = []
        if isinstance(thing, ViewDefinition):
            parents = [key for name in thing.sources for key in keys("sources", name)]
        if isinstance(thing, OnDemandViewDefinition):
            parents = [key for name in thing.views for key in keys("views", name)]
            parents += [key for name in thing.requests for key in keys("sources", name)]
        if isinstance(thing, ServiceDefinition):
            parents = [key for name in thing.features for key in keys("views", name)]
        spec = translate(thing)
        specs.append(spec.replace_attributes(deps=[*spec.deps, *dict.fromkeys(parents)]))
    return specs


def _spec(thing: Definition, project: str, noun: str, prefix: Sequence[str], facts: Mapping[str, Any]) -> dg.AssetSpec:
    # A source without a name has its path as name.
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", thing.name).strip("_")
    return dg.AssetSpec(
        key=[*prefix, name],
        description=thing.description or f"{noun} `{thing.name}` of Feast project `{project}`.",
        owners=_owners(thing.owner),
        tags={f"feast/{k}": v for k, v in thing.tags.items() if _TAG_VALUE.fullmatch(v) and _TAG_VALUE.fullmatch(k)},
        metadata={"feast/project": project, **facts, **({"feast/tags": dict(thing.tags)} if thing.tags else {})},
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
