"""What counts as the same when a training was run again, and what does not."""

import json
import math
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.tree import DecisionTreeClassifier

from dagster_mlops.errors import ReproductionError
from dagster_mlops.lineage.chain.walk import Link
from dagster_mlops.lineage.reproduction import comparison
from dagster_mlops.lineage.reproduction.comparison import Verdict, judge
from dagster_mlops.lineage.reproduction.recipe import Recipe
from dagster_mlops.lineage.reproduction.rerun import _unlike_inputs
from dagster_mlops.lineage.reproduction.rerun import rerun as run_again
from dagster_mlops.mlflow.training import _answers_script as rerun
from dagster_mlops.mlflow.training import _values_script as values
from dagster_mlops.provenance import Ref, TrainingRun

SAME = {"files": {"then": {}, "now": {}}, "rows": 3, "distinct": 3, "largest_difference": 0.0, "others": 0}


def run(*read: Ref, **facts: Any) -> TrainingRun:
    return TrainingRun(
        run_id="0" * 32, tracking_uri="sqlite:///m.db", upstream=read, **{"files_hash": "f" * 64, **facts}
    )


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


def verdict(*reads: dict[str, Any], before: Any = None, after: Any = None, **models: Any) -> Verdict:
    step = {"asset": "model", "partition": "", "reads": list(reads)}
    files = {"step.json": json.dumps(step).encode(), "reads.json": json.dumps(before or {}).encode()}
    recipe = Recipe(run(), None, Link(run().ref, "accessible", record=run()), files, None, ())
    told = {"run": run().to_dict(), "metrics": {}, "params": {}, "reads": after or {}}
    return judge(recipe, {**told, "models": {**SAME, **models}}, tolerance=1e-9, environment="current")


CSV = {"/else.csv": {"bytes": 1, "sha256": "a" * 64}}
OTHER_CSV = {"/else.csv": {"bytes": 1, "sha256": "b" * 64}}
BYTES = {"then": {"m.skops": "1"}, "now": {"m.skops": "1"}}
LEARNED = {"compared": 7, "different": [], "opaque": []}
FEW, MANY = {"rows": 5, "distinct": 5}, {"rows": 100, "distinct": 100}


@pytest.mark.parametrize(
    ("reads", "facts", "strength", "why"),
    [
        ([], {"learned": LEARNED}, "reproduced", []),
        ([], {"files": BYTES, **FEW}, "reproduced", []),
        ([], {"files": BYTES, "largest_difference": 3.0, "drawn": True}, "reproduced", []),
        (
            [],
            {"files": BYTES, "largest_difference": 3.0, "drawn": False},
            "not the same",
            ["model predictions for 3 rows"],
        ),
        ([], {"learned": LEARNED, "largest_difference": 3.0, "drawn": True}, "reproduced", []),
        (
            [],
            {"learned": {**LEARNED, "compared": 0}, "largest_difference": 3.0, "drawn": True, **MANY},
            "too little to tell",
            ["model predictions for 100 rows"],
        ),
        ([], {"files": BYTES, "settings": ["signature"]}, "not the same", ["model settings"]),
        ([], {"learned": LEARNED, "code": ["code/rules.py"]}, "not the same", ["model code"]),
        ([], {"files": BYTES, "outside": ["/w.npy"]}, "too little to tell", ["model reads /w.npy"]),
        ([], {"files": BYTES, "problem": "ValueError"}, "reproduced", []),
        ([], {"learned": {**LEARNED, "different": ["tree.nodes"]}}, "not the same", ["model learned values"]),
        ([], {"learned": {**LEARNED, "opaque": ["handle"]}, **MANY}, "reproduced", []),
        ([], {"learned": {**LEARNED, "opaque": ["handle"]}, **FEW}, "too little to tell", ["model learned values"]),
        (
            [],
            {"learned": {**LEARNED, "opaque": ["handle"]}, "rows": 100, "distinct": 2},
            "too little to tell",
            ["model learned values"],
        ),
        (
            [],
            {"learned": {**LEARNED, "opaque": ["artifacts/table/: "]}, **MANY},
            "too little to tell",
            ["model learned values"],
        ),
        ([], {"learned": {**LEARNED, "compared": 0}, **FEW}, "too little to tell", ["model learned values"]),
        ([], {"problem": "no rows"}, "too little to tell", ["model predictions"]),
        ([{"asset": "plain", "loaded": False, "records": []}], {}, "too little to tell", ["data asset plain"]),
        ([], {"before": {"files": CSV}, "after": {"files": CSV}}, "too little to tell", ["data file /else.csv"]),
        ([], {"after": {"files": CSV}}, "too little to tell", ["data file /else.csv"]),
        ([], {"before": {"files": CSV}, "after": {"files": OTHER_CSV}}, "not the same", ["data file /else.csv"]),
        ([], {"before": {"addresses": ["https://a/b.csv"]}}, "too little to tell", ["data https://a/b.csv"]),
        ([], {"before": {"variables": {"N": "1"}}, "after": {"variables": {"N": "2"}}}, "reproduced", []),
    ],
)
def test_a_verdict_is_as_strong_as_its_evidence(reads, facts, strength, why):
    found = verdict(*reads, **facts)
    assert (found.strength, found.different, found.reproduced) == (strength, why, strength == "reproduced")
    assert found.to_dict()["strength"] == strength


