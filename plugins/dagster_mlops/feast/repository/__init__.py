"""Feature repositories: their definitions, their specs and their registry."""

from dagster_mlops.feast.repository.definitions import (
    Definition,
    EntityDefinition,
    OnDemandViewDefinition,
    Repository,
    ServiceDefinition,
    SourceDefinition,
    ViewDefinition,
    feature_view_spec,
    get_asset_spec,
    ttl_freshness_policy,
)
from dagster_mlops.feast.repository.load import load_repository, refresh_repository

__all__ = [
    "Definition",
    "EntityDefinition",
    "OnDemandViewDefinition",
    "Repository",
    "ServiceDefinition",
    "SourceDefinition",
    "ViewDefinition",
    "feature_view_spec",
    "get_asset_spec",
    "load_repository",
    "refresh_repository",
    "ttl_freshness_policy",
]
