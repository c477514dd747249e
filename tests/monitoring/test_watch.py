"""A watch judges each window of a prediction log once, whatever happens to the log and to the one who watches."""

import dataclasses
import json
import os
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring.alarm.calibration import calibrate
from dagster_mlops.monitoring.alarm.requests import OUTCOME
from dagster_mlops.monitoring.alarm.value import Alarm, Size
from dagster_mlops.monitoring.live import sight
from dagster_mlops.monitoring.live.progress import Progress
from dagster_mlops.monitoring.live.state_files import StateFiles
from dagster_mlops.monitoring.live.watch import Step, Watch
from dagster_mlops.serving.runtime.log.predictions import Rows
from tests.support.logged_traffic import COLUMNS, MONDAY, OUTPUTS, TimedLog, log_of, traffic

LIVE = MONDAY + timedelta(weeks=8)
HOUR = timedelta(hours=1)
LATER = LIVE + timedelta(days=30)


def alarm_for(size, version="", **more):
    options = {"columns": COLUMNS, "categories": (), "outputs": OUTPUTS, "alarms": 1.0, "per": timedelta(days=30)}
    history = traffic(MONDAY, 56)
    return calibrate(history, name="alarm", time="time", size=size, model_version=version, **options, **more).alarm


@pytest.fixture(scope="module")
def alarms():
    return {size: alarm_for(size) for size in (Size(every=HOUR), Size(rows=60))}


@pytest.fixture(params=["by time", "by rows"])
def alarm(request, alarms):
    return alarms[Size(every=HOUR) if request.param == "by time" else Size(rows=60)]


def rows_of(days, **changes):
    return traffic(LIVE, days, seed=3).assign(**changes)


def verdicts_of(watch, *, now=LATER, progress=None) -> "tuple[list[Any], Any]":
    step = watch.step(progress or watch.begin(LIVE), now)
    return step.verdicts, step


def test_each_window_of_unchanged_traffic_is_ok(alarm, tmp_path):
    log_of(tmp_path, rows_of(2))
    verdicts, step = verdicts_of(Watch(alarm, tmp_path))
    assert len(verdicts) == 48 and sum(verdict.rows for verdict in verdicts) == 48 * 60 == step.rows
    assert {verdict.state for verdict in verdicts} == {"ok"}


@pytest.mark.parametrize("pieces", [2, 7])
def test_reading_in_pieces_comes_to_the_same_verdicts(alarm, tmp_path, pieces):
    rows = rows_of(1)
    log_of(tmp_path / "whole", rows)
    whole, _ = verdicts_of(Watch(alarm, tmp_path / "whole"))
    log = TimedLog(str(tmp_path / "parts"), deployment="d", bento="b", model_name="m", model_version="7")
    watch, verdicts = Watch(alarm, tmp_path / "parts"), list[Any]()
    files, cursor = StateFiles(tmp_path / "state"), ""
    cursor = files.write(watch.begin(LIVE), cursor)
    for part in np.array_split(np.arange(len(rows)), pieces):
        log.write_frame(rows.iloc[part])
        step = watch.step(files.read(cursor), rows["time"].iloc[part[-1]].to_pydatetime())
        verdicts += step.verdicts
        cursor = files.write(step.progress, cursor)
    verdicts += watch.step(files.read(cursor), LATER).verdicts
    assert len(list(files.folder.iterdir())) == 2
    assert [(v.start, v.end, v.rows, v.judgement.score) for v in verdicts] == [
        (v.start, v.end, v.rows, v.judgement.score) for v in whole
    ]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"temp": None}, "missing"), ({"temp": 0.0}, "distribution"), ({"origin": "XXX"}, "unseen"),
        ({"wind": "fast"}, "malformed"), ({"probability": 0.999}, "distribution"), ({"wind": 1e9}, "far above"),
    ],
    ids=["missing", "default", "category", "malformed", "prediction", "unit"],
)  # fmt: skip
def test_a_broken_column_is_detected_in_its_first_window_and_named(alarm, tmp_path, change, what):
    rows = rows_of(1).astype(dict.fromkeys(change, object))
    for column, value in change.items():
        rows.loc[600:719, column] = value
    log_of(tmp_path, rows)
    verdicts, _ = verdicts_of(Watch(alarm, tmp_path))
    states = [verdict.state for verdict in verdicts]
    assert states[:10] == ["ok"] * 10 and states[10] == "detected" and "recovered" in states
    scores = verdicts[10].judgement.alarming
    assert next(iter(change)) in {score.column for score in scores}
    assert verdicts[10].incident.id == verdicts[11].incident.id == verdicts[10].end.isoformat()


