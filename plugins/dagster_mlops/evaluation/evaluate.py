"""From rows and a version to an :class:`Evaluation`: who is asked, what they answer, who is compared with whom."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops.core.extras import extra
from dagster_mlops.core.model_formats import StoredFormat
from dagster_mlops.core.model_versions import content_hashes, holder, moves
from dagster_mlops.core.table_hash import content_hash
from dagster_mlops.errors import EvaluationError, ModelVersionError
from dagster_mlops.evaluation.measure import Evaluation, Part, Plan, SliceBy, measure, slices_of, trivial_baseline
from dagster_mlops.evaluation.metrics import Prediction, Task, estimate, greater_is_better, headline, scored
from dagster_mlops.evaluation.plots import figures
from dagster_mlops.evaluation.predictions import (
    Features,
    Labels,
    in_row_order,
    known_rows,
    load_model,
    model_inputs,
    permutation_importance,
    predict,
    read_frame,
    read_labels,
    read_prediction,
)
from dagster_mlops.provenance import ModelVersion
from dagster_mlops.tools import HoldsModels

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.pyfunc import PyFuncModel


@dataclass(frozen=True)
class Setup:
    """What an evaluation asset was asked for."""

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
    card: Mapping[str, str] = field(default_factory=dict)


def evaluate(
    context: dg.AssetExecutionContext,
    models: HoldsModels,
    record: ModelVersion,
    setup: Setup,
    rows: Any,
    training_rows: Any = None,
) -> tuple[Evaluation, StoredFormat, dict[str, bytes]]:
    """Measure a version, say how it is stored, and draw its figures.

    Raises:
        EvaluationError: the rows, the labels or a function of the user's do not fit.
        ModelVersionError: the version cannot be loaded.
    """
    np = extra("numpy", extra="mlflow")
    hashes = content_hashes(context, setup.rows)
    every = read_frame(rows)
    known = known_rows(every, setup.label, setup.rows)
    labels = read_labels(known[setup.label], task=setup.task, positive=setup.positive, classes=setup.classes)
    loaded = load_model(context, models, record)
    inputs = model_inputs(loaded.model, known, setup.features, setup.label)
    answer = predict(loaded.model, inputs, labels)
    rival_version, rival, no_rival = _rival(context, models, record, known, labels, setup)
    baselines = _baselines(known, labels, training_rows, setup)

    def part(name: str, chosen: Any) -> Part:
        return measure(name, labels, chosen, answer, rival, {} if name else baselines, setup.plan)

    whole = part("", np.ones(len(known), dtype=bool))
    context.log.info(f"{record.name} {record.version} on {whole.rows} rows: {whole.why_not or _told(whole.metrics)}")
    evaluation = Evaluation(
        model=record.name,
        version=record.version,
        run_id=record.run_id,
        task=labels.task,
        label=setup.label,
        rows_asset=setup.rows.to_user_string(),
        rows_hash=_of_all(hashes) or content_hash(every, tool="mlflow"),
        warning="the version was trained on these very rows" * any(h in record.datasets.values() for h in hashes),
        unlabelled=len(every) - len(known),
        positive=str(labels.classes[1]) if labels.task == "binary" else "",
        resamples=setup.plan.resamples,
        confidence=setup.plan.confidence,
        seed=setup.plan.seed,
        whole=whole,
        slices=tuple(part(name, mask) for name, mask in slices_of(known, setup.slices)),
        alias=setup.alias,
        rival_version=rival_version,
        no_rival=no_rival,
        lower_is_better=tuple(
            name for name in whole.metrics if greater_is_better(name, setup.plan.lower_is_better) is False
        ),
        importance={} if whole.why_not else _importance(loaded.model, inputs, labels, answer, whole, setup),
    )
    drawn = figures(evaluation, labels, answer, rival, threshold=setup.plan.threshold)
    return evaluation, loaded.format, drawn


def _rival(
    context: dg.AssetExecutionContext,
    models: HoldsModels,
    record: ModelVersion,
    known: "pd.DataFrame",
    labels: Labels,
    setup: Setup,
) -> tuple[str, Prediction | None, str]:
    """The version that holds the alias, what it says of the rows, and why there is no comparison if there is none."""
    if not setup.alias:
        return "", None, ""
    champion = holder(models, record.name, setup.alias)
    if champion is None:
        return "", None, f"nobody held {setup.alias!r} before"
    number = champion.version
    if number == record.version:
        # Evaluated again after its promotion: compare with the version that it replaced.
        promotions = [move for move in moves(models, champion) if (move["alias"], move["to"]) == (setup.alias, number)]
        number = promotions[-1]["from"] if promotions else ""
        if not number:
            return "", None, f"nobody held {setup.alias!r} before"
    try:
        rival = load_model(context, models, dataclasses.replace(record, version=number)).model
        inputs = model_inputs(rival, known, setup.features, setup.label)
        return number, predict(rival, inputs, labels), ""
    except (EvaluationError, ModelVersionError) as error:
        return number, None, f"{setup.alias} {number} cannot be scored on these rows: {error}"


def _baselines(known: "pd.DataFrame", labels: Labels, training_rows: Any, setup: Setup) -> dict[str, Prediction]:
    training = None if training_rows is None else read_frame(training_rows)
    trivial, prediction = trivial_baseline(labels)
    found = {trivial: prediction}
    unlabelled = known.drop(columns=setup.label)
    for name, baseline in setup.baselines.items():
        try:
            answer = in_row_order(baseline(unlabelled, *(() if training is None else (training,))), unlabelled)
        except Exception as error:  # whatever the user's function raises
            raise EvaluationError(f"baseline {name!r} failed: {type(error).__name__}: {error}") from error
        found[name] = read_prediction(answer, labels, len(known))
    return found


def _importance(
    candidate: "PyFuncModel", inputs: "pd.DataFrame", labels: Labels, answer: Prediction, whole: Part, setup: Setup
) -> dict[str, float]:
    if not setup.importance_rows:
        return {}
    np = extra("numpy", extra="mlflow")
    order = np.random.default_rng(setup.plan.seed).permutation(len(inputs))
    if labels.task == "binary":
        # As many of the rarer class as of the other, where there are: without it there is no AUC.
        rare = labels.values[order] == (labels.values.mean() < 0.5)
        order = np.concatenate([order[rare][: setup.importance_rows // 2], order[~rare]])
    chosen = np.sort(order[: setup.importance_rows])
    metric, sign = headline(whole.metrics), -1 if labels.task == "regression" else 1

    def worth(values: Any, prediction: Prediction) -> float:
        if prediction.kind == "label" != answer.kind:  # of few rows, all probabilities may be 0 or 1
            prediction = Prediction(answer.kind, prediction.values.astype(float), prediction.classes)
        return sign * estimate([scored(labels.task, values, prediction, threshold=setup.plan.threshold)])[0][metric]

    part = Labels(labels.task, labels.values[chosen], labels.classes)
    return permutation_importance(candidate, inputs.iloc[chosen], part, worth, seed=setup.plan.seed)


def _of_all(hashes: Sequence[str]) -> str:
    """One hash of the partitions' hashes; empty where there is none."""
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest() if len(hashes) > 1 else "".join(hashes)


def _told(metrics: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {found.value:.4f}" for name, found in metrics.items())
