"""Performance with labels: alarms beyond chance, on random and on consecutive windows."""

import sys

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring import performance_check
from dagster_mlops.monitoring.performance.judgement import Terms, judge
from dagster_mlops.monitoring.performance.labelled import clean, with_labels
from dagster_mlops.monitoring.performance.metrics import NAMES, by_name, spread_between, spread_within
from tests.support import known_warnings
from tests.support.checked_frames import evaluated, facts

pytestmark = [*known_warnings.DAGSTER_BETA]

OLD_SIX = ["roc_auc", "f1", "precision", "recall", "accuracy", "log_loss"]


def traffic(rows: int, seed: int, *, skill: float = 1.5, every: int = 300) -> pd.DataFrame:
    """Good and bad hours alternate, each of `every` rows: rows near each other are alike."""
    random = np.random.default_rng(seed)
    mood = np.repeat(random.normal(0, 0.8, rows // every + 1), every)[:rows]
    signal = random.normal(0, 1, rows)
    late = random.random(rows) < 1 / (1 + np.exp(1 - skill * signal - mood))
    return pd.DataFrame({"id": range(rows), "late": late, "p": 1 / (1 + np.exp(1 - 1.5 * signal))})


def pair(frame):
    data = clean(frame, "late", "p", "classification", whose="x")
    return data["late"].to_numpy(), data["p"].to_numpy()


def terms(rate=0.01, max_drop=0.0, metrics=tuple(OLD_SIX)):
    functions = by_name(metrics, "classification", 0.5)
    return Terms(functions, frozenset(functions) - {"log_loss", "brier"}, {}, max_drop, rate)


@pytest.mark.parametrize("name", NAMES["classification"])
def test_metrics_are_those_of_scikit_learn(name):
    from sklearn import metrics

    labels, scores = pair(traffic(500, 0).round({"p": 2}))
    theirs = {"log_loss": "log_loss", "roc_auc": "roc_auc_score", "brier": "brier_score_loss"}
    function = getattr(metrics, theirs.get(name, f"{name}_score"))
    answer = scores if name in theirs else scores >= 0.5
    assert by_name([name], "classification", 0.5)[name](labels, scores) == pytest.approx(function(labels, answer))


def test_the_error_is_that_of_repeated_samples():
    auc = by_name(["roc_auc"], "classification", 0.5)["roc_auc"]
    frames = [pair(traffic(1000, seed, every=1)) for seed in range(60)]
    values = [auc(*frame) for frame in frames]
    errors = [spread_within(auc, *frame).error for frame in frames]
    assert np.median(errors) == pytest.approx(np.std(values), rel=0.3)


@pytest.mark.thorough
@pytest.mark.parametrize("consecutive", [False, True], ids=["random", "consecutive"])
def test_alarms_without_a_change_are_as_rare_as_asked(consecutive):
    """Asked 1 %. Six metrics, drops of 10 % and no error: 0.37 of these random windows, and 0.61 of the others."""
    alarms, windows = 0, 150
    for seed in range(windows):
        rows = traffic(8200, seed)
        random = np.random.default_rng(seed)
        start = random.integers(0, 8000)
        chosen = np.arange(start, start + 200) if consecutive else random.choice(8200, 200, replace=False)
        inside = np.isin(np.arange(8200), chosen)
        lines = judge(pair(rows[inside]), pair(rows[~inside]), terms(), questions=6)
        alarms += any(line.state == "detected" for line in lines)
    assert alarms <= 5  # 150 at 1 %: more than 5 in one of 300


def test_a_loss_is_seen():
    lines = judge(pair(traffic(2000, 1, skill=0.2)), pair(traffic(20_000, 0)), terms(metrics=["roc_auc"]), questions=1)
    assert [line.state for line in lines] == ["detected"]
    better = judge(pair(traffic(2000, 1, skill=4)), pair(traffic(20_000, 0)), terms(metrics=["roc_auc"]), questions=1)
    assert [line.state for line in better] == ["ok"]


def test_a_reference_in_order_knows_how_windows_differ():
    accuracy = by_name(["accuracy"], "classification", 0.5)["accuracy"]
    rows = traffic(40_000, 0)
    ordered = spread_between(accuracy, *pair(rows), 200)
    shuffled = spread_between(accuracy, *pair(rows.sample(frac=1, random_state=0)), 200)
    assert ordered and shuffled and ordered.error > 1.2 * shuffled.error
    assert spread_between(accuracy, *pair(rows), 15_000) is None


def checked(frames, **options):
    check = performance_check(asset="served", target="late", prediction="p", **options)
    return evaluated(frames, check)["performance"]


def test_out_of_bounds_by_less_than_chance_is_undecided_and_by_more_is_detected():
    rows = traffic(400, 5)
    value = facts(checked({"served": rows}, bounds={"accuracy": 0.1}))["monitoring/accuracy"]
    done = checked({"served": rows}, bounds={"accuracy": value + 0.01})
    assert done.passed and facts(done)["monitoring/state"] == "undecided"
    assert "chance alone moves it by" in facts(done)["monitoring/reason"]
    done = checked({"served": rows}, bounds={"accuracy": value + 0.2}, severity="ERROR")
    assert not done.passed and done.severity == dg.AssetCheckSeverity.ERROR
    assert facts(done)["monitoring/state"] == "detected"


def test_the_check_needs_no_tool_takes_metrics_of_the_users_and_judges_segments(monkeypatch):
    monkeypatch.setitem(sys.modules, "evidently", None)
    good = traffic(8000, 0).assign(carrier=lambda f: np.where(f["id"] % 2, "A", "B"))
    bad = traffic(4000, 1).assign(carrier=lambda f: np.where(f["id"] % 2, "A", "B"))
    bad["late"] = bad["late"].where(bad["carrier"] != "A", ~bad["late"])

    def gap(labels, scores):
        return abs(labels - scores)

    options = {"reference": "good", "metrics": {"gap": gap}, "lower_is_better": ["gap"]}
    done = checked({"served": bad, "good": good}, **options, segment="carrier")
    assert not done.passed and "carrier A: gap is" in str(done.description)
    assert "carrier B" not in str(done.description)
    table = done.metadata["monitoring/metrics"]
    assert isinstance(table, dg.TableMetadataValue)
    assert sorted(str(row.data["segment"]) for row in table.records) == ["", "carrier A", "carrier B"]
    assert checked({"served": good, "good": good}, **options).passed


@pytest.mark.parametrize(
    ("keys", "label_keys"),
    [
        ([1, 2, 3], ["1", "3", "9"]),
        ([1.0, 2.0, 3.0], [1, 3, 9]),
        ([9007199254740993, 2, 9007199254740992], [9007199254740993, 9007199254740992, 9]),
        (["a", None, "c"], ["a", "c", None]),
    ],
)
def test_labels_are_joined_by_exact_keys(keys, label_keys):
    predictions = pd.DataFrame({"id": pd.Series(keys, dtype=None)})
    labels = pd.DataFrame({"id": label_keys, "late": [True, False, True]})
    late = with_labels(predictions, labels, "id", "late")["late"]
    assert late.iloc[0] is True and pd.isna(late.iloc[1]) and late.iloc[2] is False


def test_the_last_label_counts_and_floats_that_are_no_keys_are_refused():
    predictions = pd.DataFrame({"id": [1]})
    labels = pd.DataFrame({"id": [1, 1], "late": [True, False]})
    assert with_labels(predictions, labels, "id", "late")["late"].tolist() == [False]
    with pytest.raises(MonitoringError, match="beyond 2\\^53"):
        with_labels(pd.DataFrame({"id": [1e17]}), labels, "id", "late")


def test_a_probability_a_billionth_above_one_is_one():
    rows = traffic(300, 0)
    rows.loc[0, "p"] = 1 + 1e-9
    assert clean(rows, "late", "p", "classification", whose="x")["p"].max() == 1
    rows.loc[0, "p"] = 1.1
    with pytest.raises(MonitoringError, match="between 0 and 1"):
        clean(rows, "late", "p", "classification", whose="x")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "without bounds and reference no predictions could fail it"),
        ({"reference": "r", "max_drop": 1.0, "metrics": ["f1"]}, "more than any metric can lose"),
        ({"reference": "r", "max_drop": float("nan")}, "max_drop=nan"),
        ({"reference": "r", "false_alarm_rate": 0}, "false_alarm_rate=0"),
        ({"reference": "r", "metrics": "f1"}, "it is a text, not a list"),
        ({"reference": "r", "metrics": []}, "is not a list of some"),
        ({"reference": "r", "metrics": ["auc"]}, "classification has no metric 'auc'"),
        ({"reference": "r", "lower_is_better": ["cost"]}, "has no metric 'cost'"),
        ({"bounds": {"f1": 0.5}, "labels": "l"}, "labels and key go together"),
        ({"bounds": {"f1": 0.5}, "key": "id"}, "labels and key go together"),
        ({"bounds": {"f1": 0.5}, "task": "ranking"}, "task='ranking'"),
        ({"bounds": {"f1": 0.5}, "min_labels": 0}, "min_labels=0"),
    ],
)
def test_senseless_arguments_are_refused_when_the_check_is_defined(options, says):
    with pytest.raises(dg.DagsterInvalidDefinitionError, match=says):
        performance_check(asset="a", target="t", prediction="p", **options)


@pytest.mark.parametrize("answer", [np.nan, np.inf])
def test_labels_whose_predictions_are_not_finite_are_a_fault_and_not_too_few_labels(answer):
    frame = traffic(600, 0)
    lost = frame.assign(p=frame["p"].where(frame["id"] % 5 > 0, answer))
    options = {"bounds": {"roc_auc": 0.5}, "min_labels": 100}
    done = checked({"served": lost}, **options)
    assert not done.passed and done.description == "120 of 600 rows with a label have no finite prediction"
    few = checked({"served": frame.assign(p=frame["p"].where(frame["id"] % 50 > 0, answer))}, **options)
    assert few.passed and facts(few)["monitoring/without_prediction"] == 12
