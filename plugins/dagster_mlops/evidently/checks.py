"""Data quality, drift and performance as asset checks on any dataframe-like asset."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import dagster as dg

from dagster_mlops import monitoring
from dagster_mlops.core import bounds as core_bounds
from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.core.bounds import Range, refuse_useless
from dagster_mlops.core.checks import asset_checks
from dagster_mlops.evaluation.checks import direction
from dagster_mlops.evidently.metric_names import METRICS
from dagster_mlops.evidently.preset import useless_preset
from dagster_mlops.evidently.resource import EvidentlyResource
from dagster_mlops.monitoring.frames import load_frame, partitions_to_check, reference_partitions_of
from dagster_mlops.monitoring.results import SHOWN, Severity, evaluation_id, saved_report, undecided, with_deps


def drift_check(
    *, asset: AssetLike, reference: AssetLike, preset: Mapping[str, Any] | None = None, **options: Any
) -> dg.AssetChecksDefinition:
    """Compare an asset with a reference; fails when enough columns drifted, one drifted far, or one is broken.

        drift_check(
            asset="predictions",
            reference="training_set",
            columns=["temp", "wind_speed", "carrier"],
            preset={"per_column_method": {"temp": "wasserstein"}, "per_column_threshold": {"temp": 0.3}},
        )

    Args:
        preset: Options of Evidently's ``DataDriftPreset`` over the defaults here (PSI ≥ 0.2 for numbers, Jensen-Shannon
            distance ≥ 0.1 for categories).
        options: Those of :func:`dagster_mlops.monitoring.drift_check`: `columns`, `drift_share`, `min_rows`, ….

    Raises:
        DagsterInvalidDefinitionError: an option or method that Evidently does not have, or one without effect.
    """
    what = f"drift_check of {asset_key(asset).to_user_string()}"
    refuse_useless(what, useless_preset(preset or {}, options.get("columns")))
    return monitoring.drift_check(asset=asset, reference=reference, options=preset, tool="evidently", **options)


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
        check_options: Anything else that :func:`dagster.asset_check` takes.
    """
    key = asset_key(asset)
    shares = max_missing_share if isinstance(max_missing_share, Mapping) else {"all columns": max_missing_share}
    shares = {**{f"max_missing_share of {c}": s for c, s in shares.items()}, "max_malformed_share": max_malformed_share}
    refuse_useless(
        f"data_quality_check of {key.to_user_string()}",
        {
            **{f"{name}={share} is not between 0 and 1": not 0 <= share <= 1 for name, share in shares.items()},
            **{
                f"no number is in the range {low} to {high} of {c!r}": not low <= high
                for c, (low, high) in (ranges or {}).items()
            },
            f"min_rows={min_rows} is less than 0": min_rows < 0,
        },
    )

    def evaluate(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        # For steps, not for code locations.
        from dagster_mlops.evidently.quality import examine
        from dagster_mlops.monitoring.plots import distributions

        evidently: EvidentlyResource = context.resources.evidently
        id = evaluation_id(context)
        quality = examine(
            load_frame(context, key, partitions_to_check(context, key)),
            columns=columns,
            max_missing_share=max_missing_share,
            max_malformed_share=max_malformed_share,
            min_rows=min_rows,
            ranges=ranges or {},
            no_duplicates_of=no_duplicates_of or (),
        )
        metadata = quality.to_metadata(SHOWN)
        sample = quality.frame.sample(evidently.max_rows, evidently.seed)
        summary = quality.summary(evidently, sample, tags=[id])
        if summary:
            folder = f"{key.to_user_string()}/{name}"
            metadata |= saved_report("evidently", evidently.save, snapshot=summary, folder=folder, name=id)
        drawable = [f.column for f in quality.findings if sample.kinds.get(f.column) not in (None, "date")]
        return dg.AssetCheckResult(
            passed=not quality.problems,
            severity=dg.AssetCheckSeverity(severity),
            metadata={**metadata, **distributions("evidently/plot", {"current": sample.data}, drawable)},
            description="; ".join(quality.problems[:6]) or f"{quality.rows} rows, no finding.",
        )

    return asset_checks(
        asset=key,
        tool="evidently",
        judges={name: (description or "Enough rows, none missing, malformed, out of range or repeated.", evaluate)},
        blocking=blocking,
        required_resource_keys=["evidently"],
        options=check_options,
    )


def performance_check(
    *,
    asset: AssetLike,
    target: str,
    prediction: str,
    bounds: Mapping[str, Range | float] | None = None,
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
        bounds: Lowest allowed roc_auc, f1, precision, recall, accuracy, r2; highest allowed log_loss, rmse, mae. Each
            may be a pair (least, greatest) as well, with None for an open end.
        labels: Asset that holds `target`, joined by column `on`; by default `target` is a column of `asset`.
        reference: Asset with both columns, e.g. the validation predictions: no metric may be worse by more than
            `max_drop`, relatively.
        threshold: Probability from which a row counts as predicted 1.
        check_options: Anything else that :func:`dagster.asset_check` takes.
    """
    key = asset_key(asset)
    label_key = asset_key(labels) if labels else None
    reference_key = asset_key(reference) if reference else None
    if (label_key is None) != (on is None):
        raise dg.DagsterInvalidDefinitionError(
            f"performance_check of {key.to_user_string()}: 'labels' and 'on' go together. "
            "Name the asset with the labels and the column that both share, or neither."
        )
    what = f"performance_check of {key.to_user_string()}"
    limits = core_bounds.ranges(what, bounds or {}, direction)
    refuse_useless(
        what,
        {
            **{
                f"{task} has no metric {m!r}; there are {', '.join(METRICS[task])}": m not in METRICS[task]
                for m in limits
            },
            f"max_drop={max_drop} is below 0": max_drop < 0,
            f"threshold={threshold} is not between 0 and 1": not 0 <= threshold <= 1,
            f"min_labels={min_labels} is less than 1": min_labels < 1,
        },
    )

    def evaluate(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        from dagster_mlops.evidently.performance import Measurement
        from dagster_mlops.monitoring.plots import distributions

        evidently: EvidentlyResource = context.resources.evidently
        id = evaluation_id(context)
        checked = partitions_to_check(context, key)
        predictions = load_frame(context, key, checked)
        if label_key and on:
            truth = load_frame(context, label_key, reference_partitions_of(context, key, label_key, checked))
            truth = truth.loc[:, [on, target]].dropna().drop_duplicates(subset=[on], keep="last")
            predictions = predictions.drop(columns=target, errors="ignore").merge(truth, how="left", on=on)
        baseline = None
        if reference_key:
            against = reference_partitions or reference_partitions_of(context, key, reference_key, checked)
            baseline = load_frame(context, reference_key, against)
        measurement = Measurement(target, prediction, task, limits, max_drop, threshold, min_labels)
        performance = measurement.measure(predictions, baseline, evidently, [id])
        metadata = dict(performance.metadata)
        if performance.undecided or performance.snapshot is None:
            return undecided("evidently", performance.undecided, metadata)
        folder = f"{key.to_user_string()}/{name}"
        metadata |= saved_report("evidently", evidently.save, snapshot=performance.snapshot, folder=folder, name=id)
        return dg.AssetCheckResult(
            passed=not performance.problems,
            severity=dg.AssetCheckSeverity(severity),
            metadata={**metadata, **distributions("evidently/plot", performance.plotted, [prediction])},
            description="; ".join(performance.problems)
            or ", ".join(f"{m} {v:.4f}" for m, v in performance.metrics.items()),
        )

    return asset_checks(
        asset=key,
        tool="evidently",
        judges={name: (description or f"'{prediction}' against '{target}', where labels have arrived.", evaluate)},
        blocking=blocking,
        required_resource_keys=["evidently"],
        options=with_deps(check_options, {k for k in (label_key, reference_key) if k} - {key}),
    )
