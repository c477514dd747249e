"""Expected calibration error: how far probabilities are from the shares of what happens."""

from dagster_mlops.core.arrays import np
from dagster_mlops.errors import EvaluationError
from dagster_mlops.evaluation.metrics import Array

_BINS = 10


def calibration_error(labels: Array, predictions: Array) -> float:
    """The mean gap between the predicted probability and the share of rows that it came true for, in ten bins.

        evaluation_asset(..., metrics={"calibration_error": calibration_error}, lower_is_better=["calibration_error"])

    The bins have equal widths, and each counts by its rows: M. Naeini, G. Cooper and M. Hauskrecht, Obtaining Well
    Calibrated Probabilities Using Bayesian Binning, AAAI 2015. Of several classes, the probability is that of the most
    probable one: C. Guo and others, On Calibration of Modern Neural Networks, ICML 2017. With few rows it is too large
    by chance, also for a calibrated model: ask for a limit that the rows can show.

    >>> calibration_error(np.array([0, 1, 1, 1]), np.array([0.75, 0.75, 0.75, 0.75]))
    0.0

    Raises:
        EvaluationError: The predictions are not probabilities.
    """
    if np.min(predictions) < 0 or np.max(predictions) > 1:
        raise EvaluationError("calibration_error takes probabilities, and the model answers with other numbers.")
    if np.ndim(predictions) == 2:
        labels, predictions = np.argmax(predictions, axis=1) == labels, np.max(predictions, axis=1)
    bins = np.minimum((predictions * _BINS).astype(int), _BINS - 1)
    return float(abs(np.bincount(bins, weights=predictions - labels, minlength=_BINS)).sum() / len(labels))
