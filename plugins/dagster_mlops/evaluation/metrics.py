"""Metrics of predictions, and their variation from resample to resample.

Every metric is a function of means over the rows, or of the order of the scores. A resample is then a vector of counts:
its means are one matrix product, and its AUC one pass over rows that were sorted once.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, TypeAlias

from dagster_mlops.core.arrays import np
from dagster_mlops.errors import EvaluationError

Array: TypeAlias = Any
Task = Literal["binary", "multiclass", "regression"]
Metric = Callable[[Array, Array], Any]

LOWER_IS_BETTER = frozenset({"log_loss", "brier", "rmse", "mae"})
_NO_DIRECTION = frozenset({"bias"})
_HEADLINES = ("auc", "macro_f1", "accuracy", "rmse")
# Rows drawn at once: as many as fit into a processor's cache.
_BLOCK = 30_000
# A metric of the user's that is not a mean of values per row is called for each resample, for so many.
_CALLS = 200
_SMALLEST = 1e-15  # log_loss of a certain and wrong prediction stays finite
# Some resamples of a small slice lack a class. If more than this share do, there is no interval.
_MOST_UNDEFINED = 0.1


@dataclass(frozen=True)
class Prediction:
    """A model's answer for each row.

    `kind` is ``probability`` (of the positive class, or one column per class), ``score`` (any number, greater is more
    positive), ``label`` (a class, as its position in `classes`) or ``number`` (regression).
    """

    kind: Literal["probability", "score", "label", "number"]
    values: Array  # (rows,), or (rows, classes) for the probabilities of several classes
    classes: tuple[Any, ...] = ()

    def take(self, rows: Array) -> "Prediction":
        """The answers for some of the rows."""
        return Prediction(self.kind, self.values[rows], self.classes)


@dataclass(frozen=True)
class Scored:
    """The values per row that the metrics of one model are computed from.

    `columns` has one row per mean, `finish` computes metrics from means, and `scores` orders the rows for AUC, if it
    is defined.
    """

    labels: Array
    columns: Array  # (means, rows)
    finish: Callable[[Array], dict[str, Array]]
    scores: Array = None
    called: Mapping[str, Callable[[Array], float]] = field(default_factory=dict)


def greater_is_better(metric: str, lower: Collection[str] = ()) -> bool | None:
    """True if more of a metric is better; None if neither more nor less is.

    >>> greater_is_better("auc"), greater_is_better("rmse"), greater_is_better("bias")
    (True, False, None)
    """
    if metric in _NO_DIRECTION:
        return None
    return metric not in LOWER_IS_BETTER and metric not in lower


def headline(metrics: Collection[str]) -> str:
    """The metric that summarizes the others best."""
    return next((name for name in _HEADLINES if name in metrics), next(iter(metrics)))


def scored(
    task: Task,
    labels: Array,
    prediction: Prediction,
    *,
    threshold: float = 0.5,
    user_metrics: Mapping[str, Metric] | None = None,
) -> Scored:
    """The values from which the metrics of one model are computed on any resample of these rows.

    `labels` are 0 and 1 for ``binary``, positions in the classes for ``multiclass``, numbers for ``regression``. Each
    of `user_metrics` is called with labels and predictions; it returns a value per row, whose mean is the metric, or a
    single number.
    """
    parts, finish = {"binary": _binary, "multiclass": _multiclass, "regression": _regression}[task](
        labels, prediction, threshold
    )
    called: dict[str, Callable[[Array], float]] = {}
    means: dict[str, int] = {}
    for name, metric in (user_metrics or {}).items():
        value = np.asarray(metric(labels, prediction.values), dtype=float)
        if value.shape == labels.shape:
            means[name] = len(parts)
            parts = [*parts, value]
        elif value.ndim == 0:
            called[name] = lambda rows, metric=metric: float(metric(labels[rows], prediction.values[rows]))
        else:
            raise EvaluationError(
                f"metric {name!r} gave an array of shape {value.shape} for {len(labels)} rows. Return a number, or one "
                "value per row whose mean is the metric."
            )

    def finish_all(averages: Array) -> dict[str, Array]:
        return {**finish(averages), **{name: averages[:, position] for name, position in means.items()}}

    ranked = task == "binary" and prediction.kind in ("probability", "score")
    columns = np.stack([np.asarray(part, dtype=float) for part in parts]) if parts else np.empty((0, len(labels)))
    return Scored(labels, columns, finish_all, prediction.values if ranked else None, called)


def estimate(models: Sequence[Scored]) -> list[dict[str, float]]:
    """The metrics of each model on the rows as they are."""
    rows = np.arange(len(models[0].labels))
    estimates = [
        {**_on(model, rows[None, :], np.ones((1, len(rows))), _ranks(model)), **_called(model, [rows])}
        for model in models
    ]
    return [{name: float(value[0]) for name, value in metrics.items()} for metrics in estimates]


def bootstrap(
    models: Sequence[Scored], *, resamples: int, seed: int, groups: Array | None = None
) -> list[dict[str, Array]]:
    """The metrics of each model on `resamples` resamples of the rows, the same resamples for all models.

    The nonparametric bootstrap: as many rows as there are, drawn with replacement; or as many `groups` as there are,
    each with all its rows. Models are compared in pairs, on equal rows. B. Efron and R. Tibshirani, An Introduction to
    the Bootstrap, 1993, chapters 6, 13 and 16. Where a metric is undefined, as AUC is without both classes, it is NaN.
    """
    rows = len(models[0].labels)
    random = np.random.default_rng(seed)
    ranks = [_ranks(model) for model in models]
    results: list[list[dict[str, Array]]] = [[] for _ in models]
    called_on: list[Array] = []
    most = _CALLS if any(model.called for model in models) else 0
    left = resamples
    while left:
        block = min(left, max(1, _BLOCK // rows))
        if groups is None:
            sample = random.integers(0, rows, (block, rows))
            counts = _counts(sample, rows)
        else:
            number = int(groups.max()) + 1
            sample, counts = None, _counts(random.integers(0, number, (block, number)), number)[:, groups]
        for model, rank, values in zip(models, ranks, results, strict=True):
            values.append(_on(model, sample, counts, rank))
        if len(called_on) < most:
            resampled = (np.repeat(np.arange(rows), times) for times in counts) if sample is None else sample
            called_on.extend(islice(resampled, most - len(called_on)))
        left -= block
    return [
        {name: np.concatenate([part[name] for part in values]) for name in values[0]} | _called(model, called_on)
        for model, values in zip(models, results, strict=True)
    ]


def interval(values: Array, confidence: float) -> tuple[float, float] | None:
    """The percentile interval of a metric's resamples; None when it was undefined in too many of them."""
    finite = values[np.isfinite(values)]
    if not len(values) or len(finite) < (1 - _MOST_UNDEFINED) * len(values):
        return None
    low, high = np.quantile(finite, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _counts(sample: Array, size: int, times: Array | None = None) -> Array:
    """The number of times that each of `size` things was drawn, by resample; each of `sample` `times`, or once."""
    block = len(sample)
    shifted = sample + np.arange(block)[:, None] * size
    weights = None if times is None else times.ravel()
    return np.bincount(shifted.ravel(), weights, minlength=block * size).reshape(block, size)


def _on(model: Scored, sample: Array | None, counts: Array, rank: tuple[Array, int] | None) -> dict[str, Array]:
    """The metrics of resamples, given as the rows that were drawn (quicker) or as the counts of all rows."""
    with np.errstate(divide="ignore", invalid="ignore"):
        means = counts @ model.columns.T / counts.sum(axis=1, keepdims=True)
        if rank is None:
            return model.finish(means)
        ranks, size = rank
        every = np.broadcast_to(ranks, counts.shape)
        by_rank = _counts(every, size, counts) if sample is None else _counts(ranks[sample], size)
        return {**_areas(by_rank), **model.finish(means)}


def _ranks(model: Scored) -> tuple[Array, int] | None:
    """For each row, twice the position of its score (greatest first, equal ones together) plus its label."""
    if model.scores is None:
        return None
    distinct, position = np.unique(-model.scores, return_inverse=True)
    return 2 * position + model.labels.astype(int), 2 * len(distinct)


def _areas(by_rank: Array) -> dict[str, Array]:
    """The areas below the ROC and the precision-recall curve, by resample, from the counts of ranks.

    AUC is the Mann-Whitney statistic, ties count half (Hanley and McNeil, Radiology 143, 1982). pr_auc is average
    precision: the sum of precisions weighted by the recall they add, without interpolation.
    """
    counts = by_rank.reshape(len(by_rank), -1, 2)
    negative, positive = counts[:, :, 0], counts[:, :, 1]
    above = np.cumsum(positive, axis=1)
    seen = above + np.cumsum(negative, axis=1)
    positives = above[:, -1]
    negatives = seen[:, -1] - positives
    auc = (negative * (above - positive / 2)).sum(axis=1) / (positives * negatives)
    precision = above / np.maximum(seen, 1)
    return {"auc": auc, "pr_auc": (positive * precision).sum(axis=1) / positives}


def _called(model: Scored, resamples: Sequence[Array]) -> dict[str, Array]:
    return {name: np.array([metric(rows) for rows in resamples]) for name, metric in model.called.items()}


def _binary(labels: Array, prediction: Prediction, threshold: float) -> tuple[list[Array], Any]:
    if prediction.kind == "score":
        return [], lambda means: {}
    values = prediction.values
    decisions = values >= threshold if prediction.kind == "probability" else values == 1
    columns = [decisions == (labels == 1), decisions & (labels == 1), decisions, labels]

    def rates(means: Array) -> dict[str, Array]:
        accuracy, true_positive, predicted, positive = means[:, :4].T
        return {"accuracy": accuracy, "f1": _ratio(2 * true_positive, predicted + positive)}

    if prediction.kind == "label":
        return columns, lambda means: {
            **rates(means),
            "precision": _ratio(means[:, 1], means[:, 2]),
            "recall": _ratio(means[:, 1], means[:, 3]),
        }
    likelihood = np.clip(np.where(labels == 1, values, 1 - values), _SMALLEST, 1)
    columns += [-np.log(likelihood), (values - labels) ** 2]
    return columns, lambda means: {"log_loss": means[:, 4], "brier": means[:, 5], **rates(means)}


def _multiclass(labels: Array, prediction: Prediction, threshold: float) -> tuple[list[Array], Any]:
    probable = prediction.kind == "probability"
    decisions = prediction.values.argmax(axis=1) if probable else prediction.values
    size = len(prediction.classes)
    columns = [decisions == labels]
    columns += [(decisions == k) & (labels == k) for k in range(size)]
    columns += [(decisions == k) * 1.0 + (labels == k) for k in range(size)]
    if probable:
        columns.append(-np.log(np.clip(prediction.values[np.arange(len(labels)), labels], _SMALLEST, 1)))

    def finish(means: Array) -> dict[str, Array]:
        occurrences = means[:, 1 + size : 1 + 2 * size]
        scores = _ratio(2 * means[:, 1 : 1 + size], occurrences)
        # The mean over the classes that occur among the resample's labels or predictions; the others have no score.
        metrics = {"accuracy": means[:, 0], "macro_f1": scores.sum(axis=1) / (occurrences > 0).sum(axis=1)}
        return {**metrics, "log_loss": means[:, 1 + 2 * size]} if probable else metrics

    return columns, finish


def _regression(labels: Array, prediction: Prediction, threshold: float) -> tuple[list[Array], Any]:
    errors = prediction.values - labels
    centre = labels.mean()  # variance as a difference of means loses digits far from zero

    def finish(means: Array) -> dict[str, Array]:
        squared, absolute, bias, label, label_squared = means[:, :5].T
        return {
            "rmse": np.sqrt(squared),
            "mae": absolute,
            "r2": 1 - squared / (label_squared - label**2),
            "bias": bias,
        }

    return [errors**2, abs(errors), errors, labels - centre, (labels - centre) ** 2], finish


def _ratio(part: Array, total: Array) -> Array:
    """The ratio, or 0 where the total is 0: a classifier that never says yes has precision 0."""
    return np.divide(part, total, out=np.zeros_like(total), where=total > 0)
