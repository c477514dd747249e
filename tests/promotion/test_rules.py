"""Every rule of a promotion judges by its evidence, says why in a row, and fails where a value is missing."""

import itertools
import math
import shutil
import time
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import dagster as dg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dagster_mlops.mlflow import (
    AtLeast,
    AtMost,
    Better,
    CompleteProvenance,
    FreshData,
    GreenChecks,
    Improvement,
    MlflowResource,
    ModelSize,
    NotWorseOnSlices,
    PredictionTime,
)
from dagster_mlops.mlflow.registry.models import MlflowModels
from dagster_mlops.mlflow.registry.turns import TURN
from dagster_mlops.promotion import Approval, Case, Row, promotion_asset
from dagster_mlops.promotion.gate import Gate
from dagster_mlops.promotion.rules.slices import holm
from dagster_mlops.provenance import ModelVersion, Ref, TrainingRun
from tests.promotion.conftest import evaluated
from tests.support import known_warnings, pages

pytestmark = [*known_warnings.MLFLOW, *known_warnings.DAGSTER_BETA]

FAILED_WARN = (False, dg.AssetCheckSeverity.WARN)
finite = st.floats(-1e6, 1e6)


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    return [row["verdict"] for row in rows]


# Metrics


def test_each_rule_has_a_row_and_all_have_to_hold(challenged):
    rules = [AtLeast(metric="auc", limit=0.8), AtMost(metric="log_loss", limit=0.3)]
    rows = challenged.decide(*rules, metric="auc", min_improvement=0.05)
    assert [(row["rule"], row["verdict"], row["candidate"], row["champion"], row["limit"]) for row in rows] == [
        ("better auc, by 0.05", "holds", "0.8", "0.7", "0.75"),
        ("auc at least 0.8", "holds", "0.8", "0.7", "0.8"),
        ("log_loss at most 0.3", "fails", "0.4", "0.5", "0.3"),
    ]
    assert rows[-1]["why"] == "0.4 is not at most 0.3"
    metadata = challenged.materialize(*rules[:1], Improvement(metric="log_loss", greater_is_better=False, relative=0.1))
    assert metadata["mlflow/promoted"] and metadata["mlflow/champion_version"] == 2
    assert list(metadata)[:2] == ["mlflow/promoted", "mlflow/decision"], "what people look for comes first"


METRIC_RULES = [
    AtLeast(metric="auc", limit=0.1),
    AtMost(metric="auc", limit=0.9),
    Improvement(metric="auc"),
    Improvement(metric="auc", greater_is_better=False),
    Improvement(metric="auc", absolute=0.01),
    Improvement(metric="auc", relative=0.01),
]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_a_value_that_is_missing_or_not_finite_fails_each_rule_and_hides_no_other(world, value):
    """MLflow's database returns infinity as the largest number."""
    world.crown(world.train(auc=0.7, f1=0.5))
    world.train(f1=0.6, **({} if value is None else {"auc": value}))
    rows = world.decide(*METRIC_RULES, Improvement(metric="f1"))
    assert verdicts(rows) == ["fails"] * len(METRIC_RULES) + ["holds"]
    fix = "Log it in the training function" if value is None else "Train a version with a finite auc"
    assert [row["why"] for row in rows[:-1] if fix not in row["why"]] == []


