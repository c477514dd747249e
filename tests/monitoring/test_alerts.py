"""People are told once of each incident of an asset check, reminded until someone takes care, and told of its end."""

import threading
from datetime import timedelta
from typing import Any

import dagster as dg
import pytest
from typer.testing import CliRunner

from dagster_mlops.cli import app
from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring import alert_sensor
from dagster_mlops.monitoring.alerts import sensor as alerts_module
from dagster_mlops.monitoring.alerts.acknowledgement import acknowledge, expect_incident
from dagster_mlops.monitoring.alerts.alert import Case

KEY = dg.AssetCheckKey(dg.AssetKey("deployment"), "divergence")


@pytest.fixture
def instance(tmp_path):
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        yield instance


@pytest.fixture
def desk(instance):
    return Desk(instance)


class Desk:
    """A place where alerts arrive. While it is `closed`, none can be sent."""

    def __init__(self, instance):
        self.instance, self.alerts, self.cursor, self.closed = instance, [], None, False

    def send(self, alert, context):
        if self.closed:
            raise OSError("the network is down")
        self.alerts.append(alert)

    def tick(self, **options):
        """The alerts that one tick of the sensor sends, as (event, incident)."""
        sensor = alert_sensor(checks=["deployment:divergence"], send=self.send, **options)
        before = len(self.alerts)
        result: Any = sensor(dg.build_sensor_context(self.instance, cursor=self.cursor))
        self.cursor = result.cursor
        return [alert.event for alert in self.alerts[before:]]

    def evaluate(self, passed, state="", incident=""):
        """Report an evaluation as a sensor does."""
        names = {"monitoring/state": state, "monitoring/incident": incident}
        self.instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=KEY.asset_key, check_name=KEY.name, passed=passed, severity=dg.AssetCheckSeverity.WARN,
                description="temp is missing", metadata={k: v for k, v in names.items() if v},
            )
        )  # fmt: skip


def test_an_incident_is_told_once_and_its_end_once(desk):
    desk.evaluate(True)
    assert desk.tick() == []
    desk.evaluate(False, "detected", "i1")
    assert desk.tick() == ["detected"]
    desk.evaluate(False, "detected", "i1")
    assert desk.tick() == desk.tick() == []
    desk.evaluate(True, "recovered", "i1")
    desk.evaluate(True, "ok")
    assert desk.tick() == ["recovered"]
    assert {alert.incident for alert in desk.alerts} == {"i1"}
    assert desk.alerts[0].title == "deployment:divergence failed" and "temp" in desk.alerts[0].text


def test_an_incident_that_came_and_went_between_two_ticks_is_told(desk):
    desk.evaluate(True)
    desk.tick()
    for passed in (False, True, True):
        desk.evaluate(passed)
    assert desk.tick() == ["detected", "recovered"]


def test_a_tick_without_a_new_evaluation_does_not_read_all_of_them(desk, instance, monkeypatch):
    desk.evaluate(False)
    desk.tick()
    storage, reads = type(instance.event_log_storage), []
    monkeypatch.setattr(storage, "get_asset_check_execution_history", lambda *_, **__: reads.append(1) or [])
    assert desk.tick() == reads == []


def test_a_check_that_fails_already_is_told_in_the_first_tick(desk):
    desk.evaluate(False)
    assert desk.tick() == ["detected"]


def test_a_sensor_that_was_on_before_the_first_evaluation_misses_none(desk):
    desk.tick()
    for passed in (False, True):
        desk.evaluate(passed)
    assert desk.tick() == ["detected", "recovered"]


def test_evaluations_that_could_not_judge_change_nothing(desk):
    desk.evaluate(True)
    desk.tick()
    desk.evaluate(False, "undecided")
    assert desk.tick() == []
    desk.evaluate(False, "detected")
    desk.evaluate(True, "undecided")
    assert desk.tick() == ["detected"]


def test_an_alert_that_cannot_be_sent_comes_in_the_next_tick(desk):
    desk.evaluate(True)
    desk.tick()
    desk.evaluate(False)
    desk.evaluate(True)
    desk.closed = True
    assert desk.tick() == desk.tick() == []
    desk.closed = False
    assert desk.tick() == ["detected", "recovered"]


def test_an_incident_soon_after_the_last_one_continues_it(desk):
    for passed in (False, True, False, True):
        desk.evaluate(passed)
        desk.tick(cooldown=timedelta(hours=1))
    assert [alert.event for alert in desk.alerts] == ["detected", "recovered", "recovered"]
    desk.evaluate(False)
    assert desk.tick(cooldown=timedelta(0)) == ["detected"]


