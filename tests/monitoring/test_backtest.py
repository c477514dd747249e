"""`dagster-mlops backtest`: alarms over a history, incidents put into it, and the rate that was asked for."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from dagster_mlops.cli import app
from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring.backtest.injection import Injection

RNG = np.random.default_rng(0)
ROWS = 120 * 24 * 8
FRAME = pd.DataFrame(
    {
        "when": pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(np.sort(RNG.random(ROWS)) * 120, unit="D"),
        "amount": RNG.gamma(2, 10, ROWS),
        "weight": RNG.normal(70, 10, ROWS),
        "kind": RNG.choice(["card", "cash"], ROWS),
    }
)


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    path = tmp_path_factory.mktemp("history") / "history.parquet"
    FRAME.to_parquet(path)
    return path


def run(*arguments):
    return CliRunner().invoke(app, ["backtest", *map(str, arguments)])


INCIDENTS = {
    "amount: missing in 10 % from 2024-03-20": "amount",
    "amount: is 0 in 20% from 2024-04-01 to 2024-04-02": "amount",
    "weight: times 2.2 from 2024-03-25T12:00": "weight",
    "weight: plus 1 sd from 2024-04-05": "weight",
    "amount: swapped with weight from 2024-04-10": "amount",
    "kind: is crypto in 10 % from 2024-04-12": "kind",
    "amount: is unknown in 20 % from 2024-04-15": "amount",
}


def test_incidents_are_caught_in_the_column_and_soon(history, tmp_path):
    injections = [part for text in INCIDENTS for part in ("--inject", text)]
    picture = tmp_path / "scores.png"
    result = run(history, "--time", "when", "--rows", 200, "--last-days", 45, "--splits", 0, "--json",
                 "--picture", picture, *injections)  # fmt: skip
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    for entry in answer["incidents"]:
        assert 0 < entry["seconds"] < 3 * 86_400
        assert any(INCIDENTS[entry["incident"]] in text for text in entry["columns"])
    assert len(answer["incidents"]) == len(INCIDENTS) and answer["rate_in_30_days"] is None
    assert len(answer["windows"]) == pytest.approx(45 * 24 * 8 / 200, abs=2)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_measured_rate_is_beside_the_asked_one_and_an_incident_that_hides_is_not_caught(history, tmp_path):
    page = tmp_path / "scores.html"
    result = run(history, "--time", "when", "--minutes", 1440, "--splits", 2, "--picture", page,
                 "--inject", "weight: plus 0.001 sd from 2024-04-01")  # fmt: skip
    assert result.exit_code == 1 and "not caught" in result.stdout
    assert "alarms in 30 days" in result.stdout and "1.00 asked" in result.stdout
    assert "split 2 of 2" in result.stderr
    assert page.read_text().startswith("<!doctype html>") and "data:image/png;base64," in page.read_text()


def test_csv_and_a_history_too_short_for_a_rate(tmp_path):
    path = tmp_path / "history.csv"
    FRAME[FRAME["when"] < "2024-01-25"].to_csv(path, index=False)
    result = run(path, "--time", "when", "--rows", 50, "--last-days", 5, "--column", "amount")
    assert "in 5 days" in " ".join(result.stdout.split())
    result = run(path, "--time", "when", "--rows", 100, "--last-days", 5, "--column", "amount")
    assert result.exit_code in (0, 3)


WRONG = {
    "no file": ["nowhere.parquet", "--time", "when"],
    "no time": ["HISTORY"],
    "no such column": ["HISTORY", "--time", "when", "--column", "nope"],
    "both sizes": ["HISTORY", "--time", "when", "--rows", "10", "--minutes", "5"],
    "no rate": ["HISTORY", "--time", "when", "--alarms", "0"],
    "no zone": ["HISTORY", "--time", "when", "--zone", "Mars/Olympus"],
    "not an incident": ["HISTORY", "--time", "when", "--inject", "amount breaks on Monday"],
    "incident before": ["HISTORY", "--time", "when", "--inject", "amount: missing from 2024-01-05"],
    "incident elsewhere": ["HISTORY", "--time", "when", "--inject", "nope: missing from 2024-04-05"],
    "too short": ["HISTORY", "--time", "when", "--rows", "10000"],
    "not a table": ["TEXT", "--time", "when"],
    "empty folder": ["FOLDER"],
    "the time as a column": ["HISTORY", "--time", "when", "--column", "when"],
    "numbers for times": ["HISTORY", "--time", "amount"],
    "no rows": ["EMPTY", "--time", "when"],
    "not a number": ["HISTORY", "--time", "when", "--inject", "amount: times 1.2.3 from 2024-04-05"],
    "no folder for the picture": ["HISTORY", "--time", "when", "--picture", "nowhere/scores.png"],
    "picture": ["HISTORY", "--time", "when", "--picture", "scores.gif"],
}


@pytest.mark.parametrize("option", ["--minutes=1e12", "--per-days=nan", "--per-days=inf", "--last-days=1e300"])
def test_a_number_that_no_calendar_has_is_refused(option, history):
    result = run(history, "--time", "when", option)
    assert result.exit_code == 2 and option.partition("=")[0] in result.stderr


@pytest.mark.parametrize("name", WRONG)
def test_an_error_is_one_line_with_the_fix(name, history, tmp_path):
    text = tmp_path / "history.parquet"
    text.write_text("not a table")
    (tmp_path / "log").mkdir()
    empty = tmp_path / "empty.csv"
    empty.write_text("when,amount\n")
    places = {"HISTORY": history, "TEXT": text, "EMPTY": empty, "FOLDER": tmp_path / "log"}
    result = run(*(places.get(part, part) for part in WRONG[name]))
    assert result.exit_code == 2
    [message] = [line for line in result.stderr.splitlines() if line.startswith("dagster-mlops: ")]
    assert "Traceback" not in result.stderr and len(message) > 30


@pytest.mark.parametrize(
    "text",
    ["missing from 2024-01-01", "a: missing", "a: missing from then", "a: missing from 2024-01-02 to 2024-01-01",
     "a: missing in 200 % from 2024-01-01", "a: explodes from 2024-01-01"],
)  # fmt: skip
def test_an_incident_that_no_one_can_read_is_refused(text):
    with pytest.raises(MonitoringError):
        Injection.read(text)