def test_a_champion_without_the_metric_fails_what_compares_and_nothing_else(world):
    world.crown(world.train(f1=0.5))
    world.train(auc=0.8)
    bound, compared = world.decide(AtLeast(metric="auc", limit=0.7), Improvement(metric="auc"))
    assert (bound["verdict"], bound["champion"], compared["verdict"]) == ("holds", "", "fails")
    assert "version 1 of 'delay' has no metric 'auc'" in compared["why"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_champion_whose_metric_is_not_finite_fails_what_compares(world, value):
    world.crown(world.train(auc=value))
    world.train(auc=0.8)
    bound, compared = world.decide(AtLeast(metric="auc", limit=0.7), Improvement(metric="auc"))
    assert (bound["verdict"], compared["verdict"]) == ("holds", "fails")
    assert "version 1, which holds the alias, is" in compared["why"] and "by hand" in compared["why"]


@settings(max_examples=150, deadline=None)
@given(finite, finite, st.sampled_from([{}, {"absolute": 0.5}, {"relative": 0.1}]))
@example(0.745, 0.735, {"absolute": 0.01})
@example(1.0, 0.0, {"relative": 0.1})
def test_an_improvement_is_a_difference_in_its_direction_of_the_amount_or_more(candidate, champion, amount):
    rule = Improvement(metric="x", **amount)
    holds, _, limit = rule.compare(candidate, champion)
    needed = amount.get("absolute", amount.get("relative", 0) * abs(champion))
    difference = candidate - champion
    if abs(difference - needed) > 1e-6 * max(1, needed):
        assert holds is (difference > 0 and difference >= needed and not (amount.get("relative") and champion == 0))
    assert not (holds and candidate <= champion) and not rule.compare(champion, champion)[0], "a tie never wins"
    assert limit is None or limit == pytest.approx(champion + needed)
    mirrored = Improvement(metric="x", greater_is_better=False, **amount)
    assert mirrored.compare(-candidate, -champion)[0] is holds


# The evaluation's rows


def test_better_is_beyond_chance_and_not_worse_looks_at_each_slice(challenged):
    challenged.evaluate("2", "1", evaluated())
    of_rows, of_run = (AtLeast(metric="auc", limit=0.1, of_run=of_run) for of_run in (False, True))
    rows = challenged.decide(of_rows, of_run, AtMost(metric="auc", limit=0), evaluation="evaluation")
    assert rows[1]["candidate"] == "0.8" != rows[0]["candidate"] and rows[1]["champion"] == "0.7"
    better, worse = challenged.decide(Better(metric="auc"), NotWorseOnSlices(metric="auc"), evaluation="evaluation")
    assert better["verdict"] == "fails" and ("no improvement" in better["why"] or "p = " in better["why"])
    assert worse["verdict"] == "holds" and worse["rule"] == "auc not worse on any slice"
    assert "none of 3 slices is worse; the lowest p = " in worse["why"] and " rows; 0.05 or less" in worse["why"]
    assert "Not tested: carrier=HA (not enough rows: 20, min_rows=50)" in worse["why"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("p_value", -0.1), ("p_value", 1.1), ("p_value", math.nan), ("p_worse", 2.0), ("value", math.inf)],
)
def test_an_evaluation_on_record_with_an_impossible_number_promotes_nothing(challenged, name, value):
    result = evaluated().to_dict()
    result["whole"]["differences"]["auc"][name] = value
    challenged.evaluate("2", "1", whole=result["whole"])
    for row in challenged.decide(Better(metric="auc"), NotWorseOnSlices(metric="auc"), evaluation="evaluation"):
        assert row["verdict"] == "fails" and "evaluation" in row["why"], row


def test_a_slice_that_is_worse_has_a_row_with_its_test_and_rows(challenged):
    challenged.evaluate("2", "1", evaluated(loss_on="UA"))
    summary, row = challenged.decide(NotWorseOnSlices(metric="auc"), evaluation="evaluation")
    assert summary["verdict"] == "fails" and "1 of 3 slices is worse" in summary["why"]
    assert row["rule"] == "auc on carrier=UA" and float(row["candidate"]) < float(row["champion"])
    assert "(DeLong), adjusted " in row["why"] and "200 rows; 0.05 or less shows a loss (Holm, 3 slices)" in row["why"]


