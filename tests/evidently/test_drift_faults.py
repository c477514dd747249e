"""Faults that a check of drift must not miss, through the public check: one of thirteen columns is enough."""

from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from dagster_mlops.evidently import EvidentlyResource, drift_check
from dagster_mlops.evidently.preset import METHODS, OPTIONS
from dagster_mlops.monitoring.comparison.compare import compare
from dagster_mlops.monitoring.normalise import normalise
from tests.support import known_warnings
from tests.support.checked_frames import evaluated, facts

pytestmark = [*known_warnings.DAGSTER_BETA]

ROWS = 600


def frame(seed: int, rows: int = ROWS) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    numbers = {f"c{n}": random.normal(n, 1, rows) for n in range(10)}
    weather = {"temp": random.normal(50, 12, rows), "humid": random.normal(57, 20, rows)}
    return pd.DataFrame({**numbers, **weather, "carrier": random.choice(list("ABCDE"), rows)})


def checked(current: pd.DataFrame, reference: pd.DataFrame, **options: Any) -> dg.AssetCheckEvaluation:
    check = drift_check(asset="current", reference="reference", **options)
    evidently = EvidentlyResource(reports="reports")
    return evaluated({"current": current, "reference": reference}, check, evidently=evidently)["drift"]


def outlying(values: pd.DataFrame, where: bool) -> pd.DataFrame:
    changed = values.copy()
    if where:
        changed.loc[5, "x"] = 1e9
    return changed


@pytest.mark.parametrize("side", ["none", "current", "reference"])
def test_three_standard_deviations_are_an_alarm_with_an_outlier_on_either_side(side):
    random = np.random.default_rng(0)
    reference, current = (pd.DataFrame({"x": random.normal(mean, 1, ROWS), "y": 1.0}) for mean in (0, 3))
    done = checked(outlying(current, side == "current"), outlying(reference, side == "reference"))
    assert not done.passed and facts(done)["evidently/state"] == "detected"
    assert "x (" in facts(done)["evidently/reason"]
    assert facts(done)["evidently/score/x"] > 2


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("temp", lambda good: (good["temp"] - 32) / 1.8),
        ("temp", lambda good: 0.0),
        ("temp", lambda good: good["humid"]),
        ("temp", lambda good: good["temp"].mask(good.index < 570)),
        ("temp", lambda good: good["temp"].mask(good.index < 200, np.inf)),
        ("carrier", lambda good: good["carrier"].where(good.index > 400, "ZZ")),
    ],
    ids=["celsius", "default", "swapped", "missing", "infinite", "new category"],
)
def test_one_of_thirteen_columns_is_an_alarm(column, values):
    good = frame(1)
    done = checked(good.assign(**{column: values(good)}), frame(0), drift_share=0.9)
    assert not done.passed and column in (done.description or "")
    assert facts(done)["evidently/drift_share"] == pytest.approx(1 / 13)


def test_the_same_distribution_is_ok_and_few_rows_are_undecided():
    done = checked(frame(1), frame(0))
    assert done.passed and facts(done)["evidently/state"] == "ok" and "evidently/reason" not in facts(done)
    done = checked(frame(1, 100), frame(0))
    assert done.passed and facts(done)["evidently/state"] == "undecided"
    done = checked(frame(1, 100).assign(temp=None), frame(0))
    assert not done.passed and "temp (empty in the current data)" in (done.description or "")


def test_importance_and_segments_are_the_users():
    reference, current = frame(0, 3000), frame(1, 3000)
    shifted = current.assign(c0=current["c0"] + 0.6, c1=current["c1"] + 0.6)
    assert checked(shifted, reference, columns=["c0", "c1", "c2", "c3", "c4"]).passed
    done = checked(shifted, reference, columns=["c0", "c1", "c2", "c3", "c4"], importance={"c0": 3})
    assert not done.passed and facts(done)["evidently/drift_share"] == pytest.approx(4 / 7)
    assert checked(current.assign(c0=9.0), reference, columns=["c0", "c1"], importance={"c0": 0}).passed

    of_a = current.assign(c2=current["c2"].where(current["carrier"] != "A", 0.0))
    done = checked(of_a, reference, columns=["c2", "c3", "c4"], segment="carrier", min_rows=500)
    assert not done.passed and "carrier A: Broken: c2 (100% of the values are 0)" in (done.description or "")
    table = done.metadata["evidently/segments"]
    assert isinstance(table, dg.TableMetadataValue)
    assert {row.data["segment"] for row in table.records} == set("ABCDE")