def test_a_machine_that_cannot_watch_a_rerun_is_named():
    recipe = Recipe(run(), None, Link(run().ref, "accessible", record=run()), {}, None, ())
    told = {"run": run().to_dict(), "metrics": {}, "params": {}, "models": {**SAME, "learned": LEARNED}}
    for watched, named in ((True, []), (False, ["watch"])):
        found = judge(recipe, {**told, "watched": watched}, tolerance=1e-9, environment="current")
        assert [finding.name for finding in found.findings if finding.name == "watch"] == named and found.reproduced


def test_a_variable_that_the_code_asks_for_and_does_not_see_is_named():
    recipe = Recipe(run(), None, Link(run().ref, "accessible", record=run()), {}, None, ())
    told = {"run": run().to_dict(), "metrics": {}, "params": {}, "models": {**SAME, "learned": LEARNED}}
    found = judge(recipe, {**told, "hidden": ["SHOP_RATE"]}, tolerance=1e-9, environment="current")
    assert found.reproduced and "environment variable SHOP_RATE" in [f"{f.kind} {f.name}" for f in found.findings]


def test_how_long_a_training_took_does_not_decide():
    before = run(metrics={"fit_seconds": 1.0, "mean_fit_time": 1.0, "mae_seconds": 1.0, "delay_time": 1.0})
    after = dict.fromkeys(before.metrics, 2.0)
    assert different(before, run(), metrics=after) == ["metric delay_time", "metric mae_seconds"]


@pytest.mark.parametrize(
    ("before", "after", "decides"),
    [
        ("2026-01-02T03:04:05.678", "2026-07-02T03:04:09.123", False),
        ("20260102_030405", "20260702_030405", False),
        ("/tmp/tmp3hx1", "/tmp/tmpk2b9", False),
        ("2026-01-02 00:00:00", "2026-07-02 00:00:00", True),
        ("2026-01-02", "2026-07-02", True),
        ("2026-01-02T03:04:05", "None", True),
        ("/data/a.csv", "/tmp/a.csv", True),
        ("0.1", "0.2", True),
    ],
)
def test_a_param_that_is_the_time_of_its_run_does_not_decide(before, after, decides):
    found = different(run(params={"p": before}), run(), params={"p": after})
    assert found == (["params p"] if decides else [])


def test_a_metric_that_was_logged_after_the_training_does_not_decide():
    before = run(metrics={"auc": 0.8, "production_auc": 0.7}, tool_facts={"later_metrics": ["production_auc"]})
    assert different(before, run(), metrics={"auc": 0.8}) == []
    assert different(before, run(), metrics={"auc": 0.8, "production_auc": 0.6}) == ["metric production_auc"]


def test_the_evidence_names_a_tolerance_that_lets_more_than_noise_pass():
    recipe = Recipe(run(), None, Link(run().ref, "accessible", record=run()), {}, None, ())
    models = {**SAME, "files": {"then": {"a": "1"}, "now": {"a": "2"}}, "largest_difference": 0.01}
    told = {"run": run().to_dict(), "metrics": {}, "params": {}, "models": models}
    evidence = [judge(recipe, told, tolerance=t, environment="current").evidence for t in (1e-9, 0.05)]
    assert evidence == ["", "predictions for 3 rows (within 0.05)"]


@pytest.mark.parametrize("tolerance", [math.nan, math.inf, 1.0, -1.0])
def test_a_tolerance_by_which_all_numbers_are_the_same_is_refused(tolerance, tmp_path):
    recipe = Recipe(run(), None, Link(run().ref, "accessible", record=run()), {}, None, ())
    with pytest.raises(ReproductionError, match="compares nothing"):
        run_again(recipe, tmp_path, tolerance=tolerance)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ({"hour": [1.0], "late": [1]}, ""),
        ({"hours": [1.0]}, "has no column hour, which the model takes"),
        ({"hour": []}, "has no rows"),
        (None, "cannot be read as a Parquet file"),
    ],
)
def test_rows_to_compare_on_that_the_model_cannot_take_are_refused_before_the_training(rows, problem, tmp_path):
    inputs = [{"name": "hour", "type": "double"}, {"name": "note", "type": "string", "required": False}]
    (tmp_path / "MLmodel").write_text(json.dumps({"signature": {"inputs": json.dumps(inputs)}}))
    file = tmp_path / "rows.parquet"
    pd.DataFrame(rows).to_parquet(file) if rows else file.write_text("hour\n1\n")
    found = _unlike_inputs(file, tmp_path)
    assert problem in found and bool(problem) == bool(found)


