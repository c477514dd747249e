"""The alarm in Dagster: calibrated by an asset, judged by a sensor without a run, shown by checks and a report."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from dagster_mlops.monitoring import (
    Persistence,
    alarm_asset,
    divergence_checks,
    divergence_sensor,
    incident_report_asset,
)
from dagster_mlops.monitoring.detection import ColumnScore, Judgement
from dagster_mlops.monitoring.live import sensor as live_sensor
from dagster_mlops.monitoring.live.evaluations import divergence
from dagster_mlops.monitoring.live.incidents import Incident
from dagster_mlops.monitoring.live.metrics import PREFIX
from dagster_mlops.monitoring.live.watch import Verdict, Watch
from tests.support.logged_traffic import COLUMNS, OUTPUTS, log_of, traffic

EVERY = timedelta(hours=1)
DIVERGENCE, BLIND = (dg.AssetCheckKey(dg.AssetKey("service"), name) for name in ("divergence", "blind"))


class World:
    """A code location that watches a service by its log, and the daemon's part of its sensor's ticks."""

    def __init__(self, instance, folder, **options):
        self.instance, self.log, self.cursor = instance, folder / "log", None
        self.start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=12)

        @dg.asset
        def history():
            return traffic(self.start - timedelta(weeks=8), 56)

        @dg.asset
        def service(): ...

        alarm = alarm_asset(history=history, time="time", columns=COLUMNS, outputs=OUTPUTS, every=EVERY)
        report = incident_report_asset(deployment=service, alarm=alarm, prediction_log=self.log)
        options = {"silence": None, "report": report, **options}
        self.sensor = divergence_sensor(deployment=service, alarm=alarm, prediction_log=self.log, **options)
        self.assets = [history, service, alarm, report]
        self.defs = dg.Definitions(
            assets=self.assets,
            asset_checks=[divergence_checks(deployment=service)],
            sensors=[self.sensor],
            resources={"io_manager": dg.FilesystemIOManager(base_dir=str(folder / "values"))},
        )

    def materialize(self, *names) -> Any:
        resources: Any = self.defs.resources
        return dg.materialize(self.assets, instance=self.instance, selection=list(names), resources=resources)

    def tick(self, *, killed_after=None):
        """One tick as the daemon does it; one that is killed reports so many events, and stores no cursor."""
        repository = self.defs.get_repository_def()
        context = dg.build_sensor_context(self.instance, cursor=self.cursor, repository_def=repository)
        result: Any = self.sensor(context)
        for event in result.asset_events[:killed_after]:
            self.instance.report_runless_asset_event(event)
        if killed_after is None:
            self.cursor = result.cursor
        return result

    def begin(self):
        """Let the watch begin twelve hours ago."""
        from dagster_mlops.monitoring.live.state_files import StateFiles

        repository = self.defs.get_repository_def()
        context: Any = dg.build_sensor_context(self.instance, repository_def=repository)
        watch = Watch(live_sensor.load_alarm(context, dg.AssetKey("alarm")), self.log)
        self.cursor = StateFiles(self.log / "watches" / "service" / "divergence").write(watch.begin(self.start), None)

    def evaluations(self, check=DIVERGENCE):
        """All evaluations of a check, oldest first."""
        records = self.instance.event_log_storage.get_asset_check_execution_history(check, limit=100)
        return [record.evaluation for record in reversed(records)]


def value(evaluation, name):
    return evaluation.metadata[f"monitoring/{name}"].value


@pytest.fixture
def instance(tmp_path):
    (tmp_path / "home").mkdir()
    with dg.instance_for_test(temp_dir=str(tmp_path / "home")) as instance:
        yield instance


@pytest.fixture
def world(instance, tmp_path):
    return World(instance, tmp_path)


@pytest.fixture
def calibrated(world):
    world.materialize("history", "service", "alarm")
    world.begin()
    return world


def broken(world, hours=12, first=6, last=9):
    rows = traffic(world.start, hours / 24, seed=3)
    rows.loc[first * 60 : last * 60 - 1, "temp"] = None
    return rows


def test_an_incident_from_its_first_window_to_its_report(calibrated):
    log_of(calibrated.log, broken(calibrated))
    result = calibrated.tick()
    evaluations = calibrated.evaluations()
    assert [value(e, "state") for e in evaluations] == [
        *["ok"] * 6, *["detected"] * 5, "recovered",
    ]  # fmt: skip
    worst = evaluations[6]
    assert not worst.passed and "temp: 100.0 % missing" in worst.description
    assert value(worst, "score") > value(worst, "threshold") and value(worst, "incident_columns") == "temp"
    assert worst.target_materialization_data.run_id == calibrated.instance.get_runs()[0].run_id
    [request] = result.run_requests
    assert value(worst, "incident") in request.run_key
    made = calibrated.materialize("incident_report")
    [materialization] = made.asset_materializations_for_node("incident_report")
    assert "data:image/png" in materialization.metadata["monitoring/plot"].value
    assert "data:image/png" in materialization.metadata["monitoring/scores"].value
    assert len(made.output_for_node("incident_report")) == 60


def test_a_tick_does_not_read_the_history_of_verdicts_nor_hash_the_alarm_again(calibrated, monkeypatch):
    log_of(calibrated.log, broken(calibrated))
    storage, reads = type(calibrated.instance.event_log_storage), []
    monkeypatch.setattr(storage, "get_asset_check_execution_history", lambda *_, **__: reads.append(1) or [])
    calibrated.tick()
    calibrated.tick()
    assert reads == []
    repository = calibrated.defs.get_repository_def()
    context: Any = dg.build_sensor_context(calibrated.instance, repository_def=repository)
    alarm = live_sensor.load_alarm(context, dg.AssetKey("alarm"))
    assert alarm.digest is alarm.digest


def test_a_daemon_that_is_killed_between_events_and_cursor_judges_no_window_twice(calibrated):
    log_of(calibrated.log, broken(calibrated))
    calibrated.tick(killed_after=7)
    calibrated.tick(killed_after=2)
    calibrated.tick()
    ends = [value(evaluation, "window_end") for evaluation in calibrated.evaluations()]
    assert len(ends) == len(set(ends)) == 12 and ends == sorted(ends)


def test_the_latest_verdict_is_written_for_prometheus(instance, tmp_path):
    file = tmp_path / "metrics" / "divergence.prom"
    world = World(instance, tmp_path, metrics_file=file)
    world.materialize("history", "service", "alarm")
    world.begin()
    log_of(world.log, broken(world, hours=9))
    world.tick()
    world.tick()  # which judges nothing, and forgets nothing
    [*families] = text_string_to_metric_families(file.read_text())
    values = {family.name: family.samples[0].value for family in families}
    assert {tuple(f.samples[0].labels.items()) for f in families} == {(("asset", "service"), ("check", "divergence"))}
    assert values[f"{PREFIX}incident_open"] == 1 and values[f"{PREFIX}score"] > values[f"{PREFIX}threshold"]
    assert values[f"{PREFIX}window_end_seconds"] == (world.start + timedelta(hours=9)).timestamp()
    for name in ("alerts.yml", "dashboard.json"):
        text = (Path(__file__).parents[2] / "examples" / "prometheus" / name).read_text()
        names = set(re.findall(rf"{PREFIX}\w+", text))
        assert names and names <= set(values), name


def test_metrics_that_cannot_be_written_cost_no_verdict(instance, tmp_path):
    world = World(instance, tmp_path, metrics_file="/proc/none/divergence.prom")
    world.materialize("history", "service", "alarm")
    world.begin()
    log_of(world.log, broken(world, hours=9))
    world.tick()
    assert len(world.evaluations()) == 9


def test_a_cursor_that_cannot_be_read_goes_on_after_the_last_window(calibrated):
    log_of(calibrated.log, broken(calibrated))
    calibrated.tick()
    for cursor in ("nonsense", "77", "1"):  # the last is that of a file that was removed since
        calibrated.cursor = cursor
        calibrated.tick()
    assert len(calibrated.evaluations()) == 12


def test_a_run_of_the_checks_before_the_first_window_decides_nothing(calibrated):
    job = calibrated.defs.resolve_implicit_global_asset_job_def()
    job.execute_in_process(instance=calibrated.instance, asset_selection=[dg.AssetKey("service")])
    [evaluation] = calibrated.evaluations()
    assert evaluation.passed and value(evaluation, "state") == "undecided"
    log_of(calibrated.log, broken(calibrated))
    calibrated.tick()
    assert len(calibrated.evaluations()) == 13


def test_the_checks_repeat_the_last_verdict_in_a_run_and_say_that_the_sensor_is_dead(calibrated):
    log_of(calibrated.log, broken(calibrated, hours=9))
    calibrated.tick()
    job = dg.define_asset_job("look", selection=dg.AssetSelection.checks(DIVERGENCE, BLIND))
    defs = dg.Definitions.merge(calibrated.defs, dg.Definitions(jobs=[job]))
    defs.resolve_job_def("look").execute_in_process(instance=calibrated.instance)
    [*_, last] = calibrated.evaluations()
    assert not last.passed and "temp" in last.description and value(last, "repeated")
    [*_, blind] = calibrated.evaluations(BLIND)
    assert not blind.passed and "sensor" in blind.description
    calibrated.tick()
    assert calibrated.evaluations(BLIND)[-1].passed


def test_a_watch_that_sees_nothing_says_so_once(instance, tmp_path):
    world = World(instance, tmp_path, silence=timedelta(hours=1))
    world.tick()
    world.tick()
    [blind] = world.evaluations(BLIND)
    assert not blind.passed and "alarm was never materialized" in blind.description
    assert blind.description.endswith("calibrates the alarm.")
    world.materialize("history", "service", "alarm")
    world.begin()
    world.tick()
    assert "no prediction was logged since" in world.evaluations(BLIND)[-1].description
    log_of(world.log, traffic(datetime.now(UTC) - timedelta(minutes=1), 1 / 24 / 60))
    world.tick()
    world.tick()
    assert [evaluation.passed for evaluation in world.evaluations(BLIND)] == [False, False, True]


def test_an_asset_that_holds_no_alarm_is_named(world):
    world.materialize("history", "service", "alarm")
    path = next(iter((world.log.parent / "values").glob("**/alarm")))
    import pickle

    path.write_bytes(pickle.dumps({"form": 1}))
    world.tick()
    assert "not an alarm" in world.evaluations(BLIND)[-1].description


def test_a_history_that_is_too_short_is_refused_in_words(instance, tmp_path):
    @dg.asset
    def history():
        return traffic(datetime(2026, 1, 5, tzinfo=UTC), 3)

    alarm = alarm_asset(history=history, time="time", every=timedelta(hours=1))
    io = dg.FilesystemIOManager(base_dir=str(tmp_path))
    with pytest.raises(dg.Failure, match="longer history"):
        dg.materialize([history, alarm], instance=instance, resources={"io_manager": io})


@pytest.mark.parametrize(
    "options",
    [
        {}, {"rows": 100, "every": EVERY}, {"rows": 5}, {"every": timedelta(seconds=1)}, {"rows": 100, "alarms": 0},
        {"rows": 100, "per": timedelta(hours=1)}, {"rows": 100, "columns": []}, {"rows": 100, "alarms": float("nan")},
        {"rows": 100, "outputs": {"p": "outputs"}}, {"rows": 100, "columns": ["a"], "outputs": {"p": "output"}},
        {"rows": 100, "columns": ["time"]}, {"rows": 100, "zone": "Vienna"}, {"rows": 100, "minimum_effect": 1.0},
    ],
    ids=str,
)  # fmt: skip
def test_an_alarm_that_could_not_work_is_refused_when_it_is_defined(options):
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="alarm_asset"):
        alarm_asset(history="history", time="time", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"persistence": Persistence(needed=2)}, {"patience": timedelta(-1)}, {"silence": timedelta(0)},
        {"seconds": 50}, {"metrics_file": "a.txt"}, {"severity": "FATAL"},
    ],
    ids=str,
)  # fmt: skip
def test_a_sensor_that_could_not_work_is_refused_when_it_is_defined(options):
    with pytest.raises(dg.DagsterInvalidDefinitionError):
        divergence_sensor(deployment="service", alarm="alarm", **options)


def test_a_watch_that_crashes_is_blind(calibrated, monkeypatch):
    log_of(calibrated.log, broken(calibrated, hours=2))
    monkeypatch.setattr(Watch, "step", lambda *_: 1 / 0)
    before = calibrated.cursor
    calibrated.tick()
    [blind] = calibrated.evaluations(BLIND)
    assert not blind.passed and "the watch crashed: ZeroDivisionError" in blind.description
    monkeypatch.undo()
    assert calibrated.cursor == before
    calibrated.tick()
    assert len(calibrated.evaluations()) == 2 and calibrated.evaluations(BLIND)[-1].passed


def test_names_that_are_long_or_orders_to_a_terminal_are_shown_as_short_texts():
    long, moving = "n" * 1_000_000, "late\n\x1b[2K✓"
    scores = [ColumnScore(name, "missing", 9.0, 1.0, 0.0) for name in (long, moving)]
    time = datetime(2026, 3, 1, tzinfo=UTC)
    columns = (long, moving, *(f"c{i}" for i in range(100)))
    incident = Incident(time.isoformat(), time, time, columns=columns)
    versions = {long: 1}
    verdict = Verdict("detected", time, time, 9, versions, Judgement(9.0, 1.0, "", tuple(scores)), incident)
    alarm: Any = SimpleNamespace(name="alarm", digest="0" * 64)
    options: Any = {"name": "divergence", "severity": "WARN", "judged_at": time, "late": 0}
    evaluation = divergence(verdict, alarm, dg.AssetKey("service"), None, **options)
    texts = f"{evaluation.description} {evaluation.metadata}"
    assert len(texts) < 8_000 and "\x1b" not in texts and "\n" not in (evaluation.description or "")
    assert "72 more" in str(value(evaluation, "incident_columns"))
