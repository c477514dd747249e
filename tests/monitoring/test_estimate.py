"""The performance that predictions let expect before labels are there."""

import numpy as np
import pytest

from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring import estimated_performance, performance_check
from dagster_mlops.monitoring.performance.estimate import ESTIMATED
from dagster_mlops.monitoring.performance.metrics import builtin
from tests.support import known_warnings
from tests.support.checked_frames import evaluated, facts

pytestmark = [*known_warnings.DAGSTER_BETA]


def traffic(rows, seed, *, spread=1.5, middle=0.0):
    """Chances that the model overstates: its probability is not calibrated."""
    random = np.random.default_rng(seed)
    signal = random.normal(middle, spread, rows)
    labels = (random.random(rows) < 1 / (1 + np.exp(1 - signal))).astype(int)
    return labels, 1 / (1 + np.exp(1 - 2 * signal))


@pytest.mark.parametrize("name", ESTIMATED)
@pytest.mark.parametrize(("spread", "middle"), [(1.5, 0.0), (0.5, 0.0), (1.5, 1.0)], ids=["same", "harder", "more"])
def test_the_estimate_follows_a_shift_of_the_inputs(name, spread, middle):
    labels, scores = traffic(20_000, 0)
    answers, current = traffic(20_000, 1, spread=spread, middle=middle)
    [estimate] = estimated_performance(labels, scores, current, metrics=[name])
    assert estimate.value == pytest.approx(builtin(name, 0.5)(answers, current), abs=0.03)


@pytest.mark.thorough
def test_the_error_is_the_typical_one():
    labels, scores = traffic(40_000, 3)
    differences, errors = [], []
    for seed in range(1, 60):
        answers, current = traffic(500, seed)
        [estimate] = estimated_performance(labels, scores, current)
        differences.append(estimate.value - builtin("roc_auc", 0.5)(answers, current))
        errors.append(estimate.error)
    assert np.sqrt(np.mean(np.square(differences))) == pytest.approx(np.median(errors), rel=0.35)
    assert np.isnan(estimated_performance(labels[:900], scores[:900], scores[:500])[0].error)


@pytest.mark.parametrize(
    ("labels", "metrics", "says"),
    [([0, 1], ["auc"], "no estimate of auc"), ([1, 1], ["f1"], "labels of both classes")],
)
def test_what_cannot_be_estimated_is_refused(labels, metrics, says):
    with pytest.raises(MonitoringError, match=says):
        estimated_performance(labels, [0.1, 0.9], [0.5], metrics=metrics)


def test_a_check_without_labels_shows_the_estimate():
    import pandas as pd

    labels, scores = traffic(3000, 0)
    reference = pd.DataFrame({"late": labels, "p": scores})
    served = pd.DataFrame({"p": traffic(1000, 1, spread=0.5)[1]}).assign(late=None)
    check = performance_check(asset="served", target="late", prediction="p", reference="validation", tool=None)
    done = evaluated({"served": served, "validation": reference}, check)["performance"]
    assert facts(done)["monitoring/state"] == "undecided" and "0 rows have one" in (done.description or "")
    usual = builtin("roc_auc", 0.5)(labels, scores)
    assert facts(done)["monitoring/estimated_roc_auc"] < usual - 0.05