def test_an_evaluation_that_cannot_judge_fails_the_rules_that_need_it(challenged):
    rules = [NotWorseOnSlices(metric="auc"), Better(metric="auc"), AtLeast(metric="auc", limit=0.5)]

    def whys(*judges: Any) -> list[str]:
        rows = challenged.decide(*judges, CompleteProvenance(committed_code=False), evaluation="evaluation")
        assert set(verdicts(rows)) == {"fails"} and rows[-1]["rule"] == "complete provenance"
        return [row["why"] for row in rows[:-1]]

    assert all("evaluation has no evaluation yet" in why for why in whys(*rules))
    challenged.evaluate("1", "2")
    assert all("is about delay/1" in why and "Materialize the evaluation" in why for why in whys(*rules))
    challenged.evaluate("2", "7")
    assert all("compares with version 7. Materialize the evaluation" in why for why in whys(*rules[:2]))
    challenged.evaluate("2", "1", slices=[])
    assert "the evaluation has no slices. Give it some: slices=[" in whys(rules[0])[0]
    assert "are not compared by 'rmse', but by accuracy, auc, " in whys(NotWorseOnSlices(metric="rmse"))[0]
    assert "has no finite 'rmse'; it has accuracy, auc" in whys(AtLeast(metric="rmse", limit=0))[0]
    direction = whys(Better(metric="brier"))[0]
    assert "Set greater_is_better of the promotion" in direction
    challenged.evaluate("2", "1", evaluated(sizes={"AA": 300, "HA": 20, "B6": 30}), slices=[])
    challenged.evaluate("2", "1", evaluated(sizes={"AA": 45, "HA": 20}))
    assert "none of 2 slices is tested: carrier=AA (not enough rows: 45" in whys(rules[0])[0]
    result = evaluated().to_dict()
    for part in result["slices"]:
        for difference in part["differences"].values():
            del difference["p_worse"]  # as an earlier version of this library stored it
    challenged.evaluate("2", "1", slices=result["slices"])
    assert "the p-value of a loss of auc is missing. Evaluate again" in whys(rules[0])[0]
    del result["slices"][0]["differences"]["auc"]
    challenged.evaluate("2", "1", slices=result["slices"][:1])
    assert "on carrier=AA, auc is not finite for both versions" in whys(rules[0])[0]


def test_the_first_to_hold_the_alias_has_nothing_to_be_worse_than():
    case = Case(registry=None, candidate=None, evaluation=None)  # pyright: ignore[reportArgumentType]
    [row] = NotWorseOnSlices(metric="auc").judge(case)
    assert row.verdict == "holds" and row.why == "no other version holds the alias"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_holms_adjusted_p_values_are_those_of_the_closed_test(values):
    """A slice is worse if each set of slices with it is, by Bonferroni's test: Marcus, Peritz and Gabriel, 1976."""
    adjusted, numbers = holm(dict(enumerate(values))), range(len(values))  # pyright: ignore[reportArgumentType]
    sets = [subset for size in numbers for subset in itertools.combinations(numbers, size + 1)]
    for number in numbers:
        joint = [min(1, len(subset) * min(values[each] for each in subset)) for subset in sets if number in subset]
        assert adjusted[number] == pytest.approx(max(joint))  # pyright: ignore[reportArgumentType]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("metric", "k", "rarity"), [("auc", 6, 0), ("accuracy", 6, 0), ("log_loss", 12, 0), ("auc", 8, 4)]
)
def test_an_equally_good_candidate_is_refused_in_the_asked_share_at_most(metric, k, rarity):
    """Also on slices in which one of the labels is rare."""
    rounds, rate = 300, 0.1
    refused = 0
    for seed in range(rounds):
        evaluation = evaluated(seed=seed, sizes={f"s{number}": 150 for number in range(k)}, rarity=rarity)
        p_values = {part.name: part.differences[metric].p_worse for part in evaluation.slices if not part.why_not}
        refused += min(holm({name: p for name, p in p_values.items() if p is not None}).values()) <= rate
    assert refused / rounds <= rate + 2.6 * math.sqrt(rate * (1 - rate) / rounds), refused
    assert refused > 0, "a test that never refuses shows nothing"


def test_a_loss_is_tested_on_its_own_side():
    part = evaluated(loss_on="UA").slices[1]
    for change in part.differences.values():
        assert change.p_value is not None and change.p_worse is not None
        assert change.p_worse < 0.01 < 0.9 < change.p_value
    auc = part.differences["auc"]
    assert auc.p_value is not None and auc.p_worse == pytest.approx(1 - auc.p_value)


