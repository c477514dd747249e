"""Figures of an evaluation: small PNG files, logged to MLflow and shown inline in Dagster."""

import base64
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dagster_mlops.core.extras import extra
from dagster_mlops.evaluation.measure import Evaluation, Part
from dagster_mlops.evaluation.metrics import Prediction, headline
from dagster_mlops.evaluation.predictions import Labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_BYTES = 60_000
_POINTS = 400  # of a curve: more cannot be seen
_BARS = 20
_OWN, _OTHER, _GREY = "#1c7ed6", "#e8590c", "#868e96"


def figures(
    evaluation: Evaluation, labels: Labels, model: Prediction, rival: Prediction | None, *, threshold: float = 0.5
) -> dict[str, bytes]:
    """PNG files by name: confusion, curves, calibration or residuals, slices, importance; as far as there are any."""
    drawn: dict[str, Figure] = {}
    said = {f"version {evaluation.version}": model}
    if rival:
        said[f"{evaluation.alias} {evaluation.rival_version}"] = rival
    if evaluation.whole.why_not:
        return {}
    if labels.task != "regression" and model.kind != "score":
        drawn["confusion"] = _confusion(labels, model, threshold)
    if labels.task == "binary" and model.kind in ("probability", "score"):
        drawn["roc_pr"] = _curves(labels, said)
    if labels.task == "binary" and model.kind == "probability":
        drawn["calibration"] = _calibration(labels, said)
    if labels.task == "regression":
        drawn["residuals"] = _residuals(labels, model)
    if any(part.metrics for part in evaluation.slices):
        drawn["slices"] = _slices(evaluation)
    if evaluation.importance:
        drawn["importance"] = _importance(evaluation.importance, headline(evaluation.whole.metrics))
    return {name: _png(figure) for name, figure in drawn.items()}


def inline(png: bytes, name: str) -> str:
    """A figure in markdown: Dagster has no metadata type for images."""
    return f"![{name}](data:image/png;base64,{base64.b64encode(png).decode()})"


def _figure(width: float, height: float, columns: int = 1) -> tuple["Figure", Any]:
    # The object interface: pyplot keeps every figure alive and picks a GUI backend.
    figure = extra("matplotlib.figure", extra="mlflow").Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns)


def _png(figure: "Figure") -> bytes:
    content = b""
    for dpi in (90, 70, 50):
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=dpi)
        content = file.getvalue()
        if len(content) <= _MOST_BYTES * 3 / 4:  # base64 makes four bytes of three
            break
    return content


def _confusion(labels: Labels, model: Prediction, threshold: float) -> "Figure":
    np = extra("numpy", extra="mlflow")
    if model.kind == "probability":
        decided = (model.values >= threshold).astype(int) if labels.task == "binary" else model.values.argmax(axis=1)
    else:
        decided = model.values
    size = len(labels.classes)
    counts = np.bincount(labels.values.astype(int) * size + decided, minlength=size * size).reshape(size, size)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axes = _figure(3.6, 3.3)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [short(value) for value in labels.classes]
    axes.set_xticks(range(size), names, rotation=45 if size > 3 else 0, fontsize=8)
    axes.set_yticks(range(size), names, fontsize=8)
    axes.set(title="Confusion", xlabel="said", ylabel="was")
    for row in range(size if size <= 10 else 0):
        for column in range(size):
            share = shares[row, column]
            text = f"{counts[row, column]:,}\n{share:.0%}"
            axes.text(
                column, row, text, ha="center", va="center", fontsize=8, color="white" if share > 0.6 else "black"
            )
    return figure


def _curves(labels: Labels, said: Mapping[str, Prediction]) -> "Figure":
    np = extra("numpy", extra="mlflow")
    figure, (roc, precision_recall) = _figure(7.2, 3.3, 2)
    for (name, prediction), colour in zip(said.items(), (_OWN, _OTHER), strict=False):
        order = np.argsort(-prediction.values, kind="stable")
        ends = np.flatnonzero(np.diff(prediction.values[order], append=np.nan) != 0)  # equal scores come together
        above = np.cumsum(labels.values[order])[ends]
        wrong = ends + 1 - above
        shown = np.unique(np.linspace(0, len(ends) - 1, _POINTS).astype(int))
        recall, precision = above / above[-1], above / (ends + 1)
        roc.plot([0, *(wrong / wrong[-1])[shown]], [0, *recall[shown]], color=colour, label=name)
        precision_recall.plot(recall[shown], precision[shown], color=colour)
    roc.plot([0, 1], [0, 1], "--", color=_GREY, linewidth=1)
    precision_recall.axhline(labels.values.mean(), ls="--", color=_GREY, linewidth=1)
    roc.set(title="ROC", xlabel="false positive rate", ylabel="true positive rate")
    precision_recall.set(title="Precision–recall", xlabel="recall", ylabel="precision", ylim=(0, 1.02))
    roc.legend(fontsize=8, loc="lower right")
    return figure


def _calibration(labels: Labels, said: Mapping[str, Prediction]) -> "Figure":
    """Observed against predicted share in ten groups of equal size; below, how often each probability is said."""
    np = extra("numpy", extra="mlflow")
    figure, axes = _figure(3.8, 3.3)
    probable = {name: prediction for name, prediction in said.items() if prediction.kind == "probability"}
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
    np = extra("numpy", extra="mlflow")
    figure, (scatter, histogram) = _figure(7.2, 3.3, 2)
    shown = np.random.default_rng(0).permutation(len(labels.values))[:2000]
    errors = model.values - labels.values
    scatter.scatter(model.values[shown], errors[shown], s=4, alpha=0.4, color=_OWN, linewidths=0)
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
    for side, colour, shift, label in sides:
        _dots(axes, parts, side, metric, colour, shift, label)
    axes.axvline(evaluation.whole.metrics[metric].value, ls="--", color=_GREY, linewidth=1)
    axes.set_yticks(range(len(parts)), [f"{short(part.name, 30)} ({part.rows:,})" for part in parts], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel(f"{metric}, {evaluation.confidence:.0%} interval; dashed: all rows", fontsize=8)
    axes.legend(fontsize=7, loc="best")
    return figure


def _dots(axes: "Axes", parts: list[Part], side: str, metric: str, colour: str, shift: float, label: str) -> None:
    for position, part in enumerate(parts):
        found = getattr(part, side).get(metric)
        if found is None:
            continue
        axes.plot(found.value, position + shift, "o", color=colour, markersize=4, label=label)
        if found.low is not None:
            axes.plot([found.low, found.high], [position + shift] * 2, color=colour, linewidth=1.5)
        label = "_"  # named once


def _importance(importance: Mapping[str, float], metric: str) -> "Figure":
    shown = list(importance.items())[:_BARS]
    figure, axes = _figure(5.6, 0.8 + 0.22 * len(shown))
    axes.barh([short(name, 30) for name, _ in shown], [loss for _, loss in shown], color=_OWN)
    axes.invert_yaxis()
    axes.tick_params(labelsize=7)
    axes.set_title(f"{metric} lost when a column is shuffled", fontsize=9)
    return figure


def short(value: object, length: int = 14) -> str:
    """Short enough for a label, with matplotlib's mathematics switched off and only what its font can draw."""
    text = "".join(c if c.isprintable() and ord(c) < 0x500 else "?" for c in str(value)).replace("$", r"\$")
    return text if len(text) <= length else text[: length - 1] + "…"
