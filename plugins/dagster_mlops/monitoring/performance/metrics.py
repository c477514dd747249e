"""Metrics of labelled predictions, and how far each varies by chance from one window of rows to the next."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from dagster_mlops.core.arrays import np

Array: TypeAlias = Any
Metric = Callable[[Array, Array], Any]
"""Labels and predictions to one number; more of it is better or worse as :func:`direction` says, or the user."""
Task = Literal["classification", "regression"]
NAMES: Mapping[Task, tuple[str, ...]] = {
    "classification": ("roc_auc", "f1", "precision", "recall", "accuracy", "log_loss", "brier"),
    "regression": ("r2", "rmse", "mae"),
}
DEFAULTS: Mapping[Task, tuple[str, ...]] = {"classification": ("roc_auc", "log_loss"), "regression": ("r2", "mae")}
_SMALLEST = 1e-15  # log_loss of a certain and wrong prediction stays finite
_BLOCKS = 20
_FEWEST_WINDOWS = 3


class Spread(NamedTuple):
    """A metric of one table: its value, its standard error, and the degrees of freedom of that error.

    `windows` are the values of the windows that the error is of, if it is of windows.
    """

    value: float
    error: float
    freedom: int
    windows: tuple[float, ...] = ()


def builtin(name: str, threshold: float) -> Metric:
    """The metric of a name in `NAMES`; `threshold` is the probability from which a row counts as predicted 1.

    >>> builtin("accuracy", 0.5)(np.array([0, 1, 1]), np.array([0.2, 0.9, 0.4]))
    0.6666666666666666
    """

    def rates(part: Callable[[int, int, int], float]) -> Metric:
        def metric(labels: Array, scores: Array) -> float:
            decisions = scores >= threshold
            return part(int((decisions & (labels == 1)).sum()), int(decisions.sum()), int((labels == 1).sum()))

        return metric

    return {
        "roc_auc": _roc_auc,
        "f1": rates(lambda hits, predicted, positive: 2 * hits / max(predicted + positive, 1)),
        "precision": rates(lambda hits, predicted, positive: hits / max(predicted, 1)),
        "recall": rates(lambda hits, predicted, positive: hits / max(positive, 1)),
        "accuracy": lambda labels, scores: float(((scores >= threshold) == (labels == 1)).mean()),
        "log_loss": lambda labels, scores: float(
            -np.log(np.clip(np.where(labels == 1, scores, 1 - scores), _SMALLEST, 1)).mean()
        ),
        "brier": lambda labels, scores: float(((scores - labels) ** 2).mean()),
        "r2": lambda labels, numbers: _r2(labels, numbers),
        "rmse": lambda labels, numbers: float(np.sqrt(((numbers - labels) ** 2).mean())),
        "mae": lambda labels, numbers: float(abs(numbers - labels).mean()),
    }[name]


def spread_within(metric: Metric, labels: Array, predictions: Array) -> Spread:
    """A metric with its standard error by the delete-a-block jackknife of 20 blocks of consecutive rows.

    Rows near each other may be alike, so whole blocks are left out: H. Künsch, The jackknife and the bootstrap for
    general stationary observations, Annals of Statistics 17, 1989.
    """
    value = number(metric, labels, predictions)
    edges = np.linspace(0, len(labels), min(_BLOCKS, len(labels)) + 1).astype(int)
    without = []
    for start, end in itertools.pairwise(edges):
        keep = np.r_[0:start, end : len(labels)]
        without.append(number(metric, labels[keep], predictions[keep]))
    parts = np.array([part for part in without if np.isfinite(part)])
    if len(parts) < 3:
        return Spread(value, float("nan"), 1)
    error = float(np.sqrt((len(parts) - 1) * parts.var()))
    return Spread(value, error, len(parts) - 1)


def spread_between(metric: Metric, labels: Array, predictions: Array, rows: int) -> Spread | None:
    """The mean of a metric over consecutive windows of `rows` rows, and its standard deviation from one to the next.

    That holds all that makes windows differ: chance, and hours or days that are alike within and differ between them.
    None with fewer than three windows.
    """
    windows = len(labels) // max(rows, 1)
    if windows < _FEWEST_WINDOWS:
        return None
    edges = np.linspace(0, len(labels), windows + 1).astype(int)
    values = np.array([number(metric, labels[a:b], predictions[a:b]) for a, b in itertools.pairwise(edges)])
    values = values[np.isfinite(values)]
    if len(values) < _FEWEST_WINDOWS:
        return None
    return Spread(float(values.mean()), float(values.std(ddof=1)), len(values) - 1, tuple(values.tolist()))


def number(metric: Metric, labels: Array, predictions: Array) -> float:
    """A metric as one number: the mean where it gives a value for each row."""
    value = np.asarray(metric(labels, predictions), dtype=float)
    return float(value.mean()) if value.size else float("nan")


def _roc_auc(labels: Array, scores: Array) -> float:
    """The Mann-Whitney statistic, ties count half (Hanley and McNeil, Radiology 143, 1982); NaN for one class."""
    positive = labels == 1
    pairs = int(positive.sum()) * int((~positive).sum())
    if not pairs:
        return float("nan")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return float((ranks[positive].sum() - positive.sum() * (positive.sum() + 1) / 2) / pairs)


def _r2(labels: Array, numbers: Array) -> float:
    total = float(((labels - labels.mean()) ** 2).sum())
    return 1 - float(((numbers - labels) ** 2).sum()) / total if total else float("nan")


def by_name(metrics: Sequence[str] | Mapping[str, Metric] | None, task: Task, threshold: float) -> dict[str, Metric]:
    """The metrics that a user names, or brings as functions."""
    if isinstance(metrics, Mapping):
        return dict(metrics)
    return {name: builtin(name, threshold) for name in (DEFAULTS[task] if metrics is None else metrics)}
