"""Blocking checks that hold twice: in their own run, and when a guarded asset runs later.

Dagster's ``blocking=True`` protects downstream assets of the *same* run only. A later run that selects just the
guarded asset would ignore a failed check (https://github.com/dagster-io/dagster/issues/17251), so promotion and
deployment read the latest evaluations themselves.
"""

from collections.abc import Iterable, Mapping

import dagster as dg

from dagster_mlops.core.asset_records import asset_graph, latest_event, partition_guarded
from dagster_mlops.core.check_states import undecided_because
from dagster_mlops.core.upstream import AssetCheckExecutionRecord
from dagster_mlops.errors import GateError

_EVALUATIONS = 1000  # among which that of a partition is searched


def require_gates(
    context: dg.AssetExecutionContext,
    assets: Iterable[dg.AssetKey],
    partitions: Mapping[dg.AssetKey, str] | None = None,
) -> dict[str, bool]:
    """Refuse to go on unless every blocking check of `assets` holds for the current version.

    A blocking check holds when its latest evaluation passed, or failed with severity WARN (which never blocks in
    Dagster either), and judged the latest materialization rather than an earlier one. For an asset with partitions,
    one of them counts: that in `partitions`, else the last one, of those that the guarded asset reads, to be made.

    Returns:
        Every check that was evaluated, blocking or not, as ``asset:check`` → passed: the evidence for a record. A
        check that was undecided holds and is not evidence: False.

    Raises:
        GateError: a blocking check failed, crashed, was never evaluated, or judged an earlier materialization.
    """
    graph = asset_graph(context)
    verdicts: dict[str, bool] = {}
    broken: list[str] = []
    for key in assets:
        partition = (partitions or {}).get(key) or partition_guarded(context, key)
        for check in sorted(graph.get_check_keys_for_assets({key}), key=str):
            name = f"{key.to_user_string()}:{check.name}"
            record = (
                _evaluation_of(context.instance, check, partition)
                if partition
                else context.instance.get_latest_asset_check_evaluation_record(check)
            )
            if record is not None and isinstance(record.evaluation, dg.AssetCheckEvaluation):
                verdicts[name] = record.evaluation.passed and undecided_because(record.evaluation) is None
            problem = check_problem(context.instance, key, record)
            if problem and graph.get_check_spec(check).blocking:
                broken.append(f"{name} ({problem}{f' for partition {partition}' if partition else ''})")
    if broken:
        raise GateError(
            f"{context.assets_def.key.to_user_string()} is guarded by blocking checks that do not hold: "
            f"{', '.join(broken)}. Fix the cause, evaluate the checks once more, then re-run."
        )
    return verdicts


def _evaluation_of(
    instance: dg.DagsterInstance, check: dg.AssetCheckKey, partition: str
) -> AssetCheckExecutionRecord | None:
    """The latest evaluation of a partition's last materialization: a check itself need not have partitions."""
    if materialized := latest_event(instance, check.asset_key, [partition]):
        for record in instance.event_log_storage.get_asset_check_execution_history(check, limit=_EVALUATIONS):
            evaluation = record.evaluation
            target = evaluation.target_materialization_data if isinstance(evaluation, dg.AssetCheckEvaluation) else None
            if record.run_id == materialized.run_id or (target and target.storage_id == materialized.storage_id):
                return record
    return None


def check_problem(instance: dg.DagsterInstance, key: dg.AssetKey, record: AssetCheckExecutionRecord | None) -> str:
    """The reason why the latest evaluation of a check of the asset `key` does not hold; empty if it does."""
    if record is None:
        return "never evaluated"
    evaluation = record.evaluation
    if not isinstance(evaluation, dg.AssetCheckEvaluation):  # still only planned: the check's step died
        return "did not finish"
    if not evaluation.passed and evaluation.severity == dg.AssetCheckSeverity.ERROR:
        return "failed"
    target, latest = evaluation.target_materialization_data, instance.get_latest_materialization_event(key)
    if target is None or latest is None or record.run_id == latest.run_id:
        return ""
    # Partitioned assets are skipped here: their latest event may belong to another partition than the check's.
    materialization = latest.asset_materialization
    if materialization and not materialization.partition and target.timestamp < latest.timestamp:
        return "judged an earlier materialization"
    return ""
