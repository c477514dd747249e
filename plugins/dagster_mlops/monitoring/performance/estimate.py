"""The performance that predictions let expect before any label is there: CBPE."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from dagster_mlops.core.arrays import np
from dagster_mlops.core.extras import extra
from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring.performance.metrics import Array, builtin

ESTIMATED = ("roc_auc", "f1", "precision", "recall", "accuracy", "log_loss", "brier")
_FEWEST_WINDOWS = 5
_SMALLEST = 1e-15
_FOLDS = 2


class Estimate(NamedTuple):
    """An expected metric, with the typical difference from the one that labels later show."""

    metric: str
    value: float
    error: float


def estimated_performance(
    reference_labels: Array,
    reference_predictions: Array,
    predictions: Array,
    *,
    metrics: Sequence[str] = ("roc_auc",),
    threshold: float = 0.5,
) -> list[Estimate]:
    """The expected metrics of `predictions` without their labels, by confidence-based performance estimation (CBPE).

    A calibrated probability says how often it is right, so the confusion matrix, and with it every metric, has an
    expectation: J. Białek and others, Estimating Model Performance Under Covariate Shift Without Labels,
    arXiv 2401.08348, section 3; NannyML's method. Calibration is isotonic, learnt on the reference. It sees what a
    shift of the inputs does to the metric, and is blind to a changed relation of inputs and labels.

    The error is the root mean square difference between estimate and realized metric over consecutive windows of the
    reference as long as `predictions`, each half of the reference with the calibration of the other; NaN with fewer
    than five such windows.

        estimated_performance(validation["late"], validation["probability"], today["probability"])

    Args:
        reference_labels: Labels, 0 and 1, of shape (rows,), in order of time.
        reference_predictions: Probabilities of 1 for the same rows.
        predictions: Probabilities of 1 whose labels are not there.
        metrics: Names from roc_auc, f1, precision, recall, accuracy, log_loss, brier.
        threshold: Probability from which a row counts as predicted 1.

    Raises:
        MonitoringError: a metric is unknown, the labels are of one class, or a table is empty.
    """
    if unknown := sorted(set(metrics) - set(ESTIMATED)):
        raise MonitoringError(f"no estimate of {', '.join(unknown)}; there are {', '.join(ESTIMATED)}.")
    labels, scores, current = (
        np.asarray(values, dtype=float) for values in (reference_labels, reference_predictions, predictions)
    )
    if not len(current) or len(set(labels.tolist())) != 2:
        raise MonitoringError("an estimate needs predictions, and a reference with labels of both classes.")
    calibrate = calibration(labels, scores)
    expected = {name: expected_metric(name, calibrate(current), current, threshold) for name in metrics}
    errors = _errors(labels, scores, len(current), metrics, threshold)
    return [Estimate(name, expected[name], errors[name]) for name in metrics]


def calibration(labels: Array, scores: Array) -> Any:
    """A monotone map of scores to probabilities."""
    isotonic: Any = extra("sklearn.isotonic").IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
    isotonic.fit(scores, labels)
    return isotonic.predict


def expected_metric(name: str, chances: Array, scores: Array, threshold: float) -> float:
    """The expectation of a metric where each row is 1 with its own chance."""
    decisions = scores >= threshold
    hits, predicted, positive = chances[decisions].sum(), decisions.sum(), chances.sum()
    if name == "roc_auc":
        return _area(chances, scores)
    if name in ("log_loss", "brier"):
        certain = np.clip(scores, _SMALLEST, 1 - _SMALLEST)
        of_one = -np.log(certain) if name == "log_loss" else (scores - 1) ** 2
        of_zero = -np.log1p(-certain) if name == "log_loss" else scores**2
        return float((chances * of_one + (1 - chances) * of_zero).mean())
    ratios = {
        "f1": (2 * hits, predicted + positive),
        "precision": (hits, predicted),
        "recall": (hits, positive),
        "accuracy": (hits + (1 - chances[~decisions]).sum(), len(scores)),
    }
    part, total = ratios[name]
    return float(part / total) if total else 0.0


def _area(chances: Array, scores: Array) -> float:
    """The area below the expected ROC curve: pairs of rows, each by the chance that the first is 1 and the other 0."""
    _, place = np.unique(scores, return_inverse=True)
    positive, negative = np.bincount(place, chances), np.bincount(place, 1 - chances)
    below = np.cumsum(negative) - negative / 2
    total = positive.sum() * negative.sum()
    return float((positive * below).sum() / total) if total else math.nan


def _errors(labels: Array, scores: Array, rows: int, metrics: Sequence[str], threshold: float) -> dict[str, float]:
    halves = np.array_split(np.arange(len(labels)), _FOLDS)
    differences: dict[str, list[float]] = {name: [] for name in metrics}
    for half, other in zip(halves, reversed(halves), strict=True):
        if len(set(labels[other].tolist())) < 2:
            continue
        calibrate = calibration(labels[other], scores[other])
        for start, end in itertools.pairwise(np.arange(half[0], half[-1] + 2, rows)):
            window, answers = slice(start, end), labels[start:end]
            for name in metrics:
                realized = builtin(name, threshold)(answers, scores[window])
                difference = expected_metric(name, calibrate(scores[window]), scores[window], threshold) - realized
                if math.isfinite(difference):
                    differences[name].append(difference)
    return {
        name: float(np.sqrt(np.mean(np.square(values)))) if len(values) >= _FEWEST_WINDOWS else math.nan
        for name, values in differences.items()
    }
