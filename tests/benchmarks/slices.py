"""Candidates that are refused because a slice seems worse: equally good ones, and those with a loss on one slice.

Each of 1000 rounds has a holdout of ten slices, a champion, and a candidate with noise of the same size. Compared are:
no slice may have a lower AUC; each slice is tested at 5 %; and the rule of `promotion_asset`, which adjusts the
p-values by Holm's method. Then the same with a candidate that has more noise on one slice.
"""

from typing import Any

import numpy as np
from scipy import special

from dagster_mlops.evaluation.metrics import Prediction, scored
from dagster_mlops.evaluation.paired_tests import paired_test
from dagster_mlops.promotion.rules.slices import holm
from tests.benchmarks.measure import show

SLICES, RATE, NOISE = 10, 0.05, 0.5
GATES = ("no slice lower", "each slice at 5 %", "Holm, 5 % for all slices")


def refusals(random: np.random.Generator, rows: int, noise_of_first: float) -> list[bool]:
    """True for each gate that refuses the candidate."""
    p_values = {}
    for number in range(SLICES):
        odds = random.normal(-1.2, 1.6, rows)
        labels = (random.random(rows) < special.expit(odds)).astype(float)
        sizes = (noise_of_first if number == 0 else NOISE, NOISE)
        scores = [special.expit(odds + size * random.normal(size=rows)) for size in sizes]
        candidate, champion = (scored("binary", labels, Prediction("probability", each, (0, 1))) for each in scores)
        test = paired_test("auc", candidate, champion, 1)
        assert test.worse is not None
        p_values[str(number)] = test.worse
    lowest = min(p_values.values())
    return [lowest < 0.5, lowest <= RATE, min(holm(p_values).values()) <= RATE]


def run(rounds: int | None = None) -> dict[str, Any]:
    """The share of refused candidates, by gate, size of the slices and noise on one of them."""
    count, results = rounds or 1000, {}
    for rows in (300, 3000):
        for noise, title in ((NOISE, "equally good"), (1.0, "twice the noise on one slice")):
            outcomes = [refusals(np.random.default_rng([rows, number]), rows, noise) for number in range(count)]
            results[f"{rows} rows, {title}"] = dict(zip(GATES, np.mean(outcomes, axis=0).tolist(), strict=True))
    shares = [(name, *(f"{share:.1%}" for share in row.values())) for name, row in results.items()]
    show(f"{count} candidates on {SLICES} slices: refused", ["rows of a slice, candidate", *GATES], shares)
    return results
