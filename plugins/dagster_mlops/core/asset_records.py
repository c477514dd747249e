"""The records on Dagster's assets: those a step reads about its inputs, and the facts it writes about itself."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import dagster as dg

from dagster_mlops.core.asset_names import closest
from dagster_mlops.core.code_state import CodeState
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.run_files import REPRODUCES_TAG
from dagster_mlops.core.upstream import AssetGraph, CheckError
from dagster_mlops.errors import DagsterMlopsError
from dagster_mlops.provenance import Record, Ref, records_in

AnyContext = dg.AssetExecutionContext | dg.AssetCheckExecutionContext | dg.SensorEvaluationContext
_STUB = "dagster/auto_created_stub_asset"  # metadata of a key that something depends on, and nothing defines
NO_DATA = "dagster_mlops/no_data"
"""Metadata key of an asset that holds no data of its own, such as the trials of a sweep: it is only a dependency."""
_RecordType = TypeVar("_RecordType", bound=Record)


def latest(
    context: AnyContext,
    key: dg.AssetKey,
    record_type: type[_RecordType],
    *,
    partition: str | None = None,
    error: type[DagsterMlopsError],
    hint: str,
) -> _RecordType:
    """The record of a type on the latest materialization of an asset, or of one of its partitions.

    Raises:
        error: There is none; the message ends in the `hint`, or in the asset that is probably meant.
        ProvenanceError: A record cannot be read.
    """
    records = latest_records(context.instance, key, [partition] if partition else None)
    for record in records:
        if isinstance(record, record_type):
            return record
    which = f"partition {partition} of {key.to_user_string()}" if partition else key.to_user_string()
    names = ", ".join(type(record).__name__ for record in records) or "none"
    raise error(
        f"There is no {record_type.__name__} record on the latest materialization of {which} (records there: "
        f"{names}). {misspelt(context, key) or hint}"
    )


def misspelt(context: AnyContext, key: dg.AssetKey) -> str:
    """That no asset has this key, and which one may be meant; empty if one is here or was ever materialized."""
    if isinstance(context, dg.SensorEvaluationContext) and context.repository_def is None:
        return ""  # it was called by hand, outside of a code location
    graph = asset_graph(context)
    assets = [each for each in graph.get_all_asset_keys() if _STUB not in graph.get(each).metadata]
    if key in assets or context.instance.has_asset_key(key):
        return ""
    names = [each.to_user_string() for each in assets]
    close = closest(key, names)
    candidates = f"Did you mean {' or '.join(close)}?" if close else f"There are {', '.join(sorted(names)[:9])}."
    return f"No asset has the key {key.to_user_string()}. {candidates}"


def latest_event(
    instance: dg.DagsterInstance, key: dg.AssetKey, partitions: Sequence[str] | None = None
) -> dg.EventLogRecord | None:
    """The latest materialization of an asset, or of some of its partitions; None where there is none."""
    events = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=key, asset_partitions=partitions), limit=1
    ).records
    return events[0] if events else None


def latest_records(
    instance: dg.DagsterInstance, key: dg.AssetKey, partitions: Sequence[str] | None = None
) -> list[Record]:
    """The records on the latest materialization of an asset (or observation, where it is only observed).

    With `partitions`, the latest of each of them.

    Raises:
        ProvenanceError: a record cannot be read.
    """
    records: list[Record] = []
    for partition in [None] if partitions is None else partitions:
        selection = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition] if partition else None)
        # A dataset that someone else stores is observed, never materialized.
        events = instance.fetch_materializations(selection, limit=1).records
        for event in events or instance.fetch_observations(selection, limit=1).records:
            content = event.event_log_entry.asset_materialization or event.event_log_entry.asset_observation
            records.extend(records_in(content.metadata if content else {}))
    return records


# The records that the inputs of a step were loaded from, by step, as long as it runs.
_LOADED: WeakKeyDictionary[object, dict[dg.AssetKey, list[Record]]] = WeakKeyDictionary()


def note_loaded(context: dg.InputContext, *records: Record) -> None:
    """Note the version that an IO manager has loaded for an input: :func:`upstream_records` of that step returns it.

    Call it from ``load_input``, once per partition. Without it, the latest version counts as the one that was read,
    which is wrong for an input that names an older one, and for one that another run has materialized meanwhile.
    """
    with suppress(dg.DagsterInvariantViolationError):  # loaded by hand, outside of a run
        _LOADED.setdefault(context.step_context, {}).setdefault(context.asset_key, []).extend(records)


@lazy_dataclass(frozen=True)
class Read:
    """The records of an asset that a step has read. Without `loaded`, the asset is only a dependency, not an input."""

    asset: str
    loaded: bool
    records: tuple[Record, ...]


def upstream_reads(context: dg.AssetExecutionContext, key: dg.AssetKey | None = None) -> list[Read]:
    """The assets that this step's asset depends on, each with the records of what was read.

    They are those of the versions that the inputs were loaded from, if the IO manager calls :func:`note_loaded`, else
    the latest. `key` names the asset if the step computes several.

    Raises:
        ProvenanceError: a record cannot be read.
    """
    definition = context.assets_def
    inputs = context.op_execution_context.op_def.input_dict
    loaded = {k for name, k in definition.keys_by_input_name.items() if not inputs[name].dagster_type.is_nothing}
    noted = _LOADED.get(context.get_step_execution_context(), {})
    reads, graph = [], asset_graph(context)
    for dependency in sorted(definition.asset_deps[key or definition.key], key=lambda k: k.to_user_string()):
        if graph.has(dependency) and NO_DATA in graph.get(dependency).metadata:
            continue
        if dependency in noted:
            records = noted[dependency]
        else:
            records = latest_records(context.instance, dependency, partitions_read(context, dependency))
        reads.append(Read(dependency.to_user_string(), dependency in loaded, tuple(records)))
    return reads


def upstream_records(context: dg.AssetExecutionContext, key: dg.AssetKey | None = None) -> list[Record]:
    """Like :func:`upstream_reads`, only the records: how layers compose without importing each other."""
    return [record for read in upstream_reads(context, key) for record in read.records]


def partitions_to_load(context: dg.InputContext) -> list[str]:
    """The partitions of an input; none if it has no partitions.

    In a rerun of a training they are those of the recorded run: a day later, an input with a partition for each day
    maps to one more.
    """
    partitions = list(context.asset_partition_keys) if context.has_asset_partitions else []
    if not partitions or not is_rerun(context):
        return partitions
    recorded = context.instance.get_materialized_partitions(context.asset_key)
    return [partition for partition in partitions if partition in recorded] or partitions


def is_rerun(context: dg.InputContext) -> bool:
    """True in a rerun of a training, where Dagster's instance has only the versions that the recorded run read."""
    with suppress(dg.DagsterInvariantViolationError):  # loaded by hand, outside of a run
        return REPRODUCES_TAG in context.step_context.dagster_run.tags
    return False


