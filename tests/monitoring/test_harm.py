"""A change that hurts predictions is told from one that does not, by labels or, before they are there, a rehearsal."""

from datetime import timedelta
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring import alarm_asset, divergence_sensor
from dagster_mlops.monitoring.alarm.value import Size
from dagster_mlops.monitoring.alerts.alert import Case, Evaluation
from dagster_mlops.monitoring.live.state_files import StateFiles
from dagster_mlops.monitoring.live.watch import Watch
from dagster_mlops.monitoring.performance.harm import HarmScale
from tests.support.logged_traffic import MONDAY, log_of, traffic

HOURS = 12
START = MONDAY + timedelta(weeks=8)


def rows_of(start, days, seed=0):
    """Traffic whose model looks at `wind`, and not at `temp`; it is right as often as it says."""
    rows = traffic(start, days, seed=seed)
    rows["probability"] = 1 / (1 + np.exp(3 - rows["wind"] / 2))
    return rows.assign(late=(np.random.default_rng(seed).random(len(rows)) < rows["probability"]).astype(int))


@pytest.fixture(scope="module")
def scale():
    columns = ["temp", "wind", "origin"]
    return HarmScale.learn(rows_of(MONDAY, 56), "late", "probability", 200, columns=columns)


def test_a_rehearsal_knows_which_columns_matter(scale):
    assert scale.rehearsed([("temp", "missing")]).verdict == "benign"
    assert scale.rehearsed([("wind", "missing")]).verdict == "harmful"
    assert scale.rehearsed([("temp", "missing"), ("wind", "far above")]).verdict == "harmful"
    assert scale.rehearsed([("wind", "distribution"), ("wind", "missing")]).verdict == "harmful"
    assert scale.rehearsed([("wind", "distribution")]).verdict == "undecided"  # it may be windy
    assert scale.rehearsed([("temp", "mean"), ("probability", "mean")]).verdict == "undecided"


def test_labels_decide_when_there_are_enough_of_them(scale):
    rows = rows_of(START, 10, seed=4)
    labels, scores = rows["late"].to_numpy(), rows["probability"].to_numpy()
    assert scale.realized(labels, scores).verdict == "benign"
    assert scale.realized(1 - labels, scores).verdict == "harmful"
    assert scale.realized(labels[:150], scores[:150]) is None
    assert scale.realized(np.zeros(500), scores[:500]) is None


def test_an_estimate_needs_no_labels_and_sees_scores_that_say_nothing(scale):
    scores = rows_of(START, 10, seed=4)["probability"].to_numpy()
    assert scale.estimated(scores).verdict != "harmful"
    assert scale.estimated(np.full(2_000, scores.mean())).verdict == "harmful"
    assert scale.estimated(np.array([])).verdict == "undecided"


def test_a_scale_survives_its_stored_form(scale):
    assert HarmScale.from_dict(scale.to_dict()).rehearsed([("wind", "missing")]) == scale.rehearsed(
        [("wind", "missing")]
    )


def test_too_few_labels_are_refused(scale):
    with pytest.raises(MonitoringError, match="1,000 of both classes"):
        HarmScale.learn(rows_of(MONDAY, 0.5), "late", "probability", 200)


@pytest.mark.parametrize(
    ("column", "feedback", "verdict", "severity"),
    [
        ("temp", "", "benign", "WARN"),
        ("wind", "", "harmful", "ERROR"),
        ("temp", "wrong", "harmful", "ERROR"),
    ],
)
def test_the_verdict_of_an_incident_says_if_it_is_harmful(tmp_path, column, feedback, verdict, severity):
    live = rows_of(START, HOURS / 24, seed=3)
    broken = live.assign(**{column: live[column].where(live["time"] < START + timedelta(hours=6))})

    @dg.asset
    def history():
        return rows_of(MONDAY, 56)

    @dg.asset
    def service(): ...

    @dg.asset
    def labels():
        times = pd.to_datetime(live["time"], utc=True)
        wrong = 1 - live["late"] if feedback == "wrong" else live["late"]
        return pd.DataFrame({"timestamp": times, "output": live["probability"], "late": wrong})

    outputs = {"probability": "output"}
    columns = ["temp", "wind", "origin", "probability"]
    alarm = alarm_asset(
        history=history, time="time", columns=columns, outputs=outputs, rows=60, label="late", prediction="probability"
    )
    more: Any = {"labels": labels} if feedback else {}
    log = tmp_path / "log"
    sensor = divergence_sensor(deployment=service, alarm=alarm, prediction_log=log, silence=None, **more)
    resources: Any = {"io_manager": dg.FilesystemIOManager(base_dir=str(tmp_path / "values"))}
    assets = [history, service, labels, alarm]
    repository = dg.Definitions(assets=assets, sensors=[sensor], resources=resources).get_repository_def()
    logged: Any = broken[["time", "temp", "wind", "origin", "probability"]]
    log_of(log, logged)
    (tmp_path / "home").mkdir()
    with dg.instance_for_test(temp_dir=str(tmp_path / "home")) as instance:
        dg.materialize(assets, instance=instance, resources=resources)
        value: Any = repository.load_asset_value("alarm", instance=instance)
        from dagster_mlops.monitoring.alarm.value import Alarm

        calibrated = Alarm.from_dict(value)
        assert calibrated.size == Size(rows=60)
        cursor = StateFiles(log / "watches" / "service" / "divergence").write(Watch(calibrated, log).begin(START), None)
        result: Any = sensor(dg.build_sensor_context(instance, cursor=cursor, repository_def=repository))
    failed = [event for event in result.asset_events if not event.passed]
    assert failed and {event.metadata["monitoring/harm"].value for event in failed} == {verdict}
    assert {event.severity.value for event in failed} == {severity}
    assert verdict.capitalize() in failed[0].description
    assert f": {column}: 100.0 % missing" in failed[0].description


def test_a_benign_incident_is_sent_when_it_turns_out_to_be_more():
    def evaluation(id, harm, passed=False):
        metadata = {"monitoring/harm": harm} if harm else {}
        return Evaluation(id, START + timedelta(hours=id), passed, False, "i", "WARN", "temp", metadata)

    def alerts(*harms, **options):
        case, events = Case(), []
        for id, harm in enumerate(harms, 1):
            read = evaluation(id, harm, passed=harm == "passed")
            case, alert = case.after(read, "a:b", timedelta(0), **options)
            events.append(alert.event if alert else "")
        return events

    assert alerts("benign", None, "benign", "passed") == ["", "", "", ""]
    assert alerts("benign", "undecided", "benign", "passed") == ["", "detected", "", "recovered"]
    assert alerts("benign", "harmful", None, "passed") == ["", "detected", "", "recovered"]
    assert alerts("benign", "passed", send_benign=True) == ["detected", "recovered"]
    case, _ = Case().after(evaluation(1, "benign"), "a:b", timedelta(0))
    assert case.reminder("a:b", START + timedelta(days=9), timedelta(hours=1))[1] is None
