"""Columns that are no longer what they were, whatever tool measures the others."""

import datetime

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from dagster_mlops.core.check_states import undecided_because
from dagster_mlops.monitoring.comparison.compare import compare
from dagster_mlops.monitoring.normalise import normalise
from dagster_mlops.river import RiverResource

ROWS = 400


def verdicts(current, reference):
    left, right = (normalise(pd.DataFrame(side)) for side in (current, reference))
    return {c.column: c for c in compare(left, right, RiverResource()).columns}


IDS = np.arange(ROWS) + 1234567890123456789
DAYS = pd.date_range("2013-01-01", periods=ROWS, freq="h")


@pytest.mark.parametrize(
    ("current", "reference", "says"),
    [
        (["k"] * ROWS, [f"k{n}" for n in range(ROWS)], "identifiers repeat: 1 distinct of 400"),
        (IDS // 1000 * 1000, IDS, "identifiers repeat: "),
        (IDS.astype(float), IDS, "was category, is number"),
        (pd.DatetimeIndex(["1970-01-01"] * ROWS), DAYS, "100% of the dates are years from the reference"),
        (
            DAYS.where(DAYS < "2013-01-14", pd.Timestamp("1970-01-01")),
            DAYS,
            "of the dates are years from the reference",
        ),
        ([datetime.date(1, 1, 1)] * ROWS, [day.date() for day in DAYS], "years from the reference: from 0001-01-01"),
        (pd.DatetimeIndex(["2013-01-05"] * ROWS), DAYS, "100% of the dates are 2013-01-05"),
        ([None] * 300 + [f"k{n}" for n in range(100)], [f"k{n}" for n in range(ROWS)], "75% missing"),
    ],
    ids=["words", "whole numbers", "as floats", "epoch", "some epoch", "year 1", "stopped", "lost"],
)
def test_identifiers_and_dates_are_watched_though_no_tool_compares_them(current, reference, says):
    assert says in verdicts({"x": current}, {"x": reference})["x"].verdict
    assert verdicts({"x": current}, {"x": reference})["x"].broken
    assert not verdicts({"x": reference}, {"x": reference})["x"].drifted


def test_dates_that_move_on_are_no_fault():
    assert not verdicts({"x": DAYS + pd.Timedelta(days=90)}, {"x": DAYS})["x"].drifted


@pytest.mark.parametrize("words", [True, False])
def test_true_and_false_are_one_and_zero(words):
    truth = np.random.default_rng(0).random((2, ROWS)) < 0.3
    sides = [{"x": truth[0]}, {"x": truth[1].astype(float)}]
    assert not verdicts(*(sides if words else sides[::-1]))["x"].drifted
    assert verdicts({"x": ~truth[0]}, sides[1])["x"].drifted


def test_the_second_column_of_one_name_is_compared_too():
    values = np.random.default_rng(0).normal(size=(4, ROWS))
    twice = pd.Index(["x", "x"])
    reference = pd.DataFrame(values[:2].T, columns=twice)
    current = pd.DataFrame(np.add(values[2:].T, [0, 3]), columns=twice)
    result = compare(normalise(current), normalise(reference), RiverResource())
    assert result.drifted == ["x (2)"] and set(result.compared) == {"x", "x (2)"}


def test_new_words_of_a_long_tail_are_no_fault_and_new_words_of_a_short_one_are():
    random = np.random.default_rng(0)
    tail = [[f"N{n:05}" for n in random.zipf(1.3, ROWS) % 3000] for _ in range(2)]
    assert not verdicts({"x": tail[0]}, {"x": tail[1]})["x"].broken
    words = random.choice(list("ABC"), ROWS)
    assert verdicts({"x": np.where(np.arange(ROWS) < 260, "ZZ", words)}, {"x": words})["x"].broken


def test_two_samples_of_one_distribution_are_not_broken_by_chance():
    random = np.random.default_rng(1)
    sides = [{f"c{n}": random.standard_t(2, 100) for n in range(200)} for _ in range(2)]
    assert not [c for c in verdicts(*sides).values() if c.broken]


def test_an_evaluation_without_a_state_is_decided():
    facts = {"asset_key": dg.AssetKey("a"), "check_name": "drift", "passed": True}
    assert (
        undecided_because(dg.AssetCheckEvaluation(**facts, metadata={"mlflow/state": dg.TextMetadataValue("ok")}))
        is None
    )
    few = {"x/state": dg.TextMetadataValue("undecided"), "x/reason": dg.TextMetadataValue("few rows")}
    assert undecided_because(dg.AssetCheckEvaluation(**facts, metadata=few)) == "few rows"
