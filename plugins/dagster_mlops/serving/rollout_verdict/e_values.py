"""Logarithms of e-values: the returns of bets that no strategy can win on average while a hypothesis holds.

A product of such returns exceeds 1/a with probability a at most, however often one looks at it (J. Ville, 1939; A.
Ramdas and others, Game-theoretic statistics and safe anytime-valid inference, 2023). The functions here return the
logarithms, one for each bet. Packages of e-values exist, but none has these two tests.
"""

import math
from statistics import NormalDist
from typing import Any

from dagster_mlops.core.arrays import np

Array = Any
_LEVELS = 32  # of ranks, that a block of any size costs the same
_BISECTIONS = 30  # of any number near the solution, the first function gives the same


def exchangeable(pool: Array, canary: Array, log_odds: Array) -> Array:
    """Bets that the canary's requests are those with the greater odds, against: any of them might have been.

    A block of requests is taken as it came, and only the chance that shared them out is tested. So it does not matter
    how the values depend on each other or change over the day, as long as a proxy sends each request at random. This
    is Fisher's noncentral hypergeometric distribution with more than two levels, sequentially as in M. Lindon and A.
    Malek, Anytime-valid inference for multinomial count data (2022).

    >>> even = exchangeable(np.array([18, 2]), np.array([9, 1]), np.log([[1.0, 9.0]]))
    >>> odd = exchangeable(np.array([18, 2]), np.array([8, 2]), np.log([[1.0, 9.0]]))
    >>> bool(even[0] < 0 < odd[0])
    True

    Args:
        pool: Number of requests on each level, in both arms.
        canary: The same, of the canary alone.
        log_odds: Logarithm of the odds of each level, one row for each bet.
    """
    size, total = int(canary.sum()), int(pool.sum())
    if not 0 < size < total:
        return np.zeros(len(log_odds))
    # Independent draws with odds t·r, given that there are `size`, are the alternative for any t. With the right
    # number of draws on average, its probability is that of a sum at its mean, which is never small.
    low, high = -log_odds.max(1) - 40, -log_odds.min(1) + 40
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        too_many = (pool / (1 + np.exp(-(log_odds + middle[:, None])))).sum(1) > size
        low, high = np.where(too_many, low, middle), np.where(too_many, middle, high)
    shift = (low + high) / 2
    logits = log_odds + shift[:, None]
    chances = 1 / (1 + np.exp(-logits))
    deviation = math.sqrt((pool * chances * (1 - chances)).sum(1).max())
    points = 64 + 2 * math.ceil(8 * deviation)
    angles = 2j * math.pi * np.arange(points // 2 + 1) / points
    waves = (pool * np.log1p(chances * (np.exp(angles)[:, None, None] - 1))).sum(2) - size * angles[:, None]
    doubled = np.full(len(angles), 2.0)
    doubled[[0, -1]] = 1
    at_mean = (doubled[:, None] * np.exp(waves).real).sum(0) / points
    weights = (pool * np.logaddexp(0, logits)).sum(1) - size * shift + np.log(at_mean)
    ways = math.lgamma(total + 1) - math.lgamma(size + 1) - math.lgamma(total - size + 1)
    return (canary * log_odds).sum(1) - weights + ways


def normal_scores(canary: Array, baseline: Array) -> tuple[Array, Array, Array]:
    """Counts in the pool and in the canary, and van der Waerden's score, of each level of the ranks of two samples."""
    values = np.concatenate([canary, baseline])
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle_ranks = (np.cumsum(counts) - counts / 2)[inverse] / len(values)
    levels = np.minimum((middle_ranks * _LEVELS).astype(int), _LEVELS - 1)
    pool = np.bincount(levels, minlength=_LEVELS)
    of_canary = np.bincount(levels[: len(canary)], minlength=_LEVELS)[pool > 0]
    pool = pool[pool > 0]
    middles = (np.cumsum(pool) - pool / 2) / pool.sum()
    return pool, of_canary, np.array([NormalDist().inv_cdf(float(middle)) for middle in middles])


def standardised(pool: Array, canary: Array, scores: Array) -> float:
    """The canary's sum of scores, in standard deviations of what chance alone does."""
    size, total = canary.sum(), pool.sum()
    mean = (pool * scores).sum() / total
    variance = size * (total - size) / total / (total - 1) * (pool * (scores - mean) ** 2).sum()
    return float(((canary * scores).sum() - size * mean) / math.sqrt(variance)) if variance > 0 else 0.0


def shares(
    canary: tuple[int, int], baseline: tuple[int, int], chances: tuple[float, float], *, margin: float, above: bool
) -> float:
    """A bet on the chances of an event in two arms, against: the canary's is above (or below) the other's plus margin.

    The bet is divided by the likelihood of the chances of that hypothesis that are nearest to it, which makes it an
    e-value for each of them (R. Turner, A. Ly and P. Grünwald, Generic E-variables for exact sequential k-sample tests
    that allow for optional stopping, 2021). The chances may change from block to block, in both arms alike.

    >>> clean = shares((0, 100), (0, 100), (0.001, 0.001), margin=0.01, above=True)
    >>> faulty = shares((2, 100), (0, 100), (0.001, 0.001), margin=0.01, above=True)
    >>> faulty < 0 < clean
    True

    Args:
        canary: Number of events, and of requests.
        baseline: The same for the baseline.
        chances: Chances of the alternative, of canary and baseline.
        margin: By how much the canary's chance may exceed the baseline's, on the border of the hypothesis.
        above: True if the hypothesis is that it exceeds it by more.
    """
    of_canary, of_baseline = (min(max(chance, 1e-9), 1 - 1e-9) for chance in chances)
    if (of_canary - of_baseline >= margin) == above:
        return 0.0  # nothing to bet on
    low, high = max(0.0, -margin), min(1.0, 1 - margin)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        slope = baseline[1] * _slope(of_baseline, middle) + canary[1] * _slope(of_canary, middle + margin)
        low, high = (low, middle) if slope > 0 else (middle, high)
    border = (low + high) / 2
    return _ratio(*canary, of_canary, border + margin) + _ratio(*baseline, of_baseline, border)


def share(events: int, requests: int, limit: float, alternatives: Array) -> Array:
    """Bets on the chance of an event, against: it is on the other side of `limit`."""
    return np.array([_ratio(events, requests, chance, limit) for chance in alternatives])


def mixture(log_values: Array, weights: Array) -> float:
    """The logarithm of a weighted mean of e-values, which is one again."""
    largest = np.max(log_values)
    return float(largest + np.log((weights * np.exp(log_values - largest)).sum()))


def _slope(chance: float, border: float) -> float:
    inside = min(max(border, 1e-15), 1 - 1e-15)
    return (inside - chance) / (inside * (1 - inside))


def _ratio(events: int, requests: int, chance: float, border: float) -> float:
    inside = min(max(border, 1e-15), 1 - 1e-15)
    return events * math.log(chance / inside) + (requests - events) * math.log((1 - chance) / (1 - inside))
