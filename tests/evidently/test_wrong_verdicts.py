"""Faults that a share of drifted columns hides, and checks that could say only one thing."""

from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from dagster_mlops.errors import MonitoringError
from dagster_mlops.evaluation import evaluation_checks
from dagster_mlops.evidently import EvidentlyResource, data_quality_check, drift_check, performance_check
from dagster_mlops.mlflow import metric_checks
from dagster_mlops.monitoring.comparison.compare import compare
from dagster_mlops.monitoring.comparison.measure import Comparison
from dagster_mlops.monitoring.comparison.structure import lost_values
from dagster_mlops.monitoring.normalise import normalise
from dagster_mlops.river import RiverResource
from tests.support import known_warnings

pytestmark = [*known_warnings.DAGSTER_BETA]

ROWS = 800


def good(columns: int = 5, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    return pd.DataFrame({f"c{n}": random.normal(n, 1, ROWS) for n in range(columns)})


def compared(current: pd.DataFrame, reference: pd.DataFrame | None = None, **options: Any) -> Comparison:
    evidently = EvidentlyResource(reports="r")
    return compare(
        normalise(current),
        normalise(good(len(current.columns)) if reference is None else reference),
        evidently,
        **options,
    )


def with_first(values: Any, columns: int = 5) -> pd.DataFrame:
    return good(columns, seed=1).assign(c0=values)


def first(share: float, bad: Any) -> list[Any]:
    values: list[Any] = good(1, seed=1)["c0"].tolist()
    return [bad if n < share * ROWS else value for n, value in enumerate(values)]


@pytest.mark.parametrize("columns", [13, pytest.param(5, marks=pytest.mark.thorough)])
@pytest.mark.parametrize(
    ("values", "says"),
    [
        (first(0.95, np.nan), "95% missing"),
        (first(0.3, np.inf), "30% missing or malformed"),
        (first(0.45, "n/a"), "45% missing or malformed"),
        (first(0.2, None), "20% missing"),
        ([f"word {n % 7}" for n in range(ROWS)], "was number, is category"),
        ([None] * ROWS, "empty in the current data"),
        ([pd.Timestamp("2013-01-01")] * ROWS, "was number, is date"),
    ],
)
def test_one_broken_column_is_an_alarm_whatever_the_others_do(values, says, columns):
    [broken] = compared(with_first(values, columns)).broken
    assert broken.column == "c0" and says in broken.verdict


def test_a_named_column_that_is_gone_is_broken():
    [broken] = compared(good().drop(columns="c3"), good(), columns=["c1", "c3"]).broken
    assert broken.verdict == "missing in the current data"


def test_columns_that_are_only_a_bit_worse_are_not_broken():
    for seed in range(20):
        current = good(seed=seed + 1).mask(np.random.default_rng(seed).random((ROWS, 5)) < 0.05)
        assert not compare(normalise(current), normalise(good()), RiverResource()).broken


def test_columns_that_are_often_missing_are_not_broken_by_chance():
    """Two samples of one distribution, 500 rows each and half of them missing: in a thousand, none is an alarm."""
    random = np.random.default_rng(3)
    halves = [
        normalise(pd.DataFrame(np.where(random.random((500, 1000)) < 0.5, np.nan, 1.0)))
        for _ in ("current", "reference")
    ]
    assert not [name for name in halves[0].kinds if lost_values(name, halves[0], halves[1], 0.1)]


def test_values_that_are_there_again_are_a_change_and_no_fault():
    result = compared(good(), with_first(first(0.5, np.nan)))
    assert result.drifted == ["c0"] and not result.broken


@pytest.mark.parametrize("tool", [EvidentlyResource(reports="r"), RiverResource()])
@pytest.mark.parametrize("outlier", [1e9, -1e9, 1e300])
@pytest.mark.parametrize("side", ["current", "reference"])
def test_one_huge_value_hides_no_shift(tool, outlier, side):
    frames = {"reference": good(1), "current": good(1, seed=1) + 3}
    frames[side].loc[5, "c0"] = outlier
    assert compare(normalise(frames["current"]), normalise(frames["reference"]), tool).drifted == ["c0"]
    frames = {"reference": good(1), "current": good(1, seed=1)}
    frames[side].loc[5, "c0"] = outlier
    assert compare(normalise(frames["current"]), normalise(frames["reference"]), tool).drifted == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"columns": ["c0", "tmep"]}, "'tmep'.*c0, c1"),
        ({"options": {"num_method": "psii"}}, "psii"),
        ({"options": {"per_column_method": {"c1": "wasserstien"}}}, "wasserstien"),
        ({"options": {"per_column_method": {"tmep": "psi"}}}, "tmep"),
        ({"options": {"per_column_threshold": {"tmep": 0.3}}}, "tmep"),
        ({"options": {"num_method": "chisquare"}}, "chisquare"),
    ],
)
def test_a_misspelt_method_or_column_is_no_drift(options, says):
    with pytest.raises(MonitoringError, match=says):
        compared(good(), **options)