def test_an_infinite_metric_is_compared_as_that():
    stored = 1.7976931348623157e308  # by MLflow's database
    assert different(run(metrics={"auc": 0.5}), run(), metrics={"auc": stored}, tolerance=1.0) == ["metric auc"]
    assert different(run(), run(), metrics={"auc": stored}) == []


def test_each_input_is_compared_with_its_own():
    one, two, three = (Ref("feast", "training_set", f"flights/delay@{version}") for version in "123")
    assert different(run(one, two), run(two, one)) == []
    assert different(run(one, two), run(two, three)) == ["features flights/delay"]
    assert different(run(one), run(one, two)) == ["features flights/delay"]
    assert different(run(one, two), run(one)) == ["features flights/delay"]


def test_an_input_without_a_version_is_compared_with_nothing():
    """It has a row of its own, "not compared": that both runs have named the same asset says nothing of its content."""
    inputs = comparison._inputs(run(Ref.unknown("asset", "visits")), run(Ref.unknown("asset", "visits")))
    assert inputs == []


def test_a_model_that_cannot_be_asked_was_not_compared():
    files = {"then": {}, "now": {}}
    assert different(run(), run(), models={"files": files, "problem": "ValueError: no rows"}) == ["model predictions"]


def middle(value: float) -> np.ndarray:
    """A thousand numbers, the middle of which is not printed."""
    vector = np.zeros(2000)
    vector[1000] = value
    return vector


class Forecast:
    def __init__(self, values: np.ndarray) -> None:
        self.values = values


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
        ({"vector": [middle(1.0)]}, {"vector": [middle(1.0)]}, 0.0, 0),
        ({"vector": [middle(1.0)]}, {"vector": [middle(2.0)]}, 1.0, 0),
        ({"object": [{"vector": middle(1.0)}]}, {"object": [{"vector": middle(1.5)}]}, 0.5, 0),
        ({"object": [[1.0, "a"]]}, {"object": [[1.0, "b"]]}, 0.0, 1),
        ({"object": [Forecast(middle(1.0))]}, {"object": [Forecast(middle(3.0))]}, 2.0, 0),
        ({"id": [2**60]}, {"id": [2**60 + 1]}, 0.0, 1),
        ({"at": [pd.Timestamp(1)]}, {"at": [pd.Timestamp(2)]}, 0.0, 1),
        ({"vector": [np.zeros(3)]}, {"vector": [np.zeros((3, 1))]}, 0.0, 1),
    ],
)
def test_predictions_differ_by_the_size_of_their_column(then, now, largest, others):
    found = rerun._difference(pd.DataFrame(then), pd.DataFrame(now))
    assert found == {"largest_difference": pytest.approx(largest) if largest else largest, "others": others}


def forest(seed: int) -> Any:
    rows = np.random.default_rng(0)
    return RandomForestClassifier(3, random_state=seed).fit(rows.uniform(size=(50, 2)), rows.integers(0, 2, 50))


def booster(seed: int) -> Any:
    rows = np.random.default_rng(0)
    model = HistGradientBoostingRegressor(max_iter=3, max_features=0.5, min_samples_leaf=2, random_state=seed)
    return model.fit(rows.uniform(size=(50, 2)), rows.uniform(size=50))


def search(seed: int) -> Any:
    """Its results hold the time of each fit."""
    rows = np.random.default_rng(0)
    return GridSearchCV(DecisionTreeClassifier(random_state=seed, splitter="random"), {"max_depth": [2, 3]}, cv=2).fit(
        rows.uniform(size=(50, 2)), rows.integers(0, 2, 50)
    )


def threshold(seed: int) -> Any:
    return SimpleNamespace(threshold=np.random.default_rng(seed).random(), fitted_at=time.time())


@pytest.mark.parametrize("fit", [forest, booster, search, threshold])
def test_what_a_model_has_learned_is_compared_and_not_when_it_learned_it(fit):
    first, again, other = (dict(values.learned(fit(seed))) for seed in (0, 0, 1))
    same, different = (rerun._values_difference(first, values, 1e-9) for values in (again, other))
    assert same["compared"] and not same["different"] and not same["opaque"], same
    assert different["different"], different
