"""Blocking checks that hold twice: in their own run, and again when a guarded asset runs later.

Dagster's ``blocking=True`` protects downstream assets of the *same* run only. A later run that selects just the
guarded asset would pass a failed check by (https://github.com/dagster-io/dagster/issues/17251), so promotion and
deployment read the latest evaluations themselves.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import dagster as dg

from dagster_mlops.core.asset_records import asset_graph, latest_event, partition_guarded
from dagster_mlops.errors import GateError

if TYPE_CHECKING:
    from dagster_mlops.core.upstream import AssetCheckExecutionRecord


# How far back an evaluation of one of many partitions is looked for.
_EVALUATIONS = 1000


def require_gates(
    context: dg.AssetExecutionContext,
    assets: Iterable[dg.AssetKey],
    partitions: Mapping[dg.AssetKey, str] | None = None,
) -> dict[str, bool]:
    """Refuse to go on unless every blocking check of `assets` holds for the version that is there now.

    A blocking check holds when its latest evaluation passed, or failed with severity WARN (which never blocks in
    Dagster either), and judged the latest materialization rather than an earlier one. Of an asset with partitions it is
    the evaluation of one: that in `partitions`, else of those that the guarded asset reads the one made last.

    Returns:
        Every check that was evaluated, blocking or not, as ``asset:check`` → passed: the evidence for a record.

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
                verdicts[name] = record.evaluation.passed
            problem = check_problem(context.instance, key, record)
            if problem and graph.get_check_spec(check).blocking:
                broken.append(f"{name} ({problem}{f' for partition {partition}' if partition else ''})")
    if broken:
        raise GateError(
            f"{context.assets_def.key.to_user_string()} is guarded by blocking checks that do not hold: "
            f"{', '.join(broken)}. Mend the cause, evaluate the checks again, then re-run."
        )
    return verdicts


def _evaluation_of(
    instance: dg.DagsterInstance, check: dg.AssetCheckKey, partition: str
) -> "AssetCheckExecutionRecord | None":
    """The latest evaluation of what a partition was materialized with last: a check itself need not have partitions."""
    if made := latest_event(instance, check.asset_key, [partition]):
        for record in instance.event_log_storage.get_asset_check_execution_history(check, limit=_EVALUATIONS):
            evaluation = record.evaluation
            judged = evaluation.target_materialization_data if isinstance(evaluation, dg.AssetCheckEvaluation) else None
            if record.run_id == made.run_id or (judged and judged.storage_id == made.storage_id):
                return record
    return None


def check_problem(instance: dg.DagsterInstance, key: dg.AssetKey, record: "AssetCheckExecutionRecord | None") -> str:
    """Why the latest evaluation of a check of the asset `key` does not hold, or an empty text when it does."""
    if record is None:
        return "never evaluated"
    evaluation = record.evaluation
    if not isinstance(evaluation, dg.AssetCheckEvaluation):  # still only planned: the check's step died
        return "did not finish"
    if not evaluation.passed and evaluation.severity == dg.AssetCheckSeverity.ERROR:
        return "failed"
    judged, latest = evaluation.target_materialization_data, instance.get_latest_materialization_event(key)
    if judged is None or latest is None or record.run_id == latest.run_id:
        return ""
    # Partitioned assets are skipped here: their latest event may belong to another partition than the one judged.
    materialization = latest.asset_materialization
    if materialization and not materialization.partition and judged.timestamp < latest.timestamp:
        return "judged an earlier materialization"
    return ""
