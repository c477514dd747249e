"""Data quality on the values as they came, without any tool."""

import datetime
import sys
from datetime import timedelta

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagster_mlops.monitoring import data_quality_check
from dagster_mlops.monitoring.normalise import normalise
from dagster_mlops.monitoring.quality.examine import examine
from dagster_mlops.monitoring.quality.expectations import Expectations
from dagster_mlops.monitoring.quality.rules import Rules
from tests.support import known_warnings
from tests.support.checked_frames import evaluated, facts

pytestmark = [*known_warnings.DAGSTER_BETA]


def problems(frame, expected=None, **rules):
    return examine(frame, Rules(**rules), expected).problems


@pytest.mark.parametrize(
    "ids",
    [
        [9007199254740993, 9007199254740992],  # one float64
        [1234567890123456789, 1234567890123456788],
        [1234567890123456789, None, 1234567890123456788],
        ["007", "7"],
        [2**70, 2**70 + 1],
    ],
)
def test_different_keys_do_not_repeat(ids):
    frames = [pd.DataFrame({"id": pd.Series(ids, dtype=object)})]
    if 2**70 not in ids:
        frames.append(pa.table({"id": ids}))
    for frame in frames:
        assert problems(frame, no_duplicates_of=["id"]) == []
    twice = pd.DataFrame({"id": pd.Series(ids * 2, dtype=object)})
    assert examine(twice, Rules(no_duplicates_of=["id"])).duplicates == len(ids)


def test_keys_that_cannot_be_hashed_are_compared_too():
    lists = pd.DataFrame({"id": [[1, 2], [1, 3], [1, 2]]})
    assert examine(lists, Rules(no_duplicates_of=["id"])).duplicates == 1


FLIGHTS = pd.DataFrame({"temp": [50.0, 60.0], "dewp": [40.0, 61.0], "carrier": ["UA", "ZZ"], "late": [True, False]})


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"at_least": {"temp": "dewp"}}, "'temp' is below 'dewp' in 50.0% of 2 rows"),
        ({"categories": {"carrier": ["UA", "B6"]}}, "'carrier' has 1 values of none of its categories: 'ZZ'"),
        ({"categories": {"temp": [50]}}, "'temp' has 1 values of none of its categories: '60.0'"),
        ({"types": {"carrier": "number"}}, "'carrier' is category, not number"),
        ({"max_rows": 1}, "2 rows, at most 1 expected"),
        ({"min_rows": 3}, "2 rows, at least 3 expected"),
        ({"time": "temp", "max_age": timedelta(hours=1)}, "'temp' holds no times"),
        ({"ranges": {"carrier": (0, 1)}}, "'carrier' holds no numbers (category)"),
    ],
)
def test_each_rule_names_its_fault(rules, says):
    assert problems(FLIGHTS, **rules) == [says]
    assert problems(FLIGHTS) == []


def test_old_times_and_times_to_come():
    now = datetime.datetime.now(datetime.UTC)
    rules = {"time": "at", "max_age": timedelta(hours=2)}

    def at(*hours, text=False):
        times = [now - timedelta(hours=hour) for hour in hours]
        return pd.DataFrame({"at": [str(time) for time in times] if text else times})

    assert problems(at(1, 5), **rules) == problems(at(1, 5, text=True), **rules) == []
    assert "older than 2:00:00" in problems(at(3, 5), **rules)[0]
    future, old = problems(at(3, -5000), **rules)
    assert future == "'at' has 1 times in the future" and "older than" in old


def weather(seed, rows=2000):
    random = np.random.default_rng(seed)
    temp = random.normal(50, 12, rows)
    dewp = temp - random.gamma(2, 4, rows)
    humid = random.uniform(20, 90, rows).astype(object)
    humid[random.random(rows) < 0.05] = None
    return pd.DataFrame(
        {
            "temp": temp,
            "dewp": dewp,
            "humid": humid,
            "origin": random.choice(["EWR", "JFK", "LGA"], rows),
            "tail": [f"N{n}" for n in random.integers(0, 4000, rows)],
            "late": random.random(rows) < 0.2,
        }
    )


EXPECTED = Expectations.learn(normalise(weather(0)))


def test_a_reference_lets_expect_types_ranges_categories_and_orders():
    assert EXPECTED.orders == (("temp", "dewp"),)
    assert set(EXPECTED.categories) == {"origin", "late"} and set(EXPECTED.ranges) == {"temp", "dewp", "humid"}