def test_a_feature_that_is_no_longer_sent_is_an_alarm(alarm, tmp_path):
    log_of(tmp_path, rows_of(0.5).drop(columns="wind"))
    verdicts, _ = verdicts_of(Watch(alarm, tmp_path))
    assert verdicts[0].state == "detected" and "wind" in verdicts[0].incident.columns


def test_the_end_of_a_change_is_no_change(alarm, tmp_path):
    rows = rows_of(1)
    rows.loc[600:719, ["temp", "wind"]] = rows.loc[600:719, ["temp", "wind"]] * 1.8 + 32
    log_of(tmp_path, rows)
    verdicts, _ = verdicts_of(Watch(alarm, tmp_path))
    assert [verdict.state for verdict in verdicts] == [*["ok"] * 10, *["detected"] * 4, "recovered", *["ok"] * 9]


def test_a_feature_with_the_name_of_a_fact_of_the_log_is_the_feature(tmp_path):
    names = {"temp": "seconds"}
    history = traffic(MONDAY, 56).rename(columns=names)
    options = {"categories": (), "outputs": OUTPUTS, "alarms": 1.0, "per": timedelta(days=30), "model_version": ""}
    columns = ["seconds", "wind", "probability"]
    alarm = calibrate(history, name="alarm", time="time", size=Size(rows=60), columns=columns, **options).alarm
    log_of(tmp_path, rows_of(1).rename(columns=names))
    verdicts, _ = verdicts_of(Watch(alarm, tmp_path))
    assert {verdict.state for verdict in verdicts} == {"ok"} and len(verdicts) == 24


def test_rows_that_come_too_late_for_their_window_are_counted_and_change_no_verdict(alarms, tmp_path):
    watch, rows = Watch(alarms[Size(every=HOUR)], tmp_path), rows_of(0.25)
    log = log_of(tmp_path, rows.iloc[:120])
    first, step = verdicts_of(watch, now=LIVE + 2 * HOUR + watch.patience)
    assert len(first) == 2
    log.write_frame(rows.iloc[:5].assign(time=LIVE + HOUR - timedelta(seconds=1)))
    log.write_frame(rows.iloc[120:])
    second, step = verdicts_of(watch, progress=step.progress)
    assert [verdict.rows for verdict in second] == [60] * 4 and step.progress.late == 5


def test_a_window_waits_for_requests_that_take_long(alarms, tmp_path):
    watch, rows = Watch(alarms[Size(every=HOUR)], tmp_path), rows_of(0.25)
    log = log_of(tmp_path, rows.iloc[:59])
    early, step = verdicts_of(watch, now=LIVE + HOUR + watch.patience - timedelta(seconds=1))
    log.write_frame(rows.iloc[59:60])
    [verdict], _ = verdicts_of(watch, now=LIVE + HOUR + watch.patience, progress=step.progress)
    assert early == [] and verdict.rows == 60


def test_an_alarm_that_was_calibrated_anew_judges_the_rows_without_a_verdict_again(alarms, tmp_path):
    rows = rows_of(0.25)
    log = log_of(tmp_path, rows.iloc[:90])
    watch = Watch(alarms[Size(every=HOUR)], tmp_path)
    first, step = verdicts_of(watch, now=LIVE + HOUR + watch.patience)
    log.write_frame(rows.iloc[90:])
    other = Alarm.from_dict({**watch.alarm.to_dict(), "name": "other"})
    second, _ = verdicts_of(watch._replace(alarm=other), progress=step.progress)
    assert [verdict.rows for verdict in [*first, *second]] == [60] * 6
    assert [verdict.start for verdict in second] == [LIVE + n * HOUR for n in range(1, 6)]