def test_reminders_come_until_someone_takes_care(desk, instance):
    desk.evaluate(False, "detected", "i1")
    soon = {"remind_after": timedelta(microseconds=1)}
    assert desk.tick() == ["detected"] and desk.tick() == []
    assert desk.tick(**soon) == ["reminder"]
    acknowledge(instance, KEY, "i1", by="Ada")
    assert desk.tick(**soon) == []
    desk.evaluate(True, "recovered", "i1")
    assert desk.tick(**soon) == ["recovered"]


def test_the_command_acknowledges_the_open_incident(desk, instance, tmp_path):
    desk.evaluate(False, "detected", "i1")
    desk.tick()
    home = ["--dagster-home", instance.root_directory]
    outcome = CliRunner().invoke(
        app, ["acknowledge", "deployment:divergence", "--as", "Ada", "--note", "rollback", *home]
    )
    assert outcome.exit_code == 0 and "i1" in outcome.output, outcome.output
    assert desk.tick(remind_after=timedelta(microseconds=1)) == []
    for wrong in (["deployment"], ["deployment:health"], ["deployment:divergence", "--as", " "]):
        outcome = CliRunner().invoke(app, ["acknowledge", *wrong, *home])
        assert outcome.exit_code == 2 and "dagster-mlops: " in outcome.output, wrong


def test_a_planned_evaluation_is_told_when_its_run_has_ended(instance, desk):
    seen = []

    @dg.asset
    def deployment():
        return 1

    @dg.asset_check(asset=deployment, name="divergence")
    def check(context):
        seen.append(desk.tick())  # in the midst of the run, in which another evaluation comes first
        desk.evaluate(True)
        seen.append(desk.tick())
        return dg.AssetCheckResult(passed=False)

    desk.evaluate(True)
    desk.tick()
    dg.materialize([deployment, check], instance=instance)
    assert seen == [[], []] and desk.tick() == ["detected"]


@pytest.mark.parametrize(
    "options",
    [
        {"checks": []}, {"checks": "a:b"}, {"checks": ["a"]}, {"checks": [":b"]}, {"remind_after": timedelta(0)},
        {"cooldown": timedelta(-1)}, {"send": "mail"},
    ],
    ids=str,
)  # fmt: skip
def test_options_that_could_not_work_are_refused(options):
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="alert_sensor"):
        alert_sensor(**{"checks": ["a:b"], "send": print, **options})


def test_a_case_survives_its_stored_form():
    case = Case(last=3, pending=(1, 2), incident="i")
    assert Case(**case._asdict()) == case


def test_a_call_that_hangs_holds_up_no_other_check_and_is_not_repeated_while_it_hangs(desk, instance, monkeypatch):
    monkeypatch.setattr(alerts_module, "_SEND", 1.01)
    release, calls = threading.Event(), []

    def send(alert, context):
        calls.append(alert.check)
        if alert.check == "deployment:divergence" and not release.wait(60):
            raise TimeoutError

    sensor = alert_sensor(checks=["deployment:divergence", "deployment:blind"], send=send)

    def tick(cursor) -> Any:
        return sensor(dg.build_sensor_context(instance, cursor=cursor))

    desk.evaluate(False)
    instance.report_runless_asset_event(
        dg.AssetCheckEvaluation(asset_key=KEY.asset_key, check_name="blind", passed=False, metadata={})
    )
    first = tick(None)
    assert calls == ["deployment:divergence", "deployment:blind"] and "time limit" in first.skip_reason.skip_message
    second = tick(first.cursor)
    assert calls == ["deployment:divergence", "deployment:blind"] and "hangs" in second.skip_reason.skip_message
    release.set()


def test_a_cursor_that_cannot_be_read_tells_of_checks_that_fail_again(desk):
    desk.evaluate(False)
    for cursor in ("nonsense", "[]", '{"checks": {"deployment:divergence": {"former": 1}}}'):
        desk.cursor = cursor
        assert desk.tick() == ["detected"]


def test_what_is_no_incident_cannot_be_acknowledged(desk, instance):
    desk.evaluate(False, "detected", "2026-03-01T00:00:00+00:00")
    desk.evaluate(False)
    desk.tick()
    for incident in ("2026-03-01T00:00:00+00:00", desk.alerts[0].incident):
        expect_incident(instance, KEY, incident)
    with pytest.raises(MonitoringError, match="has no incident 'other'; its latest is"):
        expect_incident(instance, KEY, "other")