@pytest.mark.parametrize("seed", range(1, 21))
def test_rows_like_the_reference_have_no_problem(seed):
    for rows in (2000, 50):
        assert problems(weather(seed, rows), EXPECTED) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.assign(temp=(w["temp"] - 32) / 1.8), "'temp' is below 'dewp'"),
        (lambda w: w.assign(temp=w["dewp"], dewp=w["temp"]), "'temp' is below 'dewp' in 100.0% of 2000 rows"),
        (lambda w: w.assign(humid=w["humid"].mask(w.index % 10 == 0)), "'humid' misses 14"),
        (lambda w: w.assign(humid=w["humid"] * 3), "outside 20"),
        (lambda w: w.assign(origin=w["origin"].mask(w.index % 20 == 0, "BOS")), "new to the reference: 'BOS'"),
        (lambda w: w.assign(origin=1.0), "'origin' was category, is number"),
        (lambda w: w.drop(columns="tail"), "column 'tail' is not there"),
        (lambda w: w.assign(late=2.0), "'late' was category, is number"),
        (lambda w: w.set_axis(["temp", "temp", *w.columns[2:]], axis=1), "2 columns are called 'temp'"),
    ],
    ids=["celsius", "swapped", "missing", "range", "category", "type", "gone", "not truth", "one name"],
)
def test_what_the_reference_never_had_is_a_problem(change, says):
    assert any(says in problem for problem in problems(change(weather(1)), EXPECTED))


def test_true_and_false_as_one_and_zero_are_no_change_of_type():
    assert problems(weather(1).assign(late=weather(1)["late"].astype(int)), EXPECTED) == []
    numbers = Expectations.learn(normalise(weather(0)[["late"]].astype(int)))
    assert problems(weather(1)[["late"]], numbers) == []


def test_the_check_needs_no_tool_and_says_its_state(monkeypatch):
    monkeypatch.setitem(sys.modules, "evidently", None)
    check = data_quality_check(asset="now", reference="good")
    done = evaluated({"now": weather(1), "good": weather(0)}, check)["data_quality"]
    assert done.passed and facts(done)["monitoring/state"] == "ok" and facts(done)["monitoring/reference_rows"] == 2000
    done = evaluated({"now": weather(1).assign(temp=1e308), "good": weather(0)}, check)["data_quality"]
    assert not done.passed and done.severity == dg.AssetCheckSeverity.ERROR
    assert (
        facts(done)["monitoring/state"] == "detected" and "'temp' has 2000 values" in facts(done)["monitoring/reason"]
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"columns": "temp"}, "is a text"),
        ({"columns": []}, "columns is empty"),
        ({"max_rows": 0}, "max_rows=0 is less than min_rows=1"),
        ({"types": {"x": "integer"}}, "types={'x': 'integer'}: it should be 'number', 'category'"),
        ({"categories": {"x": []}}, "not a list of some"),
        ({"categories": {"x": "UA"}}, "not a list of some"),
        ({"at_least": {"x": "x"}}, "always at least itself"),
        ({"time": "at"}, "time and max_age go together"),
        ({"time": "at", "max_age": timedelta(0)}, "is not a time above 0"),
        ({"tolerance": 2}, "tolerance=2"),
        ({"learn": ["everything"]}, "it should be 'types', 'missing'"),
        ({"learn": []}, "is not a list of some of types"),
    ],
)
def test_senseless_rules_are_refused_when_the_check_is_defined(options, says):
    with pytest.raises(dg.DagsterInvalidDefinitionError, match=says):
        data_quality_check(asset="a", **options)


CELLS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.dates())


ROWS = st.lists(st.tuples(CELLS, CELLS), max_size=8)


@settings(max_examples=40, deadline=None)
@given(ROWS, ROWS)
def test_any_two_frames_have_findings(current, reference):
    frames = [pd.DataFrame(rows, columns=pd.Index(["a", "b"]), dtype=object) for rows in (current, reference * 40)]
    rules = Rules(no_duplicates_of=["a", "b"], at_least={"a": "b"}, ranges={"a": (0, 1)})
    quality = examine(frames[0], rules, Expectations.learn(normalise(frames[1])))
    assert {f.column for f in quality.findings} == {"a", "b"}


def test_names_of_any_length_make_no_long_result():
    frame = pd.DataFrame({"n" * 1_000_000: [None] * 30, "late\n\x1b[2K": [None] * 30})
    [done] = evaluated({"raw": frame}, data_quality_check(asset="raw", max_missing_share=0.1)).values()
    assert not done.passed and len(f"{done.description}{facts(done)}") < 20_000
    assert "\n" not in str(done.description) and "\x1b" not in str(done.description)