# Provenance and checks


@pytest.fixture(scope="module")
def registry(tmp_path_factory, empty_database) -> MlflowModels:
    """A registry with the model `delay`."""
    file = shutil.copy(empty_database, tmp_path_factory.mktemp("mlflow"))
    resource = MlflowResource(tracking_uri=f"sqlite:///{file}")
    models = MlflowModels(resource, resource.client())
    models.client.create_registered_model("delay")
    return models


def trained_run(run_id: str, **facts: Any) -> TrainingRun:
    defaults = {"code_commit": "c" * 40, "upstream": (Ref("dvc", "dataset", "rows.parquet@" + "d" * 32),), **facts}
    return TrainingRun(run_id=run_id, tracking_uri="sqlite://", **defaults)


@pytest.mark.parametrize(
    ("facts", "options", "why"),
    [
        ({}, {}, ""),
        ({"dirty": "d" * 64}, {}, "Commit them, then train it again"),
        ({"dirty": "d" * 64}, {"committed_code": False}, ""),
        ({"code_commit": ""}, {}, "Train it in a git repository"),
        ({"upstream": ()}, {}, "Make the training asset depend on its data"),
        ({"upstream": (Ref.unknown("asset", "raw/x"),)}, {}, "raw/x has no version on record"),
        ({"upstream": (Ref.unknown("asset", "raw/x"),)}, {"unversioned": ["raw/x"]}, ""),
        ({"upstream": (Ref.unknown("asset", "raw/x"),)}, {"versioned_inputs": False}, ""),
        (None, {}, "has no record. Train by training_asset"),
    ],
)
def test_provenance_is_complete_where_nothing_is_missing_in_the_record_of_the_run(registry, facts, options, why):
    run = registry.client.create_run("0").info.run_id
    if facts is not None:
        registry.client.set_tag(run, "dagster_mlops.record", trained_run(run, **facts).to_json())
    candidate = ModelVersion(name="delay", version="1", run_id=run, tracking_uri="")
    registry.client.create_model_version("delay", f"/models/{run}", run)
    [row] = Gate([CompleteProvenance(**options)], Case(registry, candidate)).judge(None).rows
    assert (row.verdict, why in row.why) == ("fails" if why else "holds", True), row


def test_provenance_is_read_from_dagster_first(world):
    world.crown(world.train(auc=0.7))
    for dirty, verdict in (("d" * 64, "fails"), ("", "holds")):
        run = world.client.create_run("0").info.run_id
        world.train(trained_run(run, dirty=dirty), run=run)
        [row] = world.decide(CompleteProvenance())
        assert row["verdict"] == verdict and row["candidate"] == "c" * 10


def test_named_checks_are_green_and_young(challenged, monkeypatch):
    rule = GreenChecks(checks=["predictions:drift", "predictions:fair"], max_age=timedelta(hours=1))
    rows = challenged.decide(rule)
    assert verdicts(rows) == ["fails", "fails"] and "it was never evaluated" in rows[0]["why"]
    for severity in (dg.AssetCheckSeverity.WARN, dg.AssetCheckSeverity.ERROR):
        challenged.check("fair", True)
        challenged.check("drift", False, severity)
        rows = challenged.decide(rule)
        assert verdicts(rows) == ["fails", "holds"] and "it failed. Fix the cause" in rows[0]["why"]
    challenged.check("drift", True)
    assert verdicts(challenged.decide(AtLeast(metric="auc", limit=0.9), rule)) == ["fails", "holds", "holds"]
    clock = SimpleNamespace(time=lambda: time.time() + 7200)
    monkeypatch.setattr("dagster_mlops.promotion.rules.checks.time", clock)
    rows = challenged.decide(rule)
    assert (
        verdicts(rows) == ["fails", "fails"] and "and at most 1:00:00 is allowed. Evaluate it again" in rows[0]["why"]
    )


