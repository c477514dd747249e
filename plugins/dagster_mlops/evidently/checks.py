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
from dagster_mlops.monitoring.results import Severity, evaluation_id, saved_report, undecided, with_deps


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


def data_quality_check(*, asset: AssetLike, **options: Any) -> dg.AssetChecksDefinition:
    """Check one dataframe as it came, with Evidently's summary of it as the report.

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
        options: Those of :func:`dagster_mlops.monitoring.data_quality_check`, which needs no Evidently: `columns`,
            `types`, `ranges`, `categories`, `at_least`, `no_duplicates_of`, `reference`, `time`, `max_age`, ….
    """
    return monitoring.data_quality_check(asset=asset, **{"tool": "evidently", **options})


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
