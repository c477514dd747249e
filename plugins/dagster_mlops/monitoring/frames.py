"""The frames a check is about, through the assets' own IO managers, and where they come from."""

from collections.abc import Mapping, Sequence

import dagster as dg

from dagster_mlops.core.arrays import pd
from dagster_mlops.core.asset_records import latest_event, latest_records, misspelt
from dagster_mlops.core.upstream import loaded_value
from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring.normalise import to_pandas
from dagster_mlops.provenance import Ref


def load_frame(
    context: dg.AssetCheckExecutionContext, key: dg.AssetKey, partitions: Sequence[str] | None
) -> "pd.DataFrame":
    """Load an asset inside the check rather than as an input of its step, so that a failed load is a failed check.

    Raises:
        MonitoringError: the asset is not there, or is not a dataframe.
    """
    frames = []
    for partition in partitions or [None]:
        try:
            value = loaded_value(context.op_execution_context, key, partition=partition)
        except Exception as error:
            which = f"{key.to_user_string()}[{partition}]" if partition else key.to_user_string()
            raise MonitoringError(
                f"cannot load {which} through its IO manager: {type(error).__name__}: {error}. "
                + (
                    misspelt(context, key)
                    or "Materialize it before this check, with an IO manager that other processes can read from."
                )
            ) from error
        frames.append(to_pandas(value))
    return frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)


def partitions_to_check(context: dg.AssetCheckExecutionContext, key: dg.AssetKey) -> Sequence[str] | None:
    """The run's partitions; without any, the partition of the asset that was materialized last.

    Raises:
        MonitoringError: the asset is partitioned and nothing was ever materialized.
    """
    if not _is_partitioned(context, key):
        return None
    if context.has_partition_key:
        return list(context.partition_keys)
    if (event := latest_event(context.instance, key)) and event.partition_key:
        return [event.partition_key]
    raise MonitoringError(f"no partition of {key.to_user_string()} was ever materialized. Materialize one first.")


def reference_partitions_of(
    context: dg.AssetCheckExecutionContext, key: dg.AssetKey, other: dg.AssetKey, checked: Sequence[str] | None
) -> Sequence[str] | None:
    """The partitions of `other` that belong to the checked ones: the same; of the checked asset itself, the one before.

    Raises:
        MonitoringError: nothing was named, and nothing follows from the partitions.
    """
    if not _is_partitioned(context, other):
        return None
    if checked and other != key:
        return checked
    definition = context.job_def.asset_layer.get(key).partitions_def
    if checked and definition:
        earlier = definition.get_partition_keys(dynamic_partitions_store=context.instance)
        before = earlier.index(checked[0]) - 1
        if before >= 0:
            return [earlier[before]]
    raise MonitoringError(
        f"{other.to_user_string()} is partitioned, and no partition of it is before or beside "
        f"{key.to_user_string()}{list(checked or ())}. Name some in reference_partitions."
    )


def refs_of(
    context: dg.AssetCheckExecutionContext, assets: Mapping[dg.AssetKey, Sequence[str] | None]
) -> tuple[Ref, ...]:
    """The references of the records on the latest materializations of the assets."""
    records = [r for key, partitions in assets.items() for r in latest_records(context.instance, key, partitions)]
    return tuple(dict.fromkeys(record.ref for record in records))


def _is_partitioned(context: dg.AssetCheckExecutionContext, key: dg.AssetKey) -> bool:
    graph = context.job_def.asset_layer.asset_graph
    return graph.has(key) and graph.get(key).is_partitioned
