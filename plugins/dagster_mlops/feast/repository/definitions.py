"""Definitions of a Feast repository as plain data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Definition:
    """Attributes of every definition of a Feast repository."""

    name: str
    description: str
    owner: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class OnDemandViewDefinition(Definition):
    """An on-demand feature view, computed from the feature views `views` and the request sources `requests`."""

    mode: str
    features: Sequence[Mapping[str, str]]
    views: Sequence[str]
    requests: Sequence[str]


@dataclass(frozen=True)
class SourceDefinition(Definition):
    """A data source. `type` is Feast's class, `path` a path or table, `batch_source` that of a push source."""

    type: str
    path: str
    timestamp_field: str
    features: Sequence[Mapping[str, str]]
    batch_source: str


@dataclass(frozen=True)
class ServiceDefinition(Definition):
    """A feature service: the names of the features it takes, by view."""

    features: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class EntityDefinition(Definition):
    """An entity and its join key."""

    join_key: str
    type: str


@dataclass(frozen=True)
class Repository:
    """The definitions of a Feast repository."""

    path: Path
    project: str
    views: Sequence[ViewDefinition]
    on_demand_views: Sequence[OnDemandViewDefinition]
    sources: Sequence[SourceDefinition]
    services: Sequence[ServiceDefinition]
    entities: Sequence[EntityDefinition]