def test_a_check_that_could_not_tell_is_not_green(challenged):
    challenged.check("drift", True, state="undecided", reason="40 rows are too few.")
    [row] = challenged.decide(GreenChecks(checks=["predictions:drift"]))
    assert row["verdict"] == "fails" and "it was undecided: 40 rows are too few. Fix the cause" in row["why"]
    challenged.check("drift", True, state="ok")
    assert verdicts(challenged.decide(GreenChecks(checks=["predictions:drift"]))) == ["holds"]


# Rules of one's own, and rules that are refused


class Prime:
    """A rule of a user."""

    name = "prime version"

    def judge(self, case: Case) -> list[Row]:
        number = int(case.candidate.version)
        return [Row.of(self.name, number in (2, 3, 5, 7), f"{1 / (number - 2):g}")]


def test_a_rule_of_the_users_own_that_crashes_fails_and_hides_no_other(challenged):
    rows = challenged.decide(Prime(), AtLeast(metric="auc", limit=0.5))
    assert verdicts(rows) == ["fails", "holds"]
    assert rows[0]["why"] == "the rule crashed: ZeroDivisionError: division by zero"
    challenged.train(auc=0.9)
    assert verdicts(challenged.decide(Prime())) == ["holds"]


def test_the_rule_on_the_page_judges_by_what_the_training_has_logged(world):
    namespace = pages.names(pages.blocks("promotion.md", "python", after="## A rule of your own")[0])
    world.crown(world.train(inputs=12))
    for count, verdict in ((41, "fails"), (40, "holds")):
        world.train(inputs=count)
        assert verdicts(world.decide(namespace["FewerInputs"]())) == [verdict]


class Slow:
    """A rule that knows how often it was asked, and if others had to wait for that."""

    name = "slow"

    def __init__(self) -> None:
        self.turns: list[bool] = []

    def judge(self, case: Case) -> list[Row]:
        model: Any = case.registry
        tags = model.client.get_registered_model("delay").tags
        self.turns.append(any(tag.startswith(TURN) for tag in tags))
        return [Row.of(self.name, False, "too slow")]


def test_rules_are_judged_once_and_before_other_promotions_have_to_wait(challenged):
    rule = Slow()
    challenged.decide(rule)
    assert rule.turns == [False]


WRONG: list[tuple[Any, dict[str, Any], str]] = [
    (AtLeast, {"metric": "auc", "limit": math.nan}, "limit=nan is not a finite number"),
    (AtLeast, {"metric": "auc", "limit": math.inf}, "limit=inf is not a finite number"),
    (AtMost, {"metric": "auc", "limit": "0.7"}, "limit='0.7' is not a finite number"),
    (AtMost, {"metric": "", "limit": 1}, "metric='' is not a name"),
    (Improvement, {"metric": "auc", "absolute": 0.1, "relative": 0.1}, "give absolute or relative, not both"),
    (Improvement, {"metric": "auc", "absolute": -0.1}, "absolute=-0.1 is not a finite number from 0 on"),
    (Improvement, {"metric": "auc", "relative": math.nan}, "relative=nan is not a finite number"),
    (Improvement, {"metric": "auc", "greater_is_better": "minimize"}, "greater_is_better is True or False"),
    (Better, {"metric": "auc", "min_improvement": math.inf}, "min_improvement=inf is not a finite number"),
    (Better, {"metric": "auc", "error_rate": 0}, "the rate is between 0 and 1"),
    (Better, {"metric": "auc", "error_rate": math.nan}, "the rate is between 0 and 1"),
    (Better, {"metric": "auc", "looks": 0}, "at least one candidate shares it"),
    (NotWorseOnSlices, {"metric": "auc", "error_rate": 1}, "error_rate=1 is not between 0 and 1"),
    (CompleteProvenance, {"committed_code": False, "versioned_inputs": False}, "it asks for nothing"),
    (CompleteProvenance, {"unversioned": "raw/x"}, "Give a list of asset keys"),
    (GreenChecks, {"checks": []}, "is not a list such as ['predictions:drift']"),
    (GreenChecks, {"checks": "predictions:drift"}, "is not a list such as ['predictions:drift']"),
    (GreenChecks, {"checks": ["drift"]}, "['drift'] do not name asset and check"),
    (GreenChecks, {"checks": ["a:b"], "max_age": timedelta(-1)}, "is not a time above 0"),
    (FreshData, {"assets": [], "max_age": timedelta(1)}, "is not a list such as ['training_set']"),
    (FreshData, {"assets": "rows", "max_age": timedelta(1)}, "is not a list such as ['training_set']"),
    (FreshData, {"assets": ["rows"], "max_age": timedelta(0)}, "is not a time above 0"),
    (FreshData, {"assets": ["rows"], "max_age": 7}, "is not a time above 0"),
    (ModelSize, {"max_megabytes": math.nan}, "is not a finite number above 0"),
    (ModelSize, {"max_megabytes": 0}, "is not a finite number above 0"),
    (PredictionTime, {"max_milliseconds": -1}, "is not a finite number above 0"),
    (PredictionTime, {"max_milliseconds": math.inf}, "is not a finite number above 0"),
]


