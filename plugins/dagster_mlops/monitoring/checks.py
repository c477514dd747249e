"""Drift of any dataframe-like asset as an asset check, by any measuring tool."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.core.bounds import refuse_useless
from dagster_mlops.core.checks import asset_checks
from dagster_mlops.core.metadata import table
from dagster_mlops.core.resources import capable_resource
from dagster_mlops.monitoring.frames import load_frame, partitions_to_check, reference_partitions_of, refs_of
from dagster_mlops.monitoring.measure import Comparison, Measures, compare
from dagster_mlops.monitoring.normalise import normalise
from dagster_mlops.provenance import Report, mask_credentials

Severity = Literal["WARN", "ERROR"]
SHOWN = 20  # per-column floats and table rows, worst first; a tool's report has them all


def drift_check(
    *,
    asset: AssetLike,
    reference: AssetLike,
    tool: str,
    resource_key: str = "",
    name: str = "drift",
    columns: Sequence[str] | None = None,
    drift_share: float = 0.5,
    missing_change: float = 0.1,
    min_rows: int = 500,
    options: Mapping[str, Any] | None = None,
    reference_partitions: Sequence[str] | None = None,
    severity: Severity = "WARN",
    blocking: bool = False,
    description: str | None = None,
    **check_options: Any,
) -> dg.AssetChecksDefinition:
    """Compare an asset with a reference; fails when `drift_share` of the compared columns drifted, or one is broken.

        drift_check(asset="predictions", reference="training_set", tool="evidently", columns=["temp"])

    Args:
        tool: The measuring tool: the first part of the names of metadata, and of its resource unless that has another.
        resource_key: The measuring tool's resource, such as ``EvidentlyResource``; see :class:`Measures`.
        columns: Compared columns; by default all numbers and categories that both sides have.
        missing_change: A column is broken, and the check fails, when its share of missing or malformed values is larger
            than in the reference by more than this; also when it is gone, empty or of another kind.
        min_rows: With fewer rows on either side nothing is judged: the check fails as WARN and says so.
        options: The measuring tool's own options.
        reference_partitions: Partitions of the reference that are compared with. By default the partition being
            checked; where `reference` is `asset` itself, the one before it.
        severity: Severity of drift. A crash of the check is always an ERROR.
        blocking: Hold downstream assets back when the check fails with severity ERROR.
        check_options: Anything else that :func:`dagster.asset_check` takes.
    """
    key, reference_key = asset_key(asset), asset_key(reference)
    resource_key = resource_key or tool
    refuse_useless(
        f"drift_check of {key.to_user_string()}",
        {
            f"drift_share={drift_share} is not above 0 and at most 1": not 0 < drift_share <= 1,
            f"missing_change={missing_change} is not between 0 and 1": not 0 <= missing_change <= 1,
            f"min_rows={min_rows} is less than 1": min_rows < 1,
            "columns is empty": columns is not None and not columns,
        },
    )

    def evaluate(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        from dagster_mlops.monitoring.plots import distributions  # for steps, not for code locations

        measure = capable_resource(context, resource_key, Measures)
        id = evaluation_id(context)
        checked = partitions_to_check(context, key)
        against = reference_partitions or reference_partitions_of(context, key, reference_key, checked)
        current = normalise(load_frame(context, key, checked)).sample(measure.max_rows, measure.seed)
        baseline = normalise(load_frame(context, reference_key, against)).sample(measure.max_rows, measure.seed)
        rows = {f"{tool}/current_rows": len(current.data), f"{tool}/reference_rows": len(baseline.data)}
        if min(rows.values()) < min_rows:
            few = f"{min(rows.values())} rows are too few to tell drift from noise (min_rows={min_rows})."
            return undecided(few, rows)
        result = compare(
            current, baseline, measure, columns=columns, options=options, missing_change=missing_change, name=id
        )
        if not result.compared:
            return undecided("no column can be compared.", {**rows, **_column_table(tool, result)})
        passed = result.share < drift_share and not result.broken
        place = {"folder": f"{key.to_user_string()}/{name}", "name": id}
        report = str(result.report.path(**place)) if result.report else ""
        record = Report(
            id=id,
            tool=tool,
            report=report,
            reference=_where(reference_key, against),
            current=_where(key, checked),
            reference_rows=len(baseline.data),
            current_rows=len(current.data),
            drift_share=result.share,
            drifted=tuple(result.drifted[:SHOWN]),
            passed=passed,
            upstream=refs_of(context, {key: checked, reference_key: against}),
            dagster_run_id=context.run.run_id,
            dagster_asset=key.to_user_string(),
            dagster_partition=",".join(checked or ()),
        )
        metadata: dict[str, Any] = {**rows, **_column_table(tool, result)}
        metadata[f"{tool}/drift_share"] = result.share
        metadata |= {f"{tool}/score/{c.column}": c.score for c in result.columns[:SHOWN] if c.score is not None}
        if answer := result.report:
            report = saved_report(tool, answer.save, **place, record=record.to_dict())
            metadata |= report
            if not isinstance(report[f"{tool}/report"], dg.PathMetadataValue):
                record = dataclasses.replace(record, report="")
        drawable = [c.column for c in result.columns if c.method and c.column in current.kinds]
        metadata |= distributions(f"{tool}/plot", {"reference": baseline.data, "current": current.data}, drawable)
        return dg.AssetCheckResult(
            passed=passed,
            severity=dg.AssetCheckSeverity(severity),
            metadata=record.to_metadata(metadata),
            description=_conclusion(result),
        )

    description = description or f"Columns distributed as in {reference_key.to_user_string()}."
    return asset_checks(
        asset=key,
        tool=tool,
        judges={name: (description, evaluate)},
        blocking=blocking,
        required_resource_keys=[resource_key],
        options=with_deps(check_options, {reference_key} - {key}),
    )


def _conclusion(result: Comparison) -> str:
    drifted = ", ".join(result.drifted[:6])
    texts = [f"{len(result.drifted)} of {len(result.compared)} columns drifted{f': {drifted}' if drifted else '.'}"]
    if result.broken:
        texts.insert(0, f"Broken: {'; '.join(f'{c.column} ({c.verdict})' for c in result.broken[:6])}.")
    return " ".join(texts)


def evaluation_id(context: dg.AssetCheckExecutionContext) -> str:
    """The name of a check's evaluation: its run and, where there is one, its partition."""
    partition = f"-{','.join(context.partition_keys)}" if context.has_partition_key else ""
    return f"{context.run.run_id}{partition}"


