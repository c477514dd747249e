"""What counts as the same when a training was run again, and what does not."""

import math
from typing import Any

import pandas as pd
import pytest

from dagster_mlops.lineage.chain.walk import Link
from dagster_mlops.lineage.reproduction.comparison import judge
from dagster_mlops.lineage.reproduction.recipe import Recipe
from dagster_mlops.mlflow.training import _rerun_script as rerun
from dagster_mlops.provenance import Ref, TrainingRun

SAME = {"files": {"then": {}, "now": {}}, "rows": 3, "largest_difference": 0.0, "others": 0}


def run(*read: Ref, **facts: Any) -> TrainingRun:
    return TrainingRun(run_id="0" * 32, tracking_uri="sqlite:///m.db", upstream=read, **facts)


def different(then: TrainingRun, now: TrainingRun, *, tolerance: float = 1e-9, **found: Any) -> list[str]:
    link = Link(then.ref, "accessible", record=then)
    recipe = Recipe(then, None, link, {}, None, ())
    told = {"run": now.to_dict(), "metrics": {}, "params": {}, "models": SAME, **found}
    return judge(recipe, told, tolerance=tolerance, environment="current").different


@pytest.mark.parametrize(
    ("before", "after", "tolerance", "same"),
    [
        (0.8, 0.8 * (1 + 1e-12), 1e-9, True),
        (1e-10, 9e-10, 1e-9, False),
        (0.01, 0.05, 0.05, False),
        (1e6, 1e6 + 1e-4, 1e-9, True),
        (0.0, 0.0, 1e-9, True),
        (0.0, 1e-12, 1e-9, False),
    ],
)
def test_the_tolerance_of_a_metric_is_relative(before, after, tolerance, same):
    found = different(run(metrics={"loss": before}), run(), metrics={"loss": after}, tolerance=tolerance)
    assert found == ([] if same else ["metric loss"])


def test_a_metric_that_is_only_there_now_is_not_the_same():
    metrics = {"auc": 0.5, "loss": math.nan, "system/cpu": 3.0}
    assert different(run(), run(), metrics=metrics) == ["metric auc"]


def test_each_input_is_compared_with_its_own():
    one, two, three = (Ref("feast", "training_set", f"flights/delay@{version}") for version in "123")
    assert different(run(one, two), run(two, one)) == []
    assert different(run(one, two), run(two, three)) == ["features flights/delay"]
    assert different(run(one), run(one, two)) == ["features flights/delay"]
    assert different(run(one, two), run(one)) == ["features flights/delay"]


def test_a_model_that_cannot_be_asked_was_not_compared():
    files = {"then": {}, "now": {}}
    assert different(run(), run(), models={"files": files, "problem": "ValueError: no rows"}) == ["model predictions"]


@pytest.mark.parametrize(
    ("then", "now", "largest", "others"),
    [
        ({"p": [0.0, 0.5, 1.0]}, {"p": [0.0, 0.5, 1.0]}, 0.0, 0),
        ({"p": [1e6, 2e6]}, {"p": [1e6, 2e6 + 2]}, 1e-6, 0),
        ({"p": [1e-9, 2e-9]}, {"p": [1e-9, 4e-9]}, 1.0, 0),
        ({"p": [0.0, 0.0]}, {"p": [0.0, 1e-30]}, math.inf, 0),
        ({"p": [1.0, math.nan]}, {"p": [1.0, math.nan]}, 0.0, 0),
        ({"p": [1.0, math.nan]}, {"p": [1.0, 2.0]}, math.inf, 0),
        ({"p": [math.inf, 1.0]}, {"p": [math.inf, 1.0]}, 0.0, 0),
        ({"says": ["late", "late"]}, {"says": ["late", "in time"]}, 0.0, 1),
        ({"says": [True, False]}, {"says": [True, True]}, 1.0, 0),
        ({"p": [1.0]}, {"p": [1.0, 2.0]}, None, 1),
        ({"p": [1.0]}, {"q": [1.0]}, None, 1),
        ({"p": [1.0], "says": ["a"]}, {"p": [1.5], "says": ["b"]}, 0.5, 1),
    ],
)
def test_predictions_differ_by_the_size_of_their_column(then, now, largest, others):
    found = rerun._difference(pd.DataFrame(then), pd.DataFrame(now))
    assert found == {"largest_difference": pytest.approx(largest) if largest else largest, "others": others}
