"""The one partition of a step whose asset keeps a record of each."""

import dagster as dg

from dagster_mlops.errors import PredictionError


def scored_partition(context: dg.AssetExecutionContext) -> str:
    """The partition of a step; empty for an asset without partitions.

    Raises:
        PredictionError: there are several.
    """
    if context.assets_def.partitions_def is None:
        return ""
    if context.has_partition_key_range and len(context.partition_keys) > 1:
        raise PredictionError(
            "Partitions are scored and labelled one by one, so that each has its own record. Leave out "
            "backfill_policy=BackfillPolicy.single_run()."
        )
    return context.partition_keys[0]
