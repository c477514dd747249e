"""Feature repositories: their definitions, their specs and their registry."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.feast.repository.definitions import Definition as Definition
    from dagster_mlops.feast.repository.definitions import EntityDefinition as EntityDefinition
    from dagster_mlops.feast.repository.definitions import OnDemandViewDefinition as OnDemandViewDefinition
    from dagster_mlops.feast.repository.definitions import PermissionDefinition as PermissionDefinition
    from dagster_mlops.feast.repository.definitions import ProjectDefinition as ProjectDefinition
    from dagster_mlops.feast.repository.definitions import Repository as Repository
    from dagster_mlops.feast.repository.definitions import SavedDatasetDefinition as SavedDatasetDefinition
    from dagster_mlops.feast.repository.definitions import ServiceDefinition as ServiceDefinition
    from dagster_mlops.feast.repository.definitions import SourceDefinition as SourceDefinition
    from dagster_mlops.feast.repository.definitions import ViewDefinition as ViewDefinition
    from dagster_mlops.feast.repository.definitions import feature_view_spec as feature_view_spec
    from dagster_mlops.feast.repository.definitions import get_asset_spec as get_asset_spec
    from dagster_mlops.feast.repository.definitions import ttl_freshness_policy as ttl_freshness_policy
    from dagster_mlops.feast.repository.load import load_repository as load_repository
    from dagster_mlops.feast.repository.load import refresh_repository as refresh_repository

__getattr__, __dir__ = lazy_door(__name__)