CHECKS = {
    "drift": lambda **o: drift_check(asset="a", reference="b", **o),
    "quality": lambda **o: data_quality_check(asset="a", **o),
    "performance": lambda **o: performance_check(asset="a", target="t", prediction="p", **o),
    "metrics": lambda **o: metric_checks(asset="a", **o),
    "evaluation": lambda **o: evaluation_checks(evaluation="e", **o),
}


@pytest.mark.parametrize(
    ("check", "options", "says"),
    [
        ("drift", {"drift_share": 50}, "drift_share=50"),
        ("drift", {"drift_share": 0}, "drift_share=0"),
        ("drift", {"min_rows": 0}, "min_rows=0"),
        ("drift", {"columns": []}, "columns is empty"),
        ("drift", {"missing_change": 5}, "missing_change=5"),
        ("quality", {"ranges": {"x": (1, 0)}}, "no number is in the range 1 to 0 of 'x'"),
        ("quality", {"ranges": {"x": (float("nan"), 0)}}, "no number"),
        ("quality", {"max_missing_share": 5}, "max_missing_share of all columns=5"),
        ("quality", {"max_missing_share": {"x": -0.1}}, "of x=-0.1"),
        ("quality", {"max_malformed_share": 2}, "max_malformed_share=2"),
        ("performance", {"bounds": {"f1": 0.1}, "threshold": 50}, "threshold=50"),
        ("performance", {"reference": "r", "max_drop": -0.1}, "max_drop=-0.1"),
        ("performance", {"bounds": {"auc": 0.7}}, "no metric 'auc'.*roc_auc"),
        ("performance", {"bounds": {"roc_auc": (0.9, 0.7)}}, "none could pass"),
        ("metrics", {"bounds": {"auc": "0.7"}}, "'0.7'"),
        ("metrics", {"bounds": {"auc": (None, None)}}, "no value could fail"),
        ("metrics", {"bounds": {"cost": 3}}, "least, greatest"),
        ("metrics", {"bounds": {"auc": (0.7,)}}, "least, greatest"),
        ("evaluation", {"slice_bounds": {"auc": float("nan")}}, "least, greatest"),
        ("evaluation", {"max_drop": {"auc": -1}}, "below 0"),
    ],
)
def test_a_check_that_says_the_same_of_everything_is_refused(check, options, says):
    with pytest.raises(dg.DagsterInvalidDefinitionError, match=says):
        CHECKS[check](**options)


@pytest.mark.parametrize("check", ["metrics", "evaluation", "performance"])
def test_bounds_have_one_form_in_every_layer(check):
    metric = "roc_auc" if check == "performance" else "auc"
    for bounds in ({metric: 0.7}, {metric: (0.7, None)}, {"log_loss": 0.5}, {"log_loss": (None, 0.5)}):
        assert CHECKS[check](bounds=bounds)
