"""Data quality, drift and performance as asset checks on any dataframe-like asset."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.core.checks import asset_checks
from dagster_mlops.core.metadata import table
from dagster_mlops.evidently.drift import ColumnVerdict, compare
from dagster_mlops.evidently.loading import load_frame, partitions_to_check, reference_partitions_of, refs_of
from dagster_mlops.evidently.metadata_keys import COLUMNS
from dagster_mlops.evidently.normalise import Frame
from dagster_mlops.evidently.performance import measure
from dagster_mlops.evidently.plots import distributions
from dagster_mlops.evidently.quality import examine
from dagster_mlops.evidently.resource import EvidentlyResource
from dagster_mlops.provenance import Report

if TYPE_CHECKING:
    from evidently.core.report import Snapshot

Severity = Literal["WARN", "ERROR"]
_SHOWN = 20  # per-column floats and table rows, worst first; the HTML report has them all


def drift_check(
    *,
    asset: AssetLike,
    reference: AssetLike,
    name: str = "drift",
    columns: Sequence[str] | None = None,
    drift_share: float = 0.5,
    min_rows: int = 500,
    preset: Mapping[str, Any] | None = None,
    reference_partitions: Sequence[str] | None = None,
    severity: Severity = "WARN",
    blocking: bool = False,
    description: str | None = None,
    **check_options: Any,
) -> dg.AssetChecksDefinition:
    """Compare an asset with a reference asset; fails when `drift_share` of the compared columns drifted, or more.

        drift_check(
            asset="predictions",
            reference="training_set",
            columns=["temp", "wind_speed", "carrier"],
            preset={"per_column_method": {"temp": "wasserstein"}, "per_column_threshold": {"temp": 0.3}},
        )

    Args:
        columns: Compared columns; by default all numbers and categories that both sides have.
        min_rows: With fewer rows on either side nothing is judged: the check fails as WARN and says so.
        preset: Options of Evidently's ``DataDriftPreset`` over the defaults here (PSI ≥ 0.2 for numbers, Jensen-Shannon
            distance ≥ 0.1 for categories).
        reference_partitions: Partitions of the reference that are compared with. By default the partition being
            checked; where `reference` is `asset` itself, the one before it.
        severity: Of drift. A crash of the check is always an ERROR.
        blocking: Hold downstream assets back when the check fails with severity ERROR.
        check_options: Whatever else :func:`dagster.asset_check` takes.
    """
    key, reference_key = asset_key(asset), asset_key(reference)

    def evaluate(context: dg.AssetCheckExecutionContext, evidently: EvidentlyResource, id: str) -> dg.AssetCheckResult:
        checked = partitions_to_check(context, key)
        against = reference_partitions or reference_partitions_of(context, key, reference_key, checked)
        current = evidently.frame(load_frame(context, key, checked))
        baseline = evidently.frame(load_frame(context, reference_key, against))
        rows = {"evidently/current_rows": len(current.data), "evidently/reference_rows": len(baseline.data)}
        if min(rows.values()) < min_rows:
            few = f"{min(rows.values())} rows are too few to tell drift from noise (min_rows={min_rows})."
            return _undecided(few, rows)
        result = compare(current, baseline, evidently, columns=columns, preset=preset, tags=[id])
        if not result.compared:
            return _undecided("no column can be compared.", {**rows, **_column_table(result.columns)})
        passed = result.share < drift_share
        report = evidently.report_path(folder=f"{key.to_user_string()}/{name}", name=id)
        record = Report(
            id=id,
            report=str(report) if result.snapshot else "",
            reference=_where(reference_key, against),
            current=_where(key, checked),
            reference_rows=len(baseline.data),
            current_rows=len(current.data),
            drift_share=result.share,
            drifted=tuple(result.drifted[:_SHOWN]),
            passed=passed,
            upstream=refs_of(context, {key: checked, reference_key: against}),
            dagster_run_id=context.run.run_id,
            dagster_asset=key.to_user_string(),
            dagster_partition=",".join(checked or ()),
        )
        metadata = {**rows, **_column_table(result.columns)}
        metadata["evidently/drift_share"] = result.share
        metadata |= {f"evidently/score/{c.column}": c.score for c in result.columns[:_SHOWN] if c.score is not None}
        if result.snapshot:
            folder = f"{key.to_user_string()}/{name}"
            written = _report(evidently, result.snapshot, folder=folder, name=id, record=record.to_dict())
            if not isinstance(written["evidently/report"], dg.PathMetadataValue):
                record = dataclasses.replace(record, report="")
            metadata |= written
        plot = distributions({"reference": baseline.data, "current": current.data}, _drawable(result.columns, current))
        return dg.AssetCheckResult(
            passed=passed,
            severity=dg.AssetCheckSeverity(severity),
            metadata={**record.to_metadata(), **metadata, **({"evidently/plot": plot} if plot else {})},
            description=f"{len(result.drifted)} of {len(result.compared)} columns drifted"
            + (f": {', '.join(result.drifted[:6])}" if result.drifted else "."),
        )

    return _check(
        evaluate,
        key=key,
        name=name,
        deps={reference_key} - {key},
        blocking=blocking,
        options=check_options,
        description=description or f"Columns distributed as in {reference_key.to_user_string()}.",
    )


def data_quality_check(
    *,
    asset: AssetLike,
    name: str = "data_quality",
    columns: Sequence[str] | None = None,
    max_missing_share: float | Mapping[str, float] = 1.0,
    max_malformed_share: float = 0.0,
    min_rows: int = 1,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    no_duplicates_of: Sequence[str] | None = None,
    severity: Severity = "ERROR",
    blocking: bool = False,
    description: str | None = None,
    **check_options: Any,
) -> dg.AssetChecksDefinition:
    """Check one dataframe by itself: enough rows, no missing, malformed, out-of-range or repeated values.

        data_quality_check(
            asset="raw_weather",
            columns=["origin", "time_hour", "temp"],
            max_missing_share={"temp": 0.05},
            ranges={"temp": (-30, 120)},
            no_duplicates_of=["origin", "time_hour"],
            blocking=True,
        )

    All rows are counted; only the HTML report is made of a sample.

    Args:
        columns: Columns that must be there and are checked; by default all that are there. Those named in the other
            options must be there, too.
        max_missing_share: Highest allowed share of missing values, for all columns or by column.
        max_malformed_share: Highest allowed share, in any column, of infinities and of values unlike the others
            (text among numbers).
        ranges: Lowest and highest allowed value by column, both inclusive; missing values are not out of range.
        no_duplicates_of: Columns whose values together identify a row.
        check_options: Whatever else :func:`dagster.asset_check` takes.
    """
    key = asset_key(asset)

    def evaluate(context: dg.AssetCheckExecutionContext, evidently: EvidentlyResource, id: str) -> dg.AssetCheckResult:
        found = examine(
            load_frame(context, key, partitions_to_check(context, key)),
            columns=columns,
            max_missing_share=max_missing_share,
            max_malformed_share=max_malformed_share,
            min_rows=min_rows,
            ranges=ranges or {},
            no_duplicates_of=no_duplicates_of or (),
        )
        metadata = found.to_metadata(_SHOWN)
        sample = found.frame.sample(evidently.max_rows, evidently.seed)
        summary = found.summary(evidently, sample, tags=[id])
        if summary:
            metadata |= _report(evidently, summary, folder=f"{key.to_user_string()}/{name}", name=id)
        plot = distributions({"current": sample.data}, [c for c in found.worst_columns if sample.kinds[c] != "date"])
        return dg.AssetCheckResult(
            passed=not found.problems,
            severity=dg.AssetCheckSeverity(severity),
            metadata={**metadata, **({"evidently/plot": plot} if plot else {})},
            description="; ".join(found.problems[:6]) or f"{found.rows} rows, no finding.",
        )

    return _check(
        evaluate,
        key=key,
        name=name,
        blocking=blocking,
        options=check_options,
        description=description or "Enough rows, none missing, malformed, out of range or repeated.",
    )


def performance_check(
    *,
    asset: AssetLike,
    target: str,
    prediction: str,
    bounds: Mapping[str, float] | None = None,
    task: Literal["classification", "regression"] = "classification",
    name: str = "performance",
    labels: AssetLike | None = None,
    on: str | None = None,
    reference: AssetLike | None = None,
    reference_partitions: Sequence[str] | None = None,
    max_drop: float = 0.1,
    threshold: float = 0.5,
    min_labels: int = 200,
    severity: Severity = "WARN",
    blocking: bool = False,
    description: str | None = None,
    **check_options: Any,
) -> dg.AssetChecksDefinition:
    """Measure predictions against the labels that have arrived so far.

        performance_check(
            asset="predictions", target="late", prediction="probability", labels="arrivals", on="flight_id",
            bounds={"roc_auc": 0.65}, reference="validation_predictions", max_drop=0.05,
        )

    Rows without a label yet are left out and counted. With fewer than `min_labels` labelled rows, or labels of one
    class only, nothing can be said: the check fails as WARN, which never blocks.

    Args:
        target: Column of the labels: true/false or 1/0 for classification, a number for regression.
        prediction: Column of the predictions: the probability of 1 for classification, a number for regression.
        bounds: Lowest allowed roc_auc, f1, precision, recall, accuracy, r2; highest allowed log_loss, rmse, mae.
        labels: Asset that holds `target`, joined by column `on`; by default `target` is a column of `asset`.
        reference: Asset with both columns, e.g. the validation predictions: no metric may be worse by more than
            `max_drop`, relatively.
        threshold: Probability from which a row counts as predicted 1.
        check_options: Whatever else :func:`dagster.asset_check` takes.
    """
    key = asset_key(asset)
    label_key = asset_key(labels) if labels else None
    reference_key = asset_key(reference) if reference else None
    if (label_key is None) != (on is None):
        raise dg.DagsterInvalidDefinitionError(
            f"performance_check of {key.to_user_string()}: 'labels' and 'on' go together. "
            "Name the asset with the labels and the column that both share, or neither."
        )

    def evaluate(context: dg.AssetCheckExecutionContext, evidently: EvidentlyResource, id: str) -> dg.AssetCheckResult:
        checked = partitions_to_check(context, key)
        predictions = load_frame(context, key, checked)
        if label_key and on:
            known = load_frame(context, label_key, reference_partitions_of(context, key, label_key, checked))
            known = known.loc[:, [on, target]].dropna().drop_duplicates(subset=[on], keep="last")
            predictions = predictions.drop(columns=target, errors="ignore").merge(known, how="left", on=on)
        baseline = None
        if reference_key:
            against = reference_partitions or reference_partitions_of(context, key, reference_key, checked)
            baseline = load_frame(context, reference_key, against)
        found = measure(
            predictions,
            baseline,
            evidently,
            target=target,
            prediction=prediction,
            task=task,
            bounds=bounds or {},
            max_drop=max_drop,
            threshold=threshold,
            min_labels=min_labels,
            tags=[id],
        )
        metadata: dict[str, Any] = found.to_metadata()
        if found.undecided or found.snapshot is None:
            return _undecided(found.undecided, metadata)
        metadata |= _report(evidently, found.snapshot, folder=f"{key.to_user_string()}/{name}", name=id)
        plot = distributions(found.plotted, [prediction])
        return dg.AssetCheckResult(
            passed=not found.problems,
            severity=dg.AssetCheckSeverity(severity),
            metadata={**metadata, **({"evidently/plot": plot} if plot else {})},
            description="; ".join(found.problems) or ", ".join(f"{m} {v:.4f}" for m, v in found.metrics.items()),
        )

    return _check(
        evaluate,
        key=key,
        name=name,
        deps={k for k in (label_key, reference_key) if k} - {key},
        blocking=blocking,
        options=check_options,
        description=description or f"'{prediction}' against '{target}', where labels have arrived.",
    )


def _check(
    evaluate: Callable[[dg.AssetCheckExecutionContext, EvidentlyResource, str], dg.AssetCheckResult],
    *,
    key: dg.AssetKey,
    name: str,
    blocking: bool,
    description: str,
    options: Mapping[str, Any],
    deps: Collection[dg.AssetKey] = (),
) -> dg.AssetChecksDefinition:
    def judge(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        partition = f"-{','.join(context.partition_keys)}" if context.has_partition_key else ""
        return evaluate(context, context.resources.evidently, f"{context.run.run_id}{partition}")

    return asset_checks(
        asset=key,
        tool="evidently",
        judges={name: (description, judge)},
        blocking=blocking,
        required_resource_keys=["evidently"],
        options={**options, "additional_deps": [*sorted(deps), *options.get("additional_deps", ())]},
    )


def _report(evidently: EvidentlyResource, snapshot: "Snapshot", **options: Any) -> dict[str, Any]:
    """The path of the written report, or why it could not be written: a report never costs a verdict."""
    try:
        return {"evidently/report": dg.MetadataValue.path(str(evidently.save(snapshot, **options)))}
    except Exception as error:  # noqa: BLE001 - see above
        return {"evidently/report": f"Not written: {type(error).__name__}: {error}"}


def _undecided(why: str, metadata: Mapping[str, Any]) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=False, severity=dg.AssetCheckSeverity.WARN, description=f"Not judged: {why}", metadata=dict(metadata)
    )


def _column_table(columns: Sequence[ColumnVerdict]) -> dict[str, Any]:
    rows = [
        {
            "column": c.column,
            "verdict": c.verdict,
            "score": "" if c.score is None else f"{c.score:.4f}",
            "threshold": "" if c.threshold is None else f"{c.threshold:g}",
            "method": c.method,
        }
        for c in columns[:_SHOWN]
    ]
    return table(COLUMNS, rows)


def _drawable(columns: Sequence[ColumnVerdict], current: Frame) -> list[str]:
    return [c.column for c in columns if c.method and c.column in current.kinds]


def _where(key: dg.AssetKey, partitions: Sequence[str] | None) -> str:
    return key.to_user_string() + (f"[{','.join(partitions)}]" if partitions else "")
