"""One piece for each small idea that several tools need: keys, records, checks, processes, files, tables."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.core.asset_keys import AssetLike as AssetLike
    from dagster_mlops.core.asset_keys import asset_input as asset_input
    from dagster_mlops.core.asset_keys import asset_key as asset_key
    from dagster_mlops.core.asset_names import validate_asset_names as validate_asset_names
    from dagster_mlops.core.asset_records import dagster_facts as dagster_facts
    from dagster_mlops.core.asset_records import latest_records as latest_records
    from dagster_mlops.core.asset_records import note_loaded as note_loaded
    from dagster_mlops.core.asset_records import upstream_records as upstream_records
    from dagster_mlops.core.asset_records import upstream_refs as upstream_refs
    from dagster_mlops.core.extras import extra as extra
    from dagster_mlops.core.gates import check_problem as check_problem
    from dagster_mlops.core.gates import require_gates as require_gates
    from dagster_mlops.core.yaml_fields import Count as Count
    from dagster_mlops.core.yaml_fields import Duration as Duration
    from dagster_mlops.core.yaml_fields import EnvironmentVariable as EnvironmentVariable
    from dagster_mlops.core.yaml_fields import FromTemplate as FromTemplate
    from dagster_mlops.core.yaml_fields import NotNegative as NotNegative
    from dagster_mlops.core.yaml_fields import Partitions as Partitions
    from dagster_mlops.core.yaml_fields import Positive as Positive
    from dagster_mlops.core.yaml_fields import ResolvedDuration as ResolvedDuration
    from dagster_mlops.core.yaml_fields import ResolvedPartitions as ResolvedPartitions
    from dagster_mlops.core.yaml_fields import ResolvedText as ResolvedText
    from dagster_mlops.core.yaml_fields import Share as Share
    from dagster_mlops.core.yaml_fields import Shares as Shares
    from dagster_mlops.core.yaml_fields import YamlFields as YamlFields
    from dagster_mlops.core.yaml_fields import folder as folder

# On demand, because the record and the scripts that run in other processes need one small module of this package each.
__getattr__, __dir__ = lazy_door(__name__)
