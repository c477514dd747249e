"""An incident is answered with one run, and no loop of alarms and runs can exceed the limits."""

from datetime import timedelta
from typing import Any

import dagster as dg
import pytest

from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring import response_sensor

KEY = dg.AssetCheckKey(dg.AssetKey("deployment"), "divergence")
AT_ONCE = {"cool_off": timedelta(0)}


@dg.asset
def model(): ...


@pytest.fixture
def instance(tmp_path):
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        yield instance


@pytest.fixture
def answer(instance):
    """A function that reports evaluations, lets the sensor look, and returns the runs and the reason for none."""
    cursors: dict[str, Any] = {"cursor": None}

    def answered(*evaluations, harm="", **options):
        for incident in evaluations:
            metadata = {"monitoring/incident": incident} if incident else {}
            metadata |= {"monitoring/harm": harm} if harm else {}
            instance.report_runless_asset_event(
                dg.AssetCheckEvaluation(
                    asset_key=KEY.asset_key, check_name=KEY.name, passed=not incident, metadata=metadata
                )
            )
        sensor = response_sensor(check="deployment:divergence", asset_selection=[model], **options)
        result: Any = sensor(dg.build_sensor_context(instance, cursor=cursors["cursor"]))
        cursors["cursor"] = result.cursor
        reason = result.skip_reason.skip_message if result.skip_reason else ""
        return [request.tags["dagster_mlops/incident"] for request in result.run_requests or ()], reason

    return answered


def test_an_incident_is_answered_once(answer):
    assert answer() == ([], "deployment:divergence has no open incident.")
    assert answer("a")[0] == ["a"]
    runs, reason = answer("a", **AT_ONCE)
    assert runs == [] and "was requested for it" in reason


def test_the_next_incident_waits_for_the_last_run_to_take_effect(answer):
    assert answer("a")[0] == ["a"]
    runs, reason = answer("", "b")
    assert runs == [] and "less than 1 day, 0:00:00 ago" in reason
    assert answer(**AT_ONCE)[0] == ["b"]  # still open when the limit allows it


def test_a_week_has_so_many_runs(answer):
    for incident in ("a", "b"):
        assert answer(incident, **AT_ONCE)[0] == [incident]
    runs, reason = answer("c", **AT_ONCE)
    assert runs == [] and "2 runs were requested in the last seven days" in reason


def test_an_incident_that_hurts_no_one_is_answered_only_where_that_is_asked_for(answer):
    assert answer("a", harm="benign")[1].endswith("it is benign so far.")
    assert answer("a", harm="undecided")[0] == ["a"]
    assert answer("b", harm="benign", answer_benign=True, **AT_ONCE)[0] == ["b"]


def test_an_incident_that_is_over_is_not_answered(answer):
    assert answer("a", after=timedelta(hours=1))[1].endswith("open for less than 1:00:00.")
    assert answer("", **AT_ONCE)[0] == []


def test_it_waits_until_its_user_is_ready(answer):
    assert answer("a", ready=lambda context: "12 new labels of 500")[1].endswith("12 new labels of 500.")
    assert answer(ready=lambda context: None)[0] == ["a"]


@pytest.mark.parametrize(
    "options",
    [
        {"check": "deployment"}, {"after": timedelta(-1)}, {"cool_off": timedelta(-1)}, {"runs_per_week": 0},
        {"asset_selection": None},
    ],
    ids=str,
)  # fmt: skip
def test_options_that_could_not_work_are_refused(options):
    chosen = {"check": "a:b", "asset_selection": [model], **options}
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="response_sensor"):
        response_sensor(**{name: value for name, value in chosen.items() if value is not None})


def test_an_answer_of_ready_that_is_no_reason_and_a_cursor_that_cannot_be_read_start_no_run(answer, instance):
    with pytest.raises(MonitoringError, match="ready has returned True"):
        answer("a", ready=lambda context: True)
    sensor = response_sensor(check="deployment:divergence", asset_selection=[model])
    with pytest.raises(MonitoringError, match="Reset it"):
        sensor(dg.build_sensor_context(instance, cursor="nonsense"))
