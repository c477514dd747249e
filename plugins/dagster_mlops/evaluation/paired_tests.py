"""The probability that a model only looks better than another one on the same rows.

Each metric is a smooth function of the rows' weights, so that one pass over the rows gives its influence values: by how
much each row moves the difference of the two models (the infinitesimal jackknife: B. Efron and R. Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 21). Rows that hang together, such as those of one day, count as one value.
"""

from dataclasses import dataclass

from dagster_mlops.core.arrays import np
from dagster_mlops.core.extras import extra
from dagster_mlops.evaluation.metrics import Array, Scored

_FEWEST_GROUPS = 10  # the spread of fewer values says little about that of their mean
_STEP = 1e-6  # of the size of a column's values, for the derivative of a metric by its mean


@dataclass(frozen=True)
class PairedTest:
    """Two one-sided tests of two models.

    `better` is the probability of a difference as good as the measured one, or better, if the model were not better
    than its rival; `worse` that of one as bad, or worse, if it were not worse. None where no test applies, for the
    reason `why_not`.
    """

    method: str
    better: float | None = None
    worse: float | None = None
    why_not: str = ""


def paired_test(metric: str, model: Scored, rival: Scored, sign: int, groups: Array | None = None) -> PairedTest:
    """Test whether `model` is better, or worse, than `rival` by a metric of both; `sign` is -1 where less is better.

    * **Accuracy of single rows**: McNemar's exact test (Psychometrika 12, 1947).
    * **AUC of single rows**: DeLong, DeLong and Clarke-Pearson (Biometrics 44, 1988), by midranks as in Sun and Xu
      (IEEE Signal Processing Letters 21, 2014).
    * **Everything else, and rows in `groups`**: Student's t of the influence values, or of their sums over groups, with
      and without Hall's correction for skewness (Journal of the Royal Statistical Society B 54, 1992); the larger
      probability counts. AUC over groups is then the test of Obuchowski (Biometrics 53, 1997).

    A metric of the user's that is not a mean over rows has no influence values, and is not tested.
    """
    if groups is None and metric == "accuracy":
        gains = model.columns[0] - rival.columns[0]
        return PairedTest("McNemar", _mcnemar(gains), _mcnemar(-gains))
    effects = [_influence(metric, scored) for scored in (model, rival)]
    if effects[0] is None or effects[1] is None:
        return PairedTest("", why_not=f"{metric} is neither a mean over rows nor an area under a curve")
    difference, values = (sign * (mine - other) for mine, other in zip(*effects, strict=True))
    if groups is None and metric == "auc":
        better, worse = (_delong(side * difference, side * values, model.labels) for side in (1, -1))
        return PairedTest("DeLong", better, worse)
    method = "influence values"
    if groups is not None:
        values = np.bincount(groups, weights=values)
        method = f"influence values of {len(values)} groups"
        if len(values) < _FEWEST_GROUPS:
            return PairedTest(
                method, why_not=f"{len(values)} groups are too few for a test, which takes {_FEWEST_GROUPS}"
            )
    better, worse = (_student(side * difference, side * values) for side in (1, -1))
    return PairedTest(method, better, worse)


def _mcnemar(gains: Array) -> float:
    """P-value of the rows that only one of the two models has right, each with equal chance under the hypothesis."""
    wins, losses = int((gains > 0).sum()), int((gains < 0).sum())
    return float(extra("scipy.stats").binom.sf(wins - 1, wins + losses, 0.5)) if wins + losses else 1.0


def _delong(difference: float, values: Array, labels: Array) -> float:
    positive = labels == 1
    variance = sum(  # from the 1/n of influence values to the 1/(n - 1) of the paper
        (part**2).sum() * len(part) / (len(part) - 1) for part in (values[positive], values[~positive])
    )
    if variance <= 0:
        return 1.0 if difference <= 0 else 0.0
    return float(extra("scipy.stats").norm.sf(difference / np.sqrt(variance)))


def _student(difference: float, values: Array) -> float:
    size = len(values)
    centred = values - values.mean()
    variance = (centred**2).sum() * size / (size - 1)
    # Rounding leaves a little where all values are equal: a difference that each row shows is not chance.
    if variance <= (1e-12 * max(abs(difference), float(abs(values).sum()))) ** 2:
        return 1.0 if difference <= 0 else 0.0
    skewness = (centred**3).mean() / (centred**2).mean() ** 1.5 / np.sqrt(size)
    t = difference / np.sqrt(variance)
    # Hall's transformation with its cubic term, without which it would fall again for large t. Of a few huge values
    # the skewness is chance, and a correction by it would find differences that are not there.
    corrected = t + skewness * t**2 / 3 + skewness**2 * t**3 / 27 + skewness / 6
    return float(extra("scipy.stats").t.sf(min(t, corrected), size - 1))


def _influence(metric: str, model: Scored) -> tuple[float, Array] | None:
    """A metric, and by how much it changes with the weight of each row."""
    if metric in ("auc", "pr_auc") and model.scores is not None:
        return (_auc if metric == "auc" else _average_precision)(model.scores, model.labels == 1)
    size = len(model.labels)
    means = model.columns.mean(axis=1)
    sizes = np.sqrt((model.columns**2).mean(axis=1))
    steps = _STEP * np.where(sizes > 0, sizes, 1)
    around = np.stack([means, *(means + np.diag(steps)), *(means - np.diag(steps))]) if len(means) else None
    with np.errstate(divide="ignore", invalid="ignore"):
        values = model.finish(around).get(metric) if around is not None else None
    if values is None or not np.isfinite(values).all():
        return None
    slopes = (values[1 : len(means) + 1] - values[len(means) + 1 :]) / (2 * steps)
    return float(values[0]), slopes @ (model.columns - means[:, None]) / size


def _auc(scores: Array, positive: Array) -> tuple[float, Array]:
    """AUC, and the placements of DeLong: the share of the other class that a row is ranked right against."""
    distinct, position = np.unique(scores, return_inverse=True)
    true = np.bincount(position, weights=positive, minlength=len(distinct))
    false = np.bincount(position, weights=~positive, minlength=len(distinct))
    positives, negatives = true.sum(), false.sum()
    lower_false = np.cumsum(false) - false / 2  # a tie counts half
    higher_true = positives - np.cumsum(true) + true / 2
    placements = np.where(positive, lower_false[position] / negatives, higher_true[position] / positives)
    area = float(placements[positive].mean())
    return area, (placements - area) / np.where(positive, positives, negatives)


def _average_precision(scores: Array, positive: Array) -> tuple[float, Array]:
    """Average precision, and its derivative by the weight of each row: its own precision, and that of rows below."""
    distinct, position = np.unique(-scores, return_inverse=True)
    positives = np.bincount(position, weights=positive, minlength=len(distinct))
    above = np.cumsum(positives)
    seen = np.cumsum(np.bincount(position, minlength=len(distinct)))
    total = above[-1]
    area = float((positives * above / seen).sum() / total)
    # A row is in the counts of every positive row with its score or a lower one.
    below_true = np.cumsum((positives * (seen - above) / seen**2)[::-1])[::-1]
    below_false = np.cumsum((positives * above / seen**2)[::-1])[::-1]
    of_positive = (above / seen)[position] + below_true[position] - area
    return area, np.where(positive, of_positive, -below_false[position]) / total
