"""Performance as an asset check: predictions against the labels that have arrived so far."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import dagster as dg

from dagster_mlops.core import bounds as core_bounds
from dagster_mlops.core.argument_types import Names, refuse_mistyped
from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.core.bounds import Range, refuse_useless
from dagster_mlops.core.checks import asset_checks
from dagster_mlops.core.metadata import table
from dagster_mlops.core.resources import capable_resource
from dagster_mlops.evaluation.checks import direction
from dagster_mlops.monitoring.comparison.measure import ToolReport
from dagster_mlops.monitoring.frames import load_frame, partitions_to_check, reference_partitions_of
from dagster_mlops.monitoring.performance.metrics import DEFAULTS, NAMES, Metric, Task, by_name, number
from dagster_mlops.monitoring.results import Severity, evaluation_id, judged, saved_report, undecided, with_deps

_MOST_SEGMENTS = 10
_FEW_BLANKS, _MOST_BLANKS = 20, 0.1  # rows with a label and without a prediction, and their share, that are a fault


@runtime_checkable
class ReportsPerformance(Protocol):
    """A resource of a tool that reports on labelled predictions."""

    def performance_report(
        self, labelled: Any, *, target: str, prediction: str, task: Task, threshold: float, name: str
    ) -> ToolReport:
        """A report on a pandas frame of labels (0 and 1, or numbers) and predictions, none missing."""
        ...


def performance_check(
    *,
    asset: AssetLike,
    target: str,
    prediction: str,
    bounds: Mapping[str, Range | float] | None = None,
    metrics: Sequence[str] | Mapping[str, Metric] | None = None,
    lower_is_better: Names = (),
    task: Task = "classification",
    name: str = "performance",
    labels: AssetLike | None = None,
    key: str | None = None,
    time: str | None = None,
    segment: str | None = None,
    reference: AssetLike | None = None,
    reference_partitions: Sequence[str] | None = None,
    max_drop: float = 0.1,
    false_alarm_rate: float = 0.01,
    threshold: float = 0.5,
    min_labels: int = 200,
    tool: str | None = None,
    resource_key: str = "",
    severity: Severity = "WARN",
    blocking: bool = False,
    description: str | None = None,
    **check_options: Any,
) -> dg.AssetChecksDefinition:
    """Measure predictions against the labels that have arrived so far; alarm beyond chance only.

        performance_check(
            asset="predictions", target="late", prediction="probability", labels="arrivals", key="flight_id",
            bounds={"roc_auc": 0.65}, reference="validation_predictions", max_drop=0.05,
        )

    Rows without a label yet are left out and counted. ``<tool>/state`` is ``ok``, ``detected`` or ``undecided``: with
    fewer than `min_labels` labels, with labels of one class, or where a metric is out of its limits by no more than
    chance explains. The last one passes, and is not green for :class:`dagster_mlops.promotion.GreenChecks`.

    It fails when more than a tenth of the labelled rows have no finite prediction.

    Until labels are there, the reference lets expect the metrics of a classification: ``<tool>/estimated_roc_auc`` and
    ``estimated_log_loss`` by :func:`estimated_performance`, as notes without a verdict.

    Args:
        target: Column of the labels: true/false or 1/0 for classification, a number for regression.
        prediction: Column of the predictions: the probability of 1 for classification, a number for regression.
        bounds: Lowest allowed value by metric; highest for those of which less is better (log_loss, brier, rmse, mae).
            Each may be a pair (least, greatest) as well, with None for an open end.
        metrics: Metrics that are compared with the reference, beside those in `bounds`: names (roc_auc, f1, precision,
            recall, accuracy, log_loss, brier; r2, rmse, mae), or functions by name, of labels and predictions to a
            number or one per row. By default roc_auc and log_loss, or r2 and mae.
        lower_is_better: Those of your own functions of which less is better.
        labels: Asset that holds `target`, joined by column `key`; by default `target` is a column of `asset`.
        key: Column that identifies a prediction in both assets.
        time: Column to sort both sides by; by default rows are in order of time as they come.
        segment: Column whose ten commonest values are judged by themselves as well.
        reference: Asset with both columns, e.g. the validation predictions: no metric may be worse by more than
            `max_drop`, relatively. In order of time it shows how much windows differ by themselves.
        reference_partitions: Partitions of the reference; see :func:`drift_check`.
        max_drop: Smallest relative drop that matters.
        false_alarm_rate: Share of evaluations that may alarm though nothing has changed, over all metrics and segments.
        threshold: Probability from which a row counts as predicted 1.
        min_labels: With fewer labelled rows, nothing is judged.
        tool: Tool whose resource writes a report (:class:`ReportsPerformance`), such as ``evidently``.
        resource_key: Key of that resource, unless it is `tool`.
        check_options: Anything else that :func:`dagster.asset_check` takes.

    Raises:
        DagsterInvalidDefinitionError: an argument with which the check could never fail or never pass.
    """
    refuse_mistyped(performance_check, locals())
    asset_id, label_id = asset_key(asset), asset_key(labels) if labels else None
    reference_id = asset_key(reference) if reference else None
    prefix, resource_key = tool or "monitoring", resource_key or tool or ""
    what = f"performance_check of {asset_id.to_user_string()}"
    functions_by_user = list(metrics) if isinstance(metrics, Mapping) else []

    def greater_is_better(metric: str) -> bool:
        return False if metric in lower_is_better else direction(metric) is not False

    refuse_useless(
        what,
        {
            "labels and key go together: name the asset with the labels and the column that both share, or neither": (
                label_id is None
            )
            != (key is None),
            f"metrics={metrics!r} is not a list of some": metrics is not None and not metrics,
        },
    )
    names: list[str] = list(dict.fromkeys([*(metrics or (DEFAULTS[task] if reference else ())), *(bounds or {})]))
    metric_names = {*NAMES[task], *functions_by_user}
    refuse_useless(
        what,
        {
            **{
                f"{task} has no metric {m!r}; there are {', '.join(NAMES[task])}": m not in metric_names
                for m in [*names, *lower_is_better]
            },
            "without bounds and reference no predictions could fail it": not bounds and reference is None,
            f"max_drop={max_drop} is below 0": not max_drop >= 0,
            f"max_drop={max_drop} is more than any metric can lose": max_drop >= 1
            and not bounds
            and set(names) <= {"roc_auc", "f1", "precision", "recall", "accuracy"},
            f"false_alarm_rate={false_alarm_rate} is not between 0 and 0.5": not 0 < false_alarm_rate < 0.5,
            f"threshold={threshold} is not between 0 and 1": not 0 <= threshold <= 1,
            f"min_labels={min_labels} is less than 1": not min_labels >= 1,
        },
    )
    limits = core_bounds.ranges(what, bounds or {}, greater_is_better)
    functions = by_name([n for n in names if n not in functions_by_user], task, threshold)
    functions |= metrics if isinstance(metrics, Mapping) else {}

    def evaluate(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        # For steps, not for code locations.
        from dagster_mlops.monitoring.performance.judgement import Terms
        from dagster_mlops.monitoring.performance.labelled import clean, with_labels, without_prediction
        from dagster_mlops.monitoring.performance.parts import judge_parts
        from dagster_mlops.monitoring.plots import distributions

        id, checked = evaluation_id(context), partitions_to_check(context, asset_id)
        predictions = load_frame(context, asset_id, checked)
        if label_id and key:
            truth = load_frame(context, label_id, reference_partitions_of(context, asset_id, label_id, checked))
            predictions = with_labels(predictions, truth, key, target)
        columns = {"target": target, "prediction": prediction, "task": task, "segment": segment}
        labelled = clean(_sorted(predictions, time, "the checked asset"), whose="the checked asset", **columns)
        metadata: dict[str, Any] = {
            f"{prefix}/rows": len(predictions),
            f"{prefix}/labelled": len(labelled),
            f"{prefix}/unlabelled": len(predictions) - len(labelled),
            f"{prefix}/without_prediction": (blanks := without_prediction(predictions, target, prediction)),
            f"{prefix}/false_alarm_rate": false_alarm_rate,
        }
        if blanks >= _FEW_BLANKS and blanks > _MOST_BLANKS * (blanks + len(labelled)):
            text = f"{blanks:,} of {blanks + len(labelled):,} rows with a label have no finite prediction"
            return judged(prefix, text, metadata, severity=severity, otherwise="")
        baseline = None
        if reference_id:
            against = reference_partitions or reference_partitions_of(context, asset_id, reference_id, checked)
            frame = load_frame(context, reference_id, against)
            baseline = clean(_sorted(frame, time, "the reference"), whose="the reference", **columns)
            if task == "classification" and len(labelled) < len(predictions):
                metadata |= _estimates(prefix, baseline, predictions, target, prediction, threshold)
        for rows, where in ((labelled, ""), (baseline, "in the reference, ")):
            if rows is not None and (reason := _too_little(rows, target, task, min_labels)):
                return undecided(prefix, f"{where}{reason}", metadata)
        greater = frozenset(filter(greater_is_better, functions))
        terms = Terms(functions, greater, limits, max_drop, false_alarm_rate)
        lines = judge_parts(labelled, baseline, target, prediction, terms, segment=segment, min_labels=min_labels)
        pair = labelled[target].to_numpy(), labelled[prediction].to_numpy(dtype=float)
        metadata |= {f"{prefix}/{m}": number(f, *pair) for m, f in by_name(NAMES[task], task, threshold).items()}
        for line in lines:
            if not line.segment:
                metadata |= {f"{prefix}/{line.metric}": line.value, f"{prefix}/{line.metric}_error": line.error}
        metadata |= table(f"{prefix}/metrics", [line.row() for line in lines])
        if tool:
            tool_report = capable_resource(context, resource_key, ReportsPerformance)
            place = {"folder": f"{asset_id.to_user_string()}/{name}", "name": id}
            facts = {"target": target, "prediction": prediction, "task": task, "threshold": threshold, "name": id}
            metadata |= saved_report(
                tool, lambda: tool_report.performance_report(labelled, **facts).save(**place, record={})
            )
        sides: dict[str, Any] = {prediction: labelled[[prediction]]}
        if task == "classification":
            sides = {f"{target} = {c}": labelled.loc[labelled[target] == c, [prediction]] for c in (0, 1)}
        metadata |= distributions(f"{prefix}/plot", sides, [prediction])
        problems = [line.sentence() for line in lines if line.state == "detected"]
        doubts = [line.sentence() for line in lines if line.state == "undecided"]
        if doubts and not problems:
            return undecided(prefix, "; ".join(doubts[:6]), metadata)
        values = ", ".join(f"{line.metric} {line.value:.4f}" for line in lines if not line.segment)
        return judged(prefix, "; ".join(problems[:6]), metadata, severity=severity, otherwise=values)

    return asset_checks(
        asset=asset_id,
        tool=prefix,
        judges={name: (description or f"'{prediction}' against '{target}', where labels have arrived.", evaluate)},
        blocking=blocking,
        required_resource_keys=[resource_key] if tool else [],
        options=with_deps(check_options, {k for k in (label_id, reference_id) if k} - {asset_id}),
    )


def _estimates(
    prefix: str, baseline: Any, predictions: Any, target: str, prediction: str, threshold: float
) -> dict[str, Any]:
    """The metrics that predictions let expect until their labels are there; or why not, which costs no verdict."""
    from dagster_mlops.monitoring.performance.estimate import estimated_performance

    try:
        scores = predictions[prediction].dropna().to_numpy(dtype=float)
        estimates = estimated_performance(
            baseline[target], baseline[prediction], scores, metrics=DEFAULTS["classification"], threshold=threshold
        )
    except Exception as error:  # noqa: BLE001 - see above
        return {f"{prefix}/estimate": f"Not estimated: {type(error).__name__}: {error}"[:500]}
    return {f"{prefix}/estimated_{e.metric}": e.value for e in estimates} | {
        f"{prefix}/estimated_{e.metric}_error": e.error for e in estimates if math.isfinite(e.error)
    }


def _sorted(frame: Any, time: str | None, whose: str) -> Any:
    if time is None:
        return frame
    from dagster_mlops.monitoring.performance.labelled import require_columns

    require_columns(frame, [time], whose)
    return frame.sort_values(time, kind="stable")


def _too_little(labelled: Any, target: str, task: Task, min_labels: int) -> str:
    if len(labelled) < min_labels:
        return f"not enough labels: {len(labelled)} rows have one, min_labels={min_labels}."
    if task == "classification" and labelled[target].nunique() < 2:
        return f"all {len(labelled)} labels that have arrived are {labelled[target].iloc[0]}."
    return ""