@pytest.mark.parametrize("huge", [1e308, -1e308])
def test_numbers_that_no_histogram_holds_cost_no_verdict(huge):
    reference, current = frame(0), frame(1)
    done = checked(current.assign(c0=[huge, -huge] * (ROWS // 2), c1=current["c1"] + 3), reference)
    assert facts(done)["evidently/state"] == "detected"
    assert all(name in str(done.description) for name in ("c0", "c1"))
    done = checked(current.assign(c0=huge), reference.assign(c0=huge))
    assert done.passed and facts(done)["evidently/state"] == "ok"


def test_a_report_is_bounded_by_columns_and_length_of_text_and_says_what_it_leaves_out(tmp_path):
    random = np.random.default_rng(0)
    wide = pd.DataFrame(random.normal(size=(200, 12)), columns=pd.Index([f"c{n}" for n in range(12)]))
    long = wide.assign(word=[f"{'x' * 50_000}{n % 3}" for n in range(200)])
    tool = EvidentlyResource(reports=str(tmp_path), report_columns=3)
    result = compare(normalise(long.assign(c7=wide["c7"] + 5)), normalise(long), tool)
    assert len(result.compared) == 13 and result.drifted == ["c7"]
    report: Any = result.report
    assert report.left_out == "shows the worst 3 of 13 columns"
    path = report.save(folder="drift", name="one", record={})
    assert "c7" in path.read_text() and "x" * 200 not in path.read_text()
    words = compare(normalise(long[["word"]]), normalise(long[["word"]]), tool)
    assert words.drifted == [] and words.columns[0].score == 0


def test_methods_and_options_are_evidentlys_own():
    from evidently.legacy.calculations.stattests import registry
    from evidently.presets import DataDriftPreset

    registered = {
        kind: sorted(n for n, of in registry._registered_stat_tests.items() if kind in {t.value for t in of})
        for kind in METHODS
    }
    assert registered == {kind: sorted(names) for kind, names in METHODS.items()}
    assert {*OPTIONS, "columns", "drift_share", "type"} == set(DataDriftPreset.__fields__)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"preset": {"num_method": "psii"}}, "num_method='psii' is not a method; there are anderson"),
        ({"preset": {"num_method": "chisquare"}}, "num_method='chisquare'"),
        ({"preset": {"per_column_method": {"c1": "wasserstien"}}}, "of 'c1'='wasserstien' is not a method"),
        ({"preset": {"num_methodd": "psi"}}, "no option 'num_methodd'"),
        ({"preset": {"num_threshold": -1}}, "num_threshold=-1"),
        ({"preset": {"per_column_threshold": {"c1": "0.1"}}}, "of 'c1'='0.1' is not a number above 0"),
        ({"preset": {"drift_share": 0.3}}, "the check itself takes drift_share="),
        ({"preset": {"per_column_method": {"tmep": "psi"}}, "columns": ["temp"]}, "'tmep', which columns lacks"),
        ({"importance": {"tmep": 2}, "columns": ["temp"]}, "importance names 'tmep'"),
        ({"importance": {"temp": -1}}, "importance of 'temp' is -1"),
        ({"importance": {"temp": 0}, "columns": ["temp"]}, "no column has any importance"),
        ({"alarm_at": 0}, "alarm_at=0"),
        ({"new_change": 0}, "new_change=0"),
        ({"columns": "temp"}, "is a text, not a list"),
    ],
)
def test_senseless_options_are_refused_when_the_check_is_defined(options, says):
    with pytest.raises(dg.DagsterInvalidDefinitionError, match=says):
        drift_check(asset="a", reference="b", **options)
