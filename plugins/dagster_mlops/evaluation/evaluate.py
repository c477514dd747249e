"""Evaluates a version: scores it, its rival and the baselines on the same rows, and compares them."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from dagster_mlops.core.arrays import PyFuncModel, np, pd
from dagster_mlops.core.model_formats import StoredFormat
from dagster_mlops.core.model_versions import content_hashes, holder
from dagster_mlops.core.pictures import Picture
from dagster_mlops.core.table_hash import content_hash
from dagster_mlops.errors import EvaluationError, ModelVersionError
from dagster_mlops.evaluation.measure import Evaluation, Part, Plan, SliceBy, measure, slices_of, trivial_baseline
from dagster_mlops.evaluation.metrics import Prediction, Task, estimate, greater_is_better, headline, scored
from dagster_mlops.evaluation.plots import figures
from dagster_mlops.evaluation.predictions import (
    Features,
    Labels,
    in_row_order,
    labelled_rows,
    load_version,
    model_inputs,
    permutation_importance,
    predict,
    read_frame,
    read_groups,
    read_labels,
    read_prediction,
)
from dagster_mlops.promotion.history.log import moves_of
from dagster_mlops.provenance import ModelVersion
from dagster_mlops.tools import HoldsModels


@dataclass(frozen=True)
class Setup:
    """The arguments of an evaluation asset."""

    model: dg.AssetKey
    rows: dg.AssetKey
    label: str
    task: Task | None
    positive: Any
    classes: Sequence[Any] | None
    features: Features
    slices: Sequence[SliceBy]
    baselines: Mapping[str, Callable[..., Any]]
    alias: str
    plan: Plan
    importance_rows: int
    group: str | Callable[..., Any] = ""
    card: Mapping[str, str] = field(default_factory=dict)


def evaluate(
    context: dg.AssetExecutionContext,
    models: HoldsModels,
    record: ModelVersion,
    setup: Setup,
    rows: Any,
    training_rows: Any = None,
) -> tuple[Evaluation, StoredFormat, dict[str, Picture]]:
    """The evaluation of a version, the format that it is stored in, and figures.

    Raises:
        EvaluationError: The rows, the labels or a function of the user's do not fit.
        ModelVersionError: The version cannot be loaded.
    """
    hashes = content_hashes(context, setup.rows)
    rows_hash = hashlib.sha256("\n".join(hashes).encode()).hexdigest() if len(hashes) > 1 else "".join(hashes)
    frame = read_frame(rows)
    labelled = labelled_rows(frame, setup.label, setup.rows)
    groups = read_groups(labelled, setup.group, setup.rows) if setup.group else None
    labels = read_labels(labelled[setup.label], task=setup.task, positive=setup.positive, classes=setup.classes)
    loaded = load_version(context, models, record)
    inputs = model_inputs(loaded.model, labelled, setup.features, setup.label)
    answer = predict(loaded.model, inputs, labels)
    rival_version, rival, no_rival = _rival(context, models, record, labelled, labels, setup)
    baselines = _baselines(labelled, labels, training_rows, setup)

    def part(name: str, mask: Any) -> Part:
        return measure(name, labels, mask, answer, rival, {} if name else baselines, setup.plan, groups)

    overall = part("", np.ones(len(labelled), dtype=bool))
    metrics = ", ".join(f"{name} {metric.value:.4f}" for name, metric in overall.metrics.items())
    context.log.info(f"{record.name} {record.version} on {overall.rows} rows: {overall.why_not or metrics}")
    evaluation = Evaluation(
        model=record.name,
        version=record.version,
        run_id=record.run_id,
        task=labels.task,
        label=setup.label,
        rows_asset=setup.rows.to_user_string(),
        rows_hash=rows_hash or content_hash(frame, tool="mlflow"),
        group=setup.group if isinstance(setup.group, str) else getattr(setup.group, "__name__", "a function"),
        warning="the version was trained on these rows" * any(h in record.datasets.values() for h in hashes),
        unlabelled=len(frame) - len(labelled),
        positive=str(labels.classes[1]) if labels.task == "binary" else "",
        resamples=setup.plan.resamples,
        confidence=setup.plan.confidence,
        seed=setup.plan.seed,
        whole=overall,
        slices=tuple(part(name, mask) for name, mask in slices_of(labelled, setup.slices)),
        alias=setup.alias,
        rival_version=rival_version,
        no_rival=no_rival,
        lower_is_better=tuple(
            name for name in overall.metrics if greater_is_better(name, setup.plan.lower_is_better) is False
        ),
        importance={} if overall.why_not else _importance(loaded.model, inputs, labels, answer, overall, setup),
    )
    return evaluation, loaded.format, figures(evaluation, labels, answer, rival, threshold=setup.plan.threshold)


def _rival(
    context: dg.AssetExecutionContext,
    models: HoldsModels,
    record: ModelVersion,
    labelled: "pd.DataFrame",
    labels: Labels,
    setup: Setup,
) -> tuple[str, Prediction | None, str]:
    """The version that holds the alias, its predictions, and the reason if it cannot be compared with."""
    if not setup.alias:
        return "", None, ""
    champion = holder(models, record.name, setup.alias)
    number = champion.version if champion else ""
    if champion and number == record.version:
        # Evaluated again after its promotion: compare with the version that it replaced.
        moves = [move for move in moves_of(models, record.name, setup.alias) if move.after == number]
        number = moves[-1].before if moves else ""
    if not number:
        return "", None, f"no version held {setup.alias!r} before"
    try:
        rival = load_version(context, models, models.version(record.name, number)).model
        return number, predict(rival, model_inputs(rival, labelled, setup.features, setup.label), labels), ""
    except (EvaluationError, ModelVersionError) as error:
        return number, None, f"{setup.alias} {number} cannot be scored on these rows: {error}"


def _baselines(labelled: "pd.DataFrame", labels: Labels, training_rows: Any, setup: Setup) -> dict[str, Prediction]:
    training = None if training_rows is None else read_frame(training_rows)
    trivial, prediction = trivial_baseline(labels)
    predictions = {trivial: prediction}
    unlabelled = labelled.drop(columns=setup.label)
    for name, baseline in setup.baselines.items():
        try:
            answer = in_row_order(baseline(unlabelled, *(() if training is None else (training,))), unlabelled)
        except Exception as error:  # whatever the user's function raises
            raise EvaluationError(f"baseline {name!r} failed: {type(error).__name__}: {error}") from error
        predictions[name] = read_prediction(answer, labels, len(labelled))
    return predictions


def _importance(
    candidate: PyFuncModel, inputs: "pd.DataFrame", labels: Labels, answer: Prediction, overall: Part, setup: Setup
) -> dict[str, float]:
    if not setup.importance_rows:
        return {}
    order = np.random.default_rng(setup.plan.seed).permutation(len(inputs))
    if labels.task == "binary":
        # Half of the sample is of the rarer class, if it has as many: without that class there is no AUC.
        rare = labels.values[order] == (labels.values.mean() < 0.5)
        order = np.concatenate([order[rare][: setup.importance_rows // 2], order[~rare]])
    positions = np.sort(order[: setup.importance_rows])
    metric, sign = headline(overall.metrics), -1 if labels.task == "regression" else 1

    def worth(values: Any, prediction: Prediction) -> float:
        if prediction.kind == "label" != answer.kind:  # the probabilities of a few rows may all be 0 or 1
            prediction = Prediction(answer.kind, prediction.values.astype(float), prediction.classes)
        return sign * estimate([scored(labels.task, values, prediction, threshold=setup.plan.threshold)])[0][metric]

    part = Labels(labels.task, labels.values[positions], labels.classes)
    return permutation_importance(candidate, inputs.iloc[positions], part, worth, seed=setup.plan.seed)