def upstream_refs(context: dg.AssetExecutionContext, key: dg.AssetKey | None = None) -> tuple[Ref, ...]:
    """Like :func:`upstream_records`, only the refs, without repeats, in a stable order."""
    return tuple(dict.fromkeys(record.ref for record in upstream_records(context, key)))


def refs_read(reads: Iterable[Read]) -> tuple[Ref, ...]:
    """The refs of what was read, without repeats; an unknown one for each asset that keeps no versions."""
    return tuple(
        dict.fromkeys(
            ref
            for read in reads
            for ref in [record.ref for record in read.records] or [Ref.unknown("asset", read.asset)]
        )
    )


def dagster_facts(context: dg.AssetExecutionContext, key: dg.AssetKey | None = None) -> dict[str, Any]:
    """The fields of a record that name its Dagster run; spread them into a record's constructor."""
    return {
        "dagster_run_id": context.run.run_id,
        "dagster_asset": (key or context.assets_def.key).to_user_string(),
        "dagster_partition": ",".join(context.partition_keys) if context.has_partition_key else "",
    }


def code_facts(state: CodeState, upstream: Iterable[Ref] = ()) -> dict[str, Any]:
    """The fields of a record that name its code, which is the last of what is `upstream`."""
    commit = [Ref("git", "commit", state.commit, at=state.toplevel)] if state.commit else []
    return {"upstream": (*upstream, *commit), "dirty": state.dirty_hash, "code_commit": state.commit}


def asset_graph(context: Any) -> AssetGraph:
    """The assets and checks of the whole code location, not only those of the current run.

    :func:`dagster.materialize` and ``execute_in_process`` have no code location: there, those of the run.
    """
    try:
        repository = context.repository_def
    except CheckError:
        repository = None
    return repository.asset_graph if repository else context.job_def.asset_layer.asset_graph


def partition_checked(context: dg.AssetCheckExecutionContext, key: dg.AssetKey) -> str | None:
    """The partition of `key` that a check is about: the run's, else the one that was materialized last.

    None if the asset has no partitions.
    """
    latest = _latest_partition(context.instance, key)
    return context.partition_key if latest and context.has_partition_key else latest


def partition_guarded(context: dg.AssetExecutionContext, key: dg.AssetKey) -> str | None:
    """Of the partitions of `key` that this step's asset reads, the one that was materialized last.

    None if the asset has no partitions.
    """
    partitions = partitions_read(context, key)
    return None if partitions is None else _latest_partition(context.instance, key, partitions)


def _latest_partition(
    instance: dg.DagsterInstance, key: dg.AssetKey, partitions: Sequence[str] | None = None
) -> str | None:
    event = latest_event(instance, key, partitions)
    return event.partition_key if event else None


def partitions_read(context: dg.AssetExecutionContext, dependency: dg.AssetKey) -> Sequence[str] | None:
    """The partitions of `dependency` that this step's asset depends on; None if it has no partitions."""
    graph = asset_graph(context)
    if not graph.has(dependency) or not graph.get(dependency).is_partitioned:
        return None
    names = [name for name, key in context.assets_def.keys_by_input_name.items() if key == dependency]
    return list(context.asset_partition_keys_for_input(names[0]))
