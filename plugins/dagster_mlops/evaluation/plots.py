"""Figures of an evaluation, which the registry keeps and Dagster shows inline."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from dagster_mlops.core.arrays import np
from dagster_mlops.core.pictures import Axes, Figure, Picture, drawn, label, new_figure
from dagster_mlops.evaluation.measure import Evaluation, Part
from dagster_mlops.evaluation.metrics import Prediction, headline
from dagster_mlops.evaluation.predictions import Labels

_POINTS = 400  # of a curve: more cannot be seen
_BARS = 20
_OWN, _OTHER, _GREY = "#1c7ed6", "#e8590c", "#868e96"


def figures(
    evaluation: Evaluation, labels: Labels, model: Prediction, rival: Prediction | None, *, threshold: float = 0.5
) -> dict[str, Picture]:
    """Confusion, curves, calibration or residuals, slices and importance by name, as far as they apply."""
    if evaluation.whole.why_not:
        return {}
    answers = {f"version {evaluation.version}": model}
    if rival:
        answers[f"{evaluation.alias} {evaluation.rival_version}"] = rival
    draw: dict[str, Callable[[], Figure]] = {}
    if labels.task != "regression" and model.kind != "score":
        draw["confusion"] = partial(_confusion, labels, model, threshold)
    if labels.task == "binary" and model.kind in ("probability", "score"):
        draw["roc_pr"] = partial(_curves, labels, answers)
    if labels.task == "binary" and model.kind == "probability":
        draw["calibration"] = partial(_calibration, labels, answers)
    if labels.task == "regression":
        draw["residuals"] = partial(_residuals, labels, model)
    if any(part.metrics for part in evaluation.slices):
        draw["slices"] = partial(_slices, evaluation)
    if evaluation.importance:
        draw["importance"] = partial(_importance, evaluation.importance, headline(evaluation.whole.metrics))
    return {name: drawn(name, figure, tool="mlflow") for name, figure in draw.items()}


def _figure(width: float, height: float, columns: int = 1) -> tuple["Figure", Any]:
    figure = new_figure(width, height, tool="mlflow")
    return figure, figure.subplots(1, columns)


def _confusion(labels: Labels, model: Prediction, threshold: float) -> "Figure":
    if model.kind == "probability":
        decided = (model.values >= threshold).astype(int) if labels.task == "binary" else model.values.argmax(axis=1)
    else:
        decided = model.values
    size = len(labels.classes)
    counts = np.bincount(labels.values.astype(int) * size + decided, minlength=size * size).reshape(size, size)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axes = _figure(3.6, 3.3)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [label(value) for value in labels.classes]
    axes.set_xticks(range(size), names, rotation=45 if size > 3 else 0, fontsize=8)
    axes.set_yticks(range(size), names, fontsize=8)
    axes.set(title="Confusion", xlabel="predicted", ylabel="observed")
    for row in range(size if size <= 10 else 0):
        for column in range(size):
            share = shares[row, column]
            text = f"{counts[row, column]:,}\n{share:.0%}"
            axes.text(
                column, row, text, ha="center", va="center", fontsize=8, color="white" if share > 0.6 else "black"
            )
    return figure


def _curves(labels: Labels, answers: Mapping[str, Prediction]) -> "Figure":
    figure, (roc, precision_recall) = _figure(7.2, 3.3, 2)
    for (name, prediction), colour in zip(answers.items(), (_OWN, _OTHER), strict=False):
        order = np.argsort(-prediction.values, kind="stable")
        ends = np.flatnonzero(np.diff(prediction.values[order], append=np.nan) != 0)  # equal scores come together
        above = np.cumsum(labels.values[order])[ends]
        wrong = ends + 1 - above
        positions = np.unique(np.linspace(0, len(ends) - 1, _POINTS).astype(int))
        recall, precision = above / above[-1], above / (ends + 1)
        roc.plot([0, *(wrong / wrong[-1])[positions]], [0, *recall[positions]], color=colour, label=name)
        precision_recall.plot(recall[positions], precision[positions], color=colour)
    roc.plot([0, 1], [0, 1], "--", color=_GREY, linewidth=1)
    precision_recall.axhline(labels.values.mean(), ls="--", color=_GREY, linewidth=1)
    roc.set(title="ROC", xlabel="false positive rate", ylabel="true positive rate")
    precision_recall.set(title="Precision–recall", xlabel="recall", ylabel="precision", ylim=(0, 1.02))
    roc.legend(fontsize=8, loc="lower right")
    return figure


def _calibration(labels: Labels, answers: Mapping[str, Prediction]) -> "Figure":
    """Observed against predicted share in ten groups of equal size; below, how often each probability is predicted."""
    figure, axes = _figure(3.8, 3.3)
    probable = {name: prediction for name, prediction in answers.items() if prediction.kind == "probability"}
    for (name, prediction), colour in zip(probable.items(), (_OWN, _OTHER), strict=False):
        groups = np.array_split(np.argsort(prediction.values, kind="stable"), 10)
        points = [(prediction.values[group].mean(), labels.values[group].mean()) for group in groups if len(group)]
        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name, markersize=4)
        counts, edges = np.histogram(prediction.values, np.linspace(0, 1, 31))
        axes.stairs(counts / counts.max() * 0.15, edges, color=colour, fill=True, alpha=0.25)
    axes.plot([0, 1], [0, 1], "--", color=_GREY, linewidth=1)
    axes.set(title="Calibration", xlabel="predicted", ylabel="observed", xlim=(0, 1), ylim=(0, 1))
    axes.legend(fontsize=8, loc="upper left")
    return figure


def _residuals(labels: Labels, model: Prediction) -> "Figure":
    figure, (scatter, histogram) = _figure(7.2, 3.3, 2)
    sample = np.random.default_rng(0).permutation(len(labels.values))[:2000]
    errors = model.values - labels.values
    scatter.scatter(model.values[sample], errors[sample], s=4, alpha=0.4, color=_OWN, linewidths=0)
    scatter.axhline(0, ls="--", color=_GREY, linewidth=1)
    scatter.set(title="Residuals", xlabel="predicted", ylabel="predicted − observed")
    low, high = np.quantile(errors, [0.005, 0.995])  # outliers would flatten the rest
    histogram.hist(errors[(errors >= low) & (errors <= high)], bins=40, color=_OWN)
    histogram.set(title="Residuals, without the outermost 1 %", xlabel="predicted − observed")
    return figure


def _slices(evaluation: Evaluation) -> "Figure":
    """The headline metric of each slice with its interval, beside that of all rows."""
    metric = headline(evaluation.whole.metrics)
    parts = [part for part in evaluation.slices if metric in part.metrics][:30]
    figure, axes = _figure(6.4, 0.9 + 0.24 * len(parts))
    sides = [("metrics", _OWN, 0.0, f"version {evaluation.version}")]
    if evaluation.rival_version:
        sides.append(("rival", _OTHER, 0.3, f"{evaluation.alias} {evaluation.rival_version}"))
    for side, colour, shift, legend in sides:
        _dots(axes, parts, side, metric, colour, shift, legend)
    axes.axvline(evaluation.whole.metrics[metric].value, ls="--", color=_GREY, linewidth=1)
    axes.set_yticks(range(len(parts)), [f"{label(part.name, 30)} ({part.rows:,})" for part in parts], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel(f"{metric}, {evaluation.confidence:.0%} interval; dashed: all rows", fontsize=8)
    axes.legend(fontsize=7, loc="best")
    return figure


def _dots(axes: "Axes", parts: list[Part], side: str, metric: str, colour: str, shift: float, legend: str) -> None:
    for position, part in enumerate(parts):
        estimate = getattr(part, side).get(metric)
        if estimate is None:
            continue
        axes.plot(estimate.value, position + shift, "o", color=colour, markersize=4, label=legend)
        if estimate.low is not None:
            axes.plot([estimate.low, estimate.high], [position + shift] * 2, color=colour, linewidth=1.5)
        legend = "_"  # matplotlib leaves it out: a side is named once


def _importance(importance: Mapping[str, float], metric: str) -> "Figure":
    losses = list(importance.items())[:_BARS]
    figure, axes = _figure(5.6, 0.8 + 0.22 * len(losses))
    axes.barh([label(name, 30) for name, _ in losses], [loss for _, loss in losses], color=_OWN)
    axes.invert_yaxis()
    axes.tick_params(labelsize=7)
    axes.set_title(f"{metric} lost when a column is shuffled", fontsize=9)
    return figure
