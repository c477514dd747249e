"""Drift of any dataframe-like asset as an asset check, by any measuring tool."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from dagster_mlops.core.argument_types import refuse_mistyped
from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.core.bounds import refuse_useless
from dagster_mlops.core.checks import asset_checks
from dagster_mlops.core.metadata import table
from dagster_mlops.core.resources import capable_resource
from dagster_mlops.monitoring.comparison.compare import compare
from dagster_mlops.monitoring.comparison.decision import Decision
from dagster_mlops.monitoring.comparison.measure import Comparison, Measures
from dagster_mlops.monitoring.comparison.segments import judge_segments
from dagster_mlops.monitoring.comparison.structure import FEWEST
from dagster_mlops.monitoring.frames import load_frame, partitions_to_check, reference_partitions_of, refs_of
from dagster_mlops.monitoring.normalise import Frame, normalise, sampled
from dagster_mlops.monitoring.results import (
    SHOWN,
    Severity,
    evaluation_id,
    judged,
    saved_report,
    undecided,
    with_deps,
)
from dagster_mlops.provenance import Report


def drift_check(
    *,
    asset: AssetLike,
    reference: AssetLike,
    tool: str,
    resource_key: str = "",
    name: str = "drift",
    columns: Sequence[str] | None = None,
    drift_share: float = 0.5,
    alarm_at: float | None = 3.0,
    missing_change: float = 0.1,
    new_change: float = 0.5,
    importance: Mapping[str, float] | None = None,
    segment: str | None = None,
    min_rows: int = 500,
    options: Mapping[str, Any] | None = None,
    reference_partitions: Sequence[str] | None = None,
    severity: Severity = "WARN",
    blocking: bool = False,
    description: str | None = None,
    **check_options: Any,
) -> dg.AssetChecksDefinition:
    """Compare an asset with a reference; fails when enough columns drifted, one drifted far, or one is broken.

        drift_check(asset="predictions", reference="training_set", tool="evidently", columns=["temp"])

    The outcome is under ``<tool>/state``: ``ok``, ``detected``, or ``undecided`` where rows are too few to tell. The
    last one passes; :class:`dagster_mlops.promotion.GreenChecks` does not take it for green.

    Args:
        tool: The measuring tool: the first part of the names of metadata, and of its resource unless that has another.
        resource_key: The measuring tool's resource, such as ``EvidentlyResource``; see :class:`Measures`.
        columns: Compared columns; by default all numbers and categories that both sides have.
        drift_share: Share of drifted columns, by importance, from which the check fails.
        alarm_at: A column whose distance is so many times its threshold is an alarm by itself; None: none is.
        missing_change: A column is broken, and the check fails, when its share of missing or malformed values is larger
            than in the reference by more than this; also when it is gone, empty or of another kind.
        new_change: A column is broken, too, when more than this share of its values are outside the range of the
            reference (its middle 99 %) or in categories that the reference has not, or when all of them are one value.
        importance: Weight of a column in the share, 1 by default. One of weight 0 is measured and never an alarm.
        segment: Column of categories: the rows of each of its ten commonest are compared by themselves as well.
        min_rows: With fewer rows on either side distributions are not judged. Broken columns are, from 20 rows on.
        options: The measuring tool's own options.
        reference_partitions: Partitions of the reference that are compared with. By default the partition being
            checked; where `reference` is `asset` itself, the one before it.
        severity: Severity of drift. A crash of the check is always an ERROR.
        blocking: Hold downstream assets back when the check fails with severity ERROR.
        check_options: Anything else that :func:`dagster.asset_check` takes.

    Raises:
        DagsterInvalidDefinitionError: an argument with which the check would say the same of everything.
    """
    refuse_mistyped(drift_check, locals())
    key, reference_key = asset_key(asset), asset_key(reference)
    resource_key = resource_key or tool
    refuse_useless(
        f"drift_check of {key.to_user_string()}",
        {
            f"drift_share={drift_share} is not above 0 and at most 1": not 0 < drift_share <= 1,
            f"missing_change={missing_change} is not between 0 and 1": not 0 <= missing_change <= 1,
            f"new_change={new_change} is not above 0 and at most 1": not 0 < new_change <= 1,
            f"alarm_at={alarm_at} is not 1 or more": alarm_at is not None and not alarm_at >= 1,
            f"min_rows={min_rows} is less than 1": not min_rows >= 1,
            "columns is empty": columns is not None and not columns,
            **useless_importance(importance or {}, columns),
        },
    )
    decision = Decision(drift_share, alarm_at, importance or {})

    def evaluate(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        from dagster_mlops.monitoring.plots import distributions  # for steps, not for code locations

        measure = capable_resource(context, resource_key, Measures)
        id = evaluation_id(context)
        checked = partitions_to_check(context, key)
        against = reference_partitions or reference_partitions_of(context, key, reference_key, checked)
        current, baseline = (
            normalise(sampled(load_frame(context, asset, partitions), measure.max_rows, measure.seed))
            for asset, partitions in ((key, checked), (reference_key, against))
        )
        rows = {f"{tool}/current_rows": len(current.data), f"{tool}/reference_rows": len(baseline.data)}
        fewest = min(rows.values())
        if fewest < min(min_rows, FEWEST):
            return undecided(tool, f"{fewest} rows are too few to tell anything.", rows)

        def compared(current: Frame, baseline: Frame, segment: str = "") -> Comparison:
            return compare(
                current,
                baseline,
                measure if fewest >= min_rows else None,
                columns=columns,
                options=options,
                missing_change=missing_change,
                new_change=new_change,
                name=f"{id}-{segment}" if segment else id,
            )

        result = compared(current, baseline)
        problems = [text] if (text := decision.problem(result)) else []
        metadata: dict[str, Any] = {**rows, **_column_table(tool, result)}
        if segment and fewest >= min_rows:
            of_segments, segments = judge_segments(
                segment, current, baseline, compared, decision, tool=tool, min_rows=min_rows
            )
            problems, metadata = [*problems, *of_segments], {**metadata, **segments}
        if not problems and fewest < min_rows:
            few = f"{fewest} rows are too few to tell drift from noise (min_rows={min_rows})."
            return undecided(tool, few, metadata)
        if not result.compared:
            return undecided(tool, "no column can be compared.", metadata)
        share = decision.share(result)
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
            drift_share=share,
            drifted=tuple(result.drifted[:SHOWN]),
            passed=not problems,
            upstream=refs_of(context, {key: checked, reference_key: against}),
            dagster_run_id=context.run.run_id,
            dagster_asset=key.to_user_string(),
            dagster_partition=",".join(checked or ()),
        )
        metadata[f"{tool}/drift_share"] = share
        metadata |= {f"{tool}/score/{c.column}": c.score for c in result.columns[:SHOWN] if c.score is not None}
        if answer := result.report:
            report = saved_report(tool, answer.save, **place, record=record.to_dict())
            metadata |= report
            if not isinstance(report[f"{tool}/report"], dg.PathMetadataValue):
                record = dataclasses.replace(record, report="")
            if left_out := getattr(answer, "left_out", ""):
                metadata[f"{tool}/report_note"] = left_out
        drawable = [c.column for c in result.columns if c.method and c.column in current.kinds]
        metadata |= distributions(f"{tool}/plot", {"reference": baseline.data, "current": current.data}, drawable)
        return judged(
            tool,
            " ".join(problems),
            record.to_metadata(metadata),
            severity=severity,
            otherwise=decision.summary(result),
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


def useless_importance(importance: Mapping[str, float], columns: Sequence[str] | None) -> dict[str, bool]:
    """Faults of the importance of columns, for :func:`dagster_mlops.core.bounds.refuse_useless`."""
    unknown = sorted(set(importance) - set(columns)) if columns is not None else []
    no_weight = [c for c in columns or () if importance.get(c, 1) == 0]
    return {
        **{f"importance of {c!r} is {w}, not 0 or more": not 0 <= w < math.inf for c, w in importance.items()},
        f"importance names {', '.join(map(repr, unknown))}, which columns lacks": bool(unknown),
        "no column has any importance": columns is not None and bool(columns) and len(no_weight) == len(columns),
    }


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
