"""The test of second models on the same rows keeps its level, also where rows hang together or losses are skewed."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as known

from dagster_mlops.evaluation.measure import Plan, measure
from dagster_mlops.evaluation.metrics import Prediction, Scored, bootstrap, interval, scored
from dagster_mlops.evaluation.paired_tests import paired_test
from dagster_mlops.evaluation.predictions import Labels

SIZE = 24
WEIGHTED: dict[str, Any] = {
    "auc": known.roc_auc_score,
    "pr_auc": known.average_precision_score,
    "accuracy": lambda y, s, sample_weight: known.accuracy_score(y, s >= 0.5, sample_weight=sample_weight),
    "f1": lambda y, s, sample_weight: known.f1_score(y, s >= 0.5, sample_weight=sample_weight),
    "log_loss": known.log_loss,
    "brier": known.brier_score_loss,
}


def model(labels: Any, scores: Any) -> Scored:
    return scored("binary", np.asarray(labels), Prediction("probability", np.asarray(scores), (0, 1)))


def drawn(random: np.random.Generator, rows: int, *, noise: float = 1.0) -> tuple[Any, Any, Any]:
    """Labels, and the scores of second models that are equally good."""
    odds = random.normal(size=rows) * 1.5 - 0.8
    labels = (random.random(rows) < 1 / (1 + np.exp(-odds))).astype(int)
    first, second = (1 / (1 + np.exp(-odds - noise * random.normal(size=rows))) for _ in range(2))
    return labels, first, second


@pytest.mark.parametrize("metric", WEIGHTED)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_variance_is_that_of_the_weights_of_rows(metric, seed):
    random = np.random.default_rng(seed)
    labels, first, second = drawn(random, SIZE)
    labels[:2] = 0, 1
    first, second = np.round(first, 1) * 0.98 + 0.01, np.round(second, 1) * 0.98 + 0.01  # many ties
    sign = -1 if metric in ("log_loss", "brier") else 1
    groups = np.arange(SIZE)  # each row a group: McNemar and DeLong are other formulas for single rows
    value = paired_test(metric, model(labels, first), model(labels, second), sign, groups).better
    function, step = WEIGHTED[metric], 1e-4

    def difference(weights: Any) -> float:
        return sign * (function(labels, first, sample_weight=weights) - function(labels, second, sample_weight=weights))

    values = np.array([difference(1 + step * row) - difference(1 - step * row) for row in np.eye(SIZE)]) / (2 * step)
    variance = (values**2).sum() * SIZE / (SIZE - 1)
    if variance < 1e-12:
        return
    t = difference(np.ones(SIZE)) / np.sqrt(variance)
    skew = stats.skew(values) / np.sqrt(SIZE)
    corrected = t + skew * t**2 / 3 + skew**2 * t**3 / 27 + skew / 6
    assert value == pytest.approx(stats.t.sf(min(t, corrected), SIZE - 1), rel=1e-2, abs=1e-6)


def test_accuracy_is_mcnemars_exact_test_and_auc_is_delongs():
    random = np.random.default_rng(0)
    labels, first, second = drawn(random, 500)
    result = paired_test("accuracy", model(labels, first), model(labels, second), 1)
    right = [(scores >= 0.5) == (labels == 1) for scores in (first, second)]
    wins, losses = int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum())
    expected = stats.binomtest(wins, wins + losses, alternative="greater").pvalue
    assert result.method == "McNemar" and result.better == pytest.approx(expected)
    # DeLong's covariance of placements, as in the paper.
    positive = labels == 1
    placements = [
        (
            np.array([(p > s[~positive]).mean() + (p == s[~positive]).mean() / 2 for p in s[positive]]),
            np.array([(n < s[positive]).mean() + (n == s[positive]).mean() / 2 for n in s[~positive]]),
        )
        for s in (first, second)
    ]
    of_positive, of_negative = (np.cov([placements[0][side], placements[1][side]]) for side in (0, 1))
    contrast = np.array([1, -1])
    variance = contrast @ (of_positive / positive.sum() + of_negative / (~positive).sum()) @ contrast
    z = (known.roc_auc_score(labels, first) - known.roc_auc_score(labels, second)) / np.sqrt(variance)
    result = paired_test("auc", model(labels, first), model(labels, second), 1)
    assert result.method == "DeLong" and result.better == pytest.approx(stats.norm.sf(z))
    swapped = paired_test("auc", model(labels, second), model(labels, first), 1).better
    assert result.better is not None and swapped == pytest.approx(1 - result.better)


def test_copies_of_a_row_in_one_group_are_no_evidence():
    random = np.random.default_rng(3)
    labels, first, second = drawn(random, 300)
    copies = np.repeat(np.arange(300), 20)
    single = paired_test("auc", model(labels, first), model(labels, second), 1, np.arange(300)).better
    copied = [model(labels[copies], scores[copies]) for scores in (first, second)]
    assert paired_test("auc", copied[0], copied[1], 1, copies).better == pytest.approx(single, rel=1e-9)
    naive = paired_test("auc", copied[0], copied[1], 1).better
    assert naive is not None and single is not None and abs(naive - 0.5) > abs(single - 0.5)
    # The bootstrap draws the groups: the interval is that of the rows without copies.
    plain = bootstrap([model(labels, first)], resamples=800, seed=0)[0]["auc"]
    grouped = bootstrap([copied[0]], resamples=800, seed=0, groups=copies)[0]["auc"]
    assert np.std(grouped) == pytest.approx(np.std(plain), rel=0.15)


def test_what_cannot_be_tested_has_a_reason():
    labels, first, second = drawn(np.random.default_rng(0), 200)
    days = np.repeat(np.arange(5), 40)
    assert "5 groups are too few" in paired_test("auc", model(labels, first), model(labels, second), 1, days).why_not
    plan = Plan(resamples=50, user_metrics={"cost": lambda y, p: float(abs(y - p).max())}, lower_is_better={"cost"})
    answers = [Prediction("probability", scores, (0, 1)) for scores in (first, second)]
    part = measure("", Labels("binary", labels, (0, 1)), np.ones(200, dtype=bool), answers[0], answers[1], {}, plan)
    assert part.differences["cost"].p_value is None and "neither a mean" in part.differences["cost"].test
    assert part.differences["brier"].p_value is not None and part.differences["auc"].test == "DeLong"
    twin = measure("", Labels("binary", labels, (0, 1)), np.ones(200, dtype=bool), answers[0], answers[0], {}, plan)
    assert {d.p_value for name, d in twin.differences.items() if name != "cost"} == {1.0}


def test_a_difference_that_each_row_shows_is_certain():
    labels = np.arange(50.0)
    better, worse = (scored("regression", labels, Prediction("number", labels + error)) for error in (1.0, 3.0))
    assert paired_test("mae", better, worse, -1).better == 0.0 and paired_test("mae", worse, better, -1).better == 1.0


@pytest.mark.thorough
@pytest.mark.parametrize(("metric", "grouped"), [("auc", False), ("pr_auc", False), ("log_loss", False), ("auc", True)])
def test_the_level_is_kept_by_equally_good_models(metric, grouped):
    rounds, rows, level = 4000, 600, 0.01
    hits, days = 0, np.repeat(np.arange(60), 10)
    for seed in range(rounds):
        random = np.random.default_rng([5, seed])
        labels, first, second = drawn(random, rows)
        if grouped:  # the luck of a model is the same for the rows of a day
            first, second = (1 / (1 + (1 / s - 1) * np.exp(random.normal(size=60)[days])) for s in (first, second))
        result = paired_test(metric, model(labels, first), model(labels, second), 1, days if grouped else None)
        hits += result.better is not None and result.better <= level
    sign = -1 if metric == "log_loss" else 1
    assert sign and hits <= stats.binom.ppf(0.999, rounds, level * 1.1)
    assert hits >= stats.binom.ppf(0.001, rounds, level * 0.4), "it has power"


def test_intervals_of_rows_that_hang_together_are_wider():
    random = np.random.default_rng(1)
    days = np.repeat(np.arange(40), 25)
    odds = random.normal(size=1000) + 2 * random.normal(size=40)[days]
    labels = (random.random(1000) < 1 / (1 + np.exp(-odds))).astype(int)
    answer = model(labels, np.full(1000, 0.5))
    widths = []
    for groups in (None, days):
        [samples] = bootstrap([answer], resamples=300, seed=0, groups=groups)
        low, high = interval(samples["accuracy"], 0.95) or (0.0, 0.0)
        widths.append(high - low)
    assert widths[1] > 1.5 * widths[0]