@pytest.mark.parametrize(("kind", "arguments", "fix"), WRONG)
def test_a_rule_that_can_never_hold_or_never_fail_is_refused_with_the_fix(kind, arguments, fix):
    with pytest.raises(dg.DagsterInvalidDefinitionError) as refusal:
        kind(**arguments)
    assert fix in str(refusal.value) and str(refusal.value).startswith(kind.__name__)


RULES = [AtLeast(metric="auc", limit=0.7)]


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        ({}, "promotion_asset has no rule"),
        ({"rules": ["auc"]}, "'auc' is not a rule"),
        ({"rules": Prime()}, "Give a list: rules=["),
        ({"rules": [AtLeast]}, "is not a rule"),
        ({"rules": [Better(metric="auc")]}, "Name one by evaluation="),
        ({"rules": [NotWorseOnSlices(metric="auc")]}, "Name one by evaluation="),
        ({"metric": "auc", "min_improvement": -1}, "min_improvement=-1 is not a finite number"),
        ({"metric": "auc", "error_rate": 5}, "error_rate=5"),
        ({"metric": "auc", "evaluation": "evaluation", "error_rate": 5}, "error_rate=5"),
        ({"metric": " "}, "metric=' ' is not a name"),
        ({"rules": RULES, "min_improvement": 0.01}, "min_improvement=0.01"),
        ({"rules": RULES, "greater_is_better": False}, "greater_is_better=False"),
        ({"rules": RULES, "evaluation": "evaluation", "looks": 9}, "looks=9"),
        ({"metric": "auc", "error_rate": 0.01}, "error_rate=0.01"),
        ({"rules": RULES, "approval": {}}, "approval={} is not an object such as Approval()"),
        ({"rules": RULES, "lifecycle": {}}, "lifecycle={} is not an object such as Lifecycle()"),
        ({"rules": RULES, "approval": Approval(separate_duties=cast(Any, "no"))}, "separate_duties. people"),
        ({"rules": RULES, "approval": Approval(approvers=cast(Any, None))}, "give a list of names"),
        ({"rules": RULES, "candidate": None}, "candidate=None names no asset"),
        ({"rules": RULES, "registered_model_name": None}, "registered_model_name=None is empty, or not a text"),
        ({"rules": RULES, "alias": 5}, "alias=5 is empty, or not a text"),
        ({"rules": RULES, "registry": None}, "None is not the key of a resource"),
        ({"rules": None}, "rules=None is not a list"),
    ],
)
def test_a_promotion_whose_rules_cannot_be_judged_is_refused_when_definitions_load(options, fix):
    with pytest.raises(dg.DagsterInvalidDefinitionError) as refusal:
        promotion_asset(**{"candidate": "model", "registered_model_name": "delay", **options})
    assert fix in str(refusal.value)