def test_another_version_of_the_model_is_not_judged(tmp_path, alarms):
    alarm = dataclasses.replace(alarms[Size(rows=60)], model_version="6")
    log_of(tmp_path, rows_of(0.25), version="7")
    verdicts, _ = verdicts_of(Watch(alarm, tmp_path))
    assert {verdict.state for verdict in verdicts} == {"undecided"}
    assert "version 6" in verdicts[0].reason and "version 7" in verdicts[0].reason


def test_a_step_that_has_no_time_left_goes_on_in_the_next_one(alarm, tmp_path):
    log_of(tmp_path, rows_of(2))
    watch = Watch(alarm, tmp_path, seconds=0.0001, most=500)
    progress, verdicts, steps = watch.begin(LIVE), [], 0
    while len(verdicts) < 48 and steps < 100:
        step = watch.step(progress, LATER)
        progress, verdicts, steps = step.progress, [*verdicts, *step.verdicts], steps + 1
    assert steps > 3 and [verdict.rows for verdict in verdicts] == [60] * 48


def test_windows_of_a_long_pause_are_judged_in_several_steps(alarm, tmp_path):
    log_of(tmp_path, rows_of(1))
    watch = Watch(alarm, tmp_path, most_windows=9)
    progress, steps = watch.begin(LIVE), []
    for _ in range(4):
        step = watch.step(progress, LATER)
        progress, steps = step.progress, [*steps, step]
    ends = [verdict.end for step in steps for verdict in step.verdicts]
    assert [len(step.verdicts) for step in steps] == [9, 9, 6, 0] and ends == sorted(set(ends))
    assert [step.caught_up for step in steps] == [False, False, True, True]


def test_a_log_that_is_not_there_yet_is_no_fault(alarm, tmp_path):
    verdicts, step = verdicts_of(Watch(alarm, tmp_path / "none"))
    assert verdicts == [] and step.caught_up


def test_a_state_that_cannot_be_read_says_why(tmp_path):
    files = StateFiles(tmp_path)
    (tmp_path / "1.json").write_text('{"form": 2}')
    (tmp_path / "2.json").write_text("{")
    for cursor in ("1", "2", "3", "", "x", "../1"):
        with pytest.raises(MonitoringError, match="cannot be read"):
            files.read(cursor)


def failing(log, time, **counts):
    """A second of requests without predictions, as a server writes it down."""
    line = json.dumps({"time": time.isoformat(), **{"failed": 0, "refused": 0, **counts}})
    log.mkdir(exist_ok=True)
    with (log / f"{time:%Y-%m-%d}-1.failures").open("a") as file:
        file.write(line + "\n")


@pytest.mark.parametrize("kind", ["failed", "refused"])
def test_requests_that_fail_are_an_alarm_of_the_window_that_they_are_in(alarm, tmp_path, kind):
    log_of(tmp_path, rows_of(0.5))
    for minute in (5, 6, 25):
        failing(tmp_path, LIVE + timedelta(hours=6, minutes=minute), **{kind: 25})
    verdicts, step = verdicts_of(Watch(alarm, tmp_path))
    assert [verdict.state for verdict in verdicts[:7]] == [*["ok"] * 6, "detected"]
    [worst] = verdicts[6].judgement.alarming
    assert worst.column == OUTCOME and verdicts[6].requests._asdict()[kind] == 75
    assert verdicts_of(Watch(alarm, tmp_path), progress=step.progress)[0] == []


def test_a_service_that_answers_no_request_is_an_alarm(alarms, tmp_path):
    log_of(tmp_path, rows_of(0.25))
    failing(tmp_path, LIVE + timedelta(hours=6, minutes=5), failed=40)
    failing(tmp_path, LIVE + timedelta(hours=7, minutes=5), failed=32)
    now = LIVE + timedelta(hours=8, minutes=1)
    verdicts, step = verdicts_of(Watch(alarms[Size(every=HOUR)], tmp_path), now=now)
    assert [verdict.state for verdict in verdicts] == [*["ok"] * 6, "detected", "detected"]
    [reason] = sight.reasons(step, now, None, tmp_path)
    assert "32 requests failed, and none was answered" in reason


