"""Drift measured by river, and that any measure leaves the same verdicts, record and picture."""

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from dagster_mlops.errors import MonitoringError
from dagster_mlops.evidently import EvidentlyResource
from dagster_mlops.evidently import drift_check as evidently_drift_check
from dagster_mlops.monitoring.comparison.compare import compare
from dagster_mlops.monitoring.normalise import normalise
from dagster_mlops.provenance import Report
from dagster_mlops.river import RiverResource, drift_check
from dagster_mlops.testing import check_measure


def weather(rows: int = 2000, *, warmer: float = 0.0, start: int = 0, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    temp = random.normal(40, 10, rows)
    temp[start:] += warmer
    origin = random.choice(["EWR", "JFK", "LGA"], rows)
    return pd.DataFrame({"temp": temp, "wind": random.gamma(2, 5, rows), "origin": origin})


def evaluated(current: object, *checks: dg.AssetChecksDefinition) -> dict[str, dg.AssetCheckEvaluation]:
    """The evaluations of checks of `current` against the same weather of another year."""
    frames = {"current": current, "reference": weather()}

    def asset_of(name: str) -> dg.AssetsDefinition:
        return dg.asset(name=name)(lambda: frames[name])

    resources = {"river": RiverResource(), "evidently": EvidentlyResource(reports="reports")}
    result = dg.materialize([*map(asset_of, frames), *checks], resources=resources, raise_on_error=False)
    return {e.check_name: e for e in result.get_asset_check_evaluations()}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_river_keeps_the_contract_of_a_measure():
    check_measure(RiverResource())


def test_a_shift_is_found_with_the_row_from_which_on_it_lasts():
    current = weather(warmer=15, start=700, seed=1)
    done = evaluated(current, drift_check(asset="current", reference="reference", drift_share=0.3))["drift"]
    assert not done.passed and done.severity == dg.AssetCheckSeverity.WARN
    assert done.description == "Far from the reference: temp. 1 of 3 columns drifted: temp"
    columns = done.metadata["river/columns"]
    assert isinstance(columns, dg.TableMetadataValue)
    worst = columns.records[0].data
    assert worst["column"] == "temp" and float(str(worst["score"])) == pytest.approx(1.5, abs=0.1)
    row = int(str(worst["verdict"]).removeprefix("drifted from row ").removesuffix(" on"))
    assert abs(row - 700) < 50


def test_any_measure_leaves_the_same_verdicts_record_and_picture():
    checks = [
        check(asset="current", reference="reference", name=name, drift_share=0.3)
        for name, check in (("river", drift_check), ("evidently", evidently_drift_check))
    ]
    done = evaluated(weather(warmer=15, seed=1), *checks)
    assert done["river"].description == done["evidently"].description
    by_tool = {tool: {key.removeprefix(f"{tool}/") for key in done[tool].metadata} for tool in done}
    assert by_tool["evidently"] - by_tool["river"] == {"report"}
    records = [Report.from_metadata(done[tool].metadata) for tool in ("river", "evidently")]
    assert records[0] and records[1]
    assert records[0].drifted == records[1].drifted == ("temp",)
    assert records[0].drift_share == records[1].drift_share


def test_a_shift_that_is_too_small_to_matter_is_not_drift():
    assert evaluated(weather(warmer=1.5, seed=1), drift_check(asset="current", reference="reference"))["drift"].passed
    strict = compare(
        normalise(weather(warmer=1.5, seed=1)), normalise(weather()), RiverResource(), options={"number_shift": 0.1}
    )
    assert strict.drifted == ["temp"]


def test_an_option_that_river_does_not_take_is_a_failed_check():
    check = drift_check(asset="current", reference="reference", options={"deltta": 0.1})
    done = evaluated(weather(), check)["drift"]
    assert not done.passed and done.severity == dg.AssetCheckSeverity.ERROR
    assert "deltta" in (done.description or "")
    with pytest.raises(MonitoringError):
        RiverResource().detector(deltta=0.1)
