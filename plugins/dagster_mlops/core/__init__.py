"""One piece for each small idea that several tools need: keys, records, checks, processes, files, tables."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.core.asset_keys import AssetLike, asset_input, asset_key
    from dagster_mlops.core.asset_records import (
        dagster_facts,
        latest_records,
        note_loaded,
        upstream_records,
        upstream_refs,
    )
    from dagster_mlops.core.extras import extra
    from dagster_mlops.core.gates import check_problem, require_gates
    from dagster_mlops.core.yaml_fields import (
        Count,
        Duration,
        EnvironmentVariable,
        FromTemplate,
        NotNegative,
        Partitions,
        Positive,
        ResolvedDuration,
        ResolvedPartitions,
        ResolvedText,
        Share,
        Shares,
        YamlFields,
        folder,
    )

__all__ = [
    "AssetLike",
    "Count",
    "Duration",
    "EnvironmentVariable",
    "FromTemplate",
    "NotNegative",
    "Partitions",
    "Positive",
    "ResolvedDuration",
    "ResolvedPartitions",
    "ResolvedText",
    "Share",
    "Shares",
    "YamlFields",
    "asset_input",
    "asset_key",
    "check_problem",
    "dagster_facts",
    "extra",
    "folder",
    "latest_records",
    "note_loaded",
    "require_gates",
    "upstream_records",
    "upstream_refs",
]

# On demand, because the record and the scripts that run in other processes need one small module of this package each.
__getattr__, __dir__ = lazy_door(__name__)