def test_slow_requests_are_an_alarm_where_the_history_has_none(tmp_path):
    alarm = alarm_for(Size(rows=60), slow=timedelta(milliseconds=5))
    log_of(tmp_path, rows_of(0.25))  # each took 10 milliseconds
    verdicts, _ = verdicts_of(Watch(alarm, tmp_path))
    assert {verdict.state for verdict in verdicts} == {"detected"}
    assert {score.column for score in verdicts[0].judgement.alarming} == {OUTCOME}


def test_failures_that_the_history_has_are_usual(tmp_path):
    for hour in range(56 * 24):
        failing(tmp_path, MONDAY + timedelta(hours=hour, minutes=3), refused=20 + hour % 3)
    alarm = alarm_for(Size(every=HOUR), requests=tmp_path)
    log_of(tmp_path, rows_of(0.5))
    for hour in range(12):
        failing(tmp_path, LIVE + timedelta(hours=hour, minutes=3), refused=21, failed=30 * (hour == 7))
    verdicts, _ = verdicts_of(Watch(alarm, tmp_path))
    assert [verdict.state for verdict in verdicts[:8]] == [*["ok"] * 7, "detected"]


def test_no_row_of_a_client_changes_what_the_watch_sees_of_the_others(alarm, tmp_path):
    log = log_of(tmp_path, rows_of(1))
    times = [LIVE + timedelta(days=400), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)]
    names: list[Any] = [{"input.temp": 3.0, "input.output": 1}, {f"feature {i}": i for i in range(1_900)}, {"": 1}]
    for time, inputs in [*((time, {"temp": 1.0}) for time in times), *((LIVE + 5 * HOUR, each) for each in names)]:
        content = Rows([inputs], [0.5], ["r"], "", 0.01)
        log._append(b"\n".join(log._lines(content, time)) + b"\n", "2026-03-02")
    now = LIVE + timedelta(days=1, minutes=5)
    verdicts, step = verdicts_of(Watch(alarm, tmp_path), now=now)
    assert {verdict.state for verdict in verdicts} == {"ok"} and len(verdicts) == 24
    assert step.progress.last_row < now and step.progress.start < now and len(step.progress.windows) < 2
    [reason] = sight.reasons(Step(step.progress, [], True, 0), now, timedelta(hours=1), tmp_path)
    assert "times to come" in reason
    log.write_frame(traffic(LIVE + timedelta(days=1), 0.5, seed=4).assign(temp=None))
    verdicts, _ = verdicts_of(Watch(alarm, tmp_path), progress=step.progress, now=now + timedelta(days=1))
    assert verdicts[0].state == "detected"


def test_windows_of_a_machine_whose_clock_is_behind_end_after_those_before(alarms, tmp_path):
    watch, rows = Watch(alarms[Size(rows=60)], tmp_path), rows_of(0.25)
    log = log_of(tmp_path, rows.iloc[120:180])
    first, step = verdicts_of(watch)
    log.write_frame(rows.iloc[:120])
    later, _ = verdicts_of(watch, progress=step.progress)
    ends = [verdict.end for verdict in [*first, *later]]
    assert len(ends) == 3 and ends == sorted(set(ends))


def test_two_watches_of_one_folder_leave_each_other_the_state(tmp_path):
    files, empty = StateFiles(tmp_path), Progress("alarm", LIVE)
    cursors = ["", ""]
    for _ in range(4):
        cursors = [files.write(empty, cursor) for cursor in cursors]
        assert [files.read(cursor) for cursor in cursors] == [empty, empty]
    assert len(list(tmp_path.iterdir())) == 4
    long_ago = LIVE.timestamp()
    os.utime(tmp_path / f"{cursors[0]}.json", (long_ago, long_ago))
    files.write(empty, cursors[1])
    assert not (tmp_path / f"{cursors[0]}.json").exists()