def with_deps(options: Mapping[str, Any], keys: Collection[dg.AssetKey]) -> dict[str, Any]:
    """The user's options of a check, with more assets that it depends on."""
    return {**options, "additional_deps": [*sorted(keys), *options.get("additional_deps", ())]}


def saved_report(tool: str, save: Callable[..., Path], **options: Any) -> dict[str, Any]:
    """The path of the written report, or why it could not be written: a report never costs a verdict."""
    try:
        return {f"{tool}/report": dg.MetadataValue.path(str(save(**options)))}
    except Exception as error:  # noqa: BLE001 - see above
        return {f"{tool}/report": mask_credentials(f"Not written: {type(error).__name__}: {error}")}


def undecided(why: str, metadata: Mapping[str, Any]) -> dg.AssetCheckResult:
    """The result of a check that cannot judge: it fails as WARN, which never blocks."""
    return dg.AssetCheckResult(
        passed=False, severity=dg.AssetCheckSeverity.WARN, description=f"Not judged: {why}", metadata=dict(metadata)
    )


def _column_table(tool: str, result: Comparison) -> dict[str, Any]:
    rows = [
        {
            "column": c.column,
            "verdict": c.verdict,
            "score": "" if c.score is None else f"{c.score:.4f}",
            "threshold": "" if c.threshold is None else f"{c.threshold:g}",
            "method": c.method,
        }
        for c in result.columns[:SHOWN]
    ]
    return table(f"{tool}/columns", rows)


def _where(key: dg.AssetKey, partitions: Sequence[str] | None) -> str:
    return key.to_user_string() + (f"[{','.join(partitions)}]" if partitions else "")
