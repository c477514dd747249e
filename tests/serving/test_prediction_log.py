"""The prediction log: each row once and unchanged, as JSON lines, as Parquet, and while one becomes the other."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import uuid
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dagster_mlops.serving import LogRules, PredictionLog, commands, deployment_asset
from dagster_mlops.serving.runtime import trace_id_of
from dagster_mlops.serving.runtime.log import rotation, row_tables
from dagster_mlops.serving.runtime.log.folder import listing
from dagster_mlops.serving.runtime.log.progress import Progress
from dagster_mlops.serving.runtime.log.reading import Scan
from dagster_mlops.serving.runtime.log.rotation import rotate
from dagster_mlops.serving.runtime.log.row_json import decode, encode
from dagster_mlops.serving.runtime.log.row_tables import metadata, records

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**66), 2**66),
    st.floats(),
    st.text(max_size=6),  # halves of surrogate pairs, too
)
JSON = st.recursive(
    SCALARS, lambda more: st.lists(more, max_size=3) | st.dictionaries(TEXT, more, max_size=3), max_leaves=5
)
ROWS = st.lists(
    st.tuples(
        st.one_of(
            st.fixed_dictionaries({"a": st.integers(-9, 9), "b": st.floats(allow_nan=False), "c": TEXT}),
            st.dictionaries(st.sampled_from(["a", "A", "output", "", "\0"]), JSON, max_size=4),
            st.dictionaries(st.text(max_size=3), JSON, max_size=3),
        ),
        JSON,
    ),
    min_size=1,
    max_size=8,
)
FEW = settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def exactly(value: Any) -> str:
    """A text that is the same for the same value only: 1, 1.0 and true differ, and NaN is NaN."""
    return json.dumps(value, sort_keys=True)


def stored(log_dir, **options) -> list[dict[str, Any]]:
    """All records of a log, by request id."""
    tables = Scan(Path(log_dir), **options).tables()
    rows = [record for table in tables for record in records(table, metadata(table)["forms"])]
    return sorted(rows, key=lambda row: row["request_id"])


def finish(log: PredictionLog) -> None:
    """End the segment of a log, as the end of its process would."""
    if log._file:
        log._file.close()
        log._file = None


def logged(folder, rows, **options) -> PredictionLog:
    """A log whose only writer has ended."""
    log = PredictionLog(folder, deployment="delay/1", model_version="3", rotate=False, **options)
    for number, (inputs, output) in enumerate(rows):
        log.write(inputs=[inputs], outputs=[output], request_ids=[f"r{number:04}"])
    finish(log)
    return log


# --- values -----------------------------------------------------------------------------------------------------------


@FEW
@given(JSON)
def test_a_json_value_is_what_it_was(value):
    assert exactly(decode(encode(value))) == exactly(value)
    assert b"\n" not in encode(value)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float64(0.1), 0.1),
        (np.float64("nan"), math.nan),
        (np.float32(0.5), 0.5),
        (np.int64(-7), -7),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.bool_(True), True),
        (np.array([1.5, math.inf]), [1.5, math.inf]),
        (np.datetime64("2026-01-31T07:00:00.123456789"), "2026-01-31T07:00:00.123456789"),
        (pd.Timestamp("2026-01-31 07:00", tz="UTC"), "2026-01-31T07:00:00+00:00"),
        (datetime(2026, 1, 31, 7, tzinfo=UTC), "2026-01-31T07:00:00+00:00"),
        (date(2026, 1, 31), "2026-01-31"),
        (pd.NaT, None),
        (pd.NA, None),
        (Decimal("0.10"), "0.10"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    ],
    ids=str,
)
def test_a_value_that_json_does_not_have_gets_its_plain_form(value, plain):
    assert exactly(decode(encode({"x": value}))) == exactly({"x": plain})
    assert exactly(decode(encode([value, math.inf]))) == exactly([plain, math.inf]), (
        "also where Python's json writes it"
    )


@pytest.mark.parametrize(
    "value",
    [b"text", np.bytes_(b"x"), 1j, np.longdouble(1), {1, 2}, object(), timedelta(1)],
    ids=lambda value: type(value).__name__,
)
def test_a_value_without_a_form_is_refused_with_all_rows_of_the_call(tmp_path, value):
    log = PredictionLog(tmp_path)
    with pytest.raises(TypeError, match="JSON has no form for a value of type"):
        log.write(inputs=[{"x": 1}, {"x": value}], outputs=[0, 0], request_ids=["a", "b"])
    assert PredictionLog.read(tmp_path).empty


@pytest.mark.parametrize(
    ("header", "trace"),
    [
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "4bf92f3577b34da6a3ce929d0e0e4736"),
        ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-later", "4bf92f3577b34da6a3ce929d0e0e4736"),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-later", ""),
        ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", ""),
        ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", ""),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", ""),
        ("'; drop table", ""),
        (None, ""),
    ],
)
def test_the_trace_of_a_request_is_that_of_w3c_trace_context(header, trace):
    assert trace_id_of(header) == trace


# --- rows, from writing to Parquet ------------------------------------------------------------------------------------


@FEW
@given(rows=ROWS, more=ROWS, segment_bytes=st.sampled_from([1, 900, 2**20]))
def test_what_was_logged_is_read_before_and_after_rotation(tmp_path_factory, rows, more, segment_bytes):
    folder = tmp_path_factory.mktemp("log")
    logged(folder, rows, segment_bytes=segment_bytes)
    before = stored(folder)
    assert [exactly(row["inputs"]) for row in before] == [exactly(inputs) for inputs, _ in rows]
    assert [exactly(row["output"]) for row in before] == [exactly(output) for _, output in rows]
    frame = PredictionLog.read(folder)
    assert rotate(folder) > 0 and not list(folder.glob("*.jsonl"))
    assert list(map(exactly, stored(folder))) == list(map(exactly, before))
    assert exactly(PredictionLog.find(folder, "r0000")) == exactly(before[0])
    pd.testing.assert_frame_equal(PredictionLog.read(folder), frame)
    # Another writer, whose rows have other types, and whose file is merged with the first.
    log = PredictionLog(folder, rotate=False)
    for number, (inputs, output) in enumerate([*more, *rows]):
        log.write(inputs=[inputs], outputs=[output], request_ids=[f"s{number:04}"], trace_id="t", seconds=0.5)
    finish(log)
    union = stored(folder)
    rotate(folder)
    assert len(list(folder.glob("*.parquet"))) == 1
    assert list(map(exactly, stored(folder))) == list(map(exactly, union)) and len(union) == 2 * len(rows) + len(more)
    assert (union[-1]["trace_id"], union[-1]["seconds"]) == ("t", 0.5)


def test_rows_with_more_features_than_columns_are_read_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(row_tables, "MOST_FEATURES", 2)
    logged(tmp_path, [({"a": 1, "b": 2.5, "output": "x"}, 0), ({"a": 1, "b": None}, [1])])
    before, frame = stored(tmp_path), PredictionLog.read(tmp_path)
    rotate(tmp_path)
    assert stored(tmp_path) == before and before[0]["inputs"] == {"a": 1, "b": 2.5, "output": "x"}
    pd.testing.assert_frame_equal(PredictionLog.read(tmp_path), frame)
    assert PredictionLog.read(tmp_path, columns=["b"])["b"][0] == 2.5


OLD = {
    "schema": 1,
    "kind": "prediction",
    "prediction_log": "/srv/predictions",
    "deployment": "delay/1",
    "bento": "delay:1",
    "model_name": "delay",
    "model_version": "3",
    "timestamp": "2026-01-31T07:00:00.000001+00:00",
    "request_id": "old",
    "inputs": {"hour": 7, "large": 2**70, "nan": math.nan, "text": "\ud800"},
    "output": math.inf,
}


def test_a_log_of_an_earlier_version_is_read_and_rotated(tmp_path):
    lines = [OLD, {**OLD, "request_id": "odd", "timestamp": "2026-01-31T08:00:00+01:00", "later": [1]}]
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    file = tmp_path / "2026-01-31-77-0123abcd.jsonl"
    file.write_text(text + '{"schema":1,"kind":"predic')
    assert list(map(exactly, stored(tmp_path))) == [exactly(lines[1]), exactly(lines[0])]
    frame = PredictionLog.read(tmp_path)
    assert rotate(tmp_path) == 0, "its process may live; it was written a second ago"
    os.utime(file, (0, 0))
    assert rotate(tmp_path) == 1 and not file.exists()
    assert list(map(exactly, stored(tmp_path))) == [exactly(lines[1]), exactly(lines[0])]
    assert exactly(PredictionLog.find(tmp_path, "old")) == exactly(OLD)
    pd.testing.assert_frame_equal(PredictionLog.read(tmp_path), frame)


def test_parts_of_a_log_are_read_by_time_deployment_and_column(tmp_path):
    for deployment in ("a/1", "b/2"):
        log = PredictionLog(tmp_path, deployment=deployment, rotate=False)
        for n in range(3):
            log.write(inputs=[{"hour": n, "text": "x"}], outputs=[n / 2], request_ids=[f"{deployment}-{n}"])
        finish(log)
    every: Any = PredictionLog.read(tmp_path)
    middle: datetime = every["timestamp"][2].to_pydatetime()
    for _ in ("lines", "parquet"):
        assert list(PredictionLog.read(tmp_path, end=middle)["request_id"]) == list(every["request_id"][:2])
        assert list(PredictionLog.read(tmp_path, start=middle)["request_id"]) == list(every["request_id"][2:])
        assert PredictionLog.read(tmp_path, start=middle + timedelta(days=1)).empty
        frame = PredictionLog.read(tmp_path, deployment="b/2", columns=["output", "hour"])
        assert frame.to_dict("list") == {"output": [0, 0.5, 1], "hour": [0, 1, 2]}
        with pytest.raises(ValueError, match=r"no row has 'hours': not a feature"):
            PredictionLog.read(tmp_path, columns=["hours"])
        assert sum(map(len, PredictionLog.frames(tmp_path))) == 6
        rotate(tmp_path)
    assert not list(tmp_path.glob("*.jsonl"))


def test_of_an_id_used_twice_the_latest_is_found(tmp_path):
    def write(output):
        log = PredictionLog(tmp_path, rotate=False)
        log.write(inputs=[{}], outputs=[output], request_ids=["r"])
        finish(log)

    for output in range(4):  # two in Parquet files, one of them merged, then one in lines
        write(output)
        assert (PredictionLog.find(tmp_path, "r") or {})["output"] == output
        if output < 3:
            rotate(tmp_path)
    assert PredictionLog.find(tmp_path, "other") is None and PredictionLog.find(tmp_path / "none", "r") is None


def test_rows_after_a_refused_write_still_say_their_deployment(tmp_path, monkeypatch):
    log, write = PredictionLog(tmp_path, deployment="delay/1"), os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", _torn(write))
        with pytest.raises(OSError, match="No space"):
            log.write(inputs=[{}], outputs=[0], request_ids=["refused"])
    log.write(inputs=[{}], outputs=[0], request_ids=["after"])
    assert list(PredictionLog.read(tmp_path)["deployment"]) == ["delay/1"]
    assert (PredictionLog.find(tmp_path, "after") or {})["deployment"] == "delay/1"


def _torn(write):
    """A write to a disk with room for 20 bytes, which are a part of the first line."""
    calls = iter([20])

    def torn(file, data):
        if (size := next(calls, 0)) == 0:
            raise OSError(28, "No space left on device")
        return write(file, data[:size])

    return torn


# --- rotation ---------------------------------------------------------------------------------------------------------


def test_the_segment_of_a_living_process_is_left_alone_until_it_ends(tmp_path):
    code = """
        import sys
        from dagster_mlops.serving.runtime import PredictionLog
        log = PredictionLog(sys.argv[1], rotate=False)
        log.write(inputs=[{}], outputs=[0], request_ids=["a"])
        print("answered", flush=True)
        sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout and writer.stdout.readline()
        assert rotate(tmp_path) == 0
        writer.kill()
    assert rotate(tmp_path) == 1 and PredictionLog.find(tmp_path, "a")


def test_one_process_rotates_at_a_time(tmp_path):
    logged(tmp_path, [({}, 0)])
    with rotation._locked(tmp_path / rotation.LOCK):
        assert rotate(tmp_path) == 0
    assert rotate(tmp_path) == 1


def test_files_of_a_day_are_merged_as_they_grow(tmp_path, monkeypatch):
    monkeypatch.setattr(rotation, "FILE_ROWS", 100)
    for turn in range(20):
        logged(tmp_path, [({"turn": turn}, 0)] * 7, segment_bytes=400)
        rotate(tmp_path)
    assert len(list(tmp_path.glob("*.parquet"))) <= 6
    assert PredictionLog.read(tmp_path)["turn"].value_counts().to_dict() == dict.fromkeys(range(20), 7)


class Killed(BaseException):
    """Stands for SIGKILL, which runs no handler."""


@pytest.mark.parametrize(
    ("when", "name"),
    [
        ("after", "rename"),
        ("before", "unlink"),
        pytest.param("before", "rename", marks=pytest.mark.thorough),
        pytest.param("after", "unlink", marks=pytest.mark.thorough),
    ],
)
def test_a_reader_sees_each_row_once_wherever_a_rotation_is_killed(tmp_path, monkeypatch, name, when):
    """In ten rotations, each third step is a kill. The lock is the system's, and free after one."""
    every: list[str] = []
    cursor = ""
    act, steps = getattr(Path, name), 0

    def step(path, *arguments, **options):
        nonlocal steps
        steps += 1
        kill = steps % 3 == 0
        if kill and when == "before":
            raise Killed
        answer = act(path, *arguments, **options)
        if kill:
            raise Killed
        return answer

    monkeypatch.setattr(Path, name, step)
    seen: list[str] = []
    kills = 0
    for turn in range(10):
        monkeypatch.setattr(rotation, "FILE_ROWS", 9 if turn < 3 else 100)  # several files of a segment, then merged
        log = PredictionLog(tmp_path, rotate=False, segment_bytes=600)
        for n in range(7):
            every.append(f"{turn}/{n}")
            log.write(inputs=[{"n": n}], outputs=[n], request_ids=[every[-1]])
        frame, cursor = PredictionLog.read_after(tmp_path, cursor, most=3)
        seen += list(frame["request_id"])
        finish(log)
        try:
            rotate(tmp_path)
        except Killed:
            kills += 1
        assert sorted(PredictionLog.read(tmp_path)["request_id"]) == sorted(every)
    assert kills > 1
    while len((answer := PredictionLog.read_after(tmp_path, cursor, most=3))[0]):
        seen += list(answer[0]["request_id"])
        cursor = answer[1]
    assert sorted(seen) == sorted(every)
    monkeypatch.undo()
    rotate(tmp_path)
    assert not listing(tmp_path).superseded


def test_a_full_disk_ends_a_rotation_without_a_loss_and_without_a_draft(tmp_path, monkeypatch):
    logged(tmp_path, [({"n": n}, 0) for n in range(3)])
    (tmp_path / "export.parquet").write_text("a user's own file")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(rotation, "sync", full)
        with pytest.raises(OSError, match="No space"):
            rotate(tmp_path)
    assert not list(tmp_path.glob(".*.tmp")) and len(PredictionLog.read(tmp_path)) == 3
    assert rotate(tmp_path) == 1 and len(PredictionLog.read(tmp_path)) == 3 and PredictionLog.find(tmp_path, "r0001")


@pytest.mark.thorough
def test_kills_of_writers_and_rotations_cost_no_answered_row_and_no_reader_sees_one_twice(tmp_path):
    """Two writers and two rotations, in processes that are killed at random times, and a reader with a cursor."""
    writer = """
        import itertools, os, sys, time
        from dagster_mlops.serving.runtime import PredictionLog
        log = PredictionLog(sys.argv[1], rotate=False, segment_bytes=5000)
        for n in itertools.count():
            name = f"{os.getpid()}-{n}"
            log.write(inputs=[{"n": n}] * 3, outputs=[n] * 3, request_ids=[f"{name}-{i}" for i in range(3)])
            print(name, flush=True)
            time.sleep(0.005)
    """
    rotator = """
        import sys
        from dagster_mlops.serving.runtime.log import rotation
        rotation.FILE_ROWS = 400
        while True:
            rotation.rotate(sys.argv[1])
    """
    answered: list[str] = []
    stop = threading.Event()

    def keep_alive(code, seconds):
        while not stop.is_set():
            command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                killer = threading.Timer(seconds, process.kill)
                killer.start()
                assert process.stdout
                answered.extend(line.strip() for line in process.stdout.read().split("\n")[:-1])
                killer.cancel()
            assert process.returncode == -signal.SIGKILL

    lives = [(writer, 2.1), (writer, 2.9), (rotator, 1.7), (rotator, 2.3)]
    threads = [threading.Thread(target=keep_alive, args=life) for life in lives]
    for thread in threads:
        thread.start()
    seen: list[str] = []
    cursor = ""
    try:
        for _ in range(20):
            frame, cursor = PredictionLog.read_after(tmp_path, cursor, most=500)
            seen += list(frame["request_id"])
            stop.wait(0.5)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    rotate(tmp_path)
    while len((answer := PredictionLog.read_after(tmp_path, cursor, most=5000))[0]):
        seen += list(answer[0]["request_id"])
        cursor = answer[1]
    assert len(seen) == len(set(seen)), "twice"
    assert {f"{name}-{i}" for name in answered for i in range(3)} <= set(seen) and answered
    assert sorted(PredictionLog.read(tmp_path)["request_id"]) == sorted(seen)
    assert list(tmp_path.glob("*.parquet"))


@pytest.mark.thorough
def test_the_writer_starts_the_rotation_of_what_others_have_left_also_in_a_package(tmp_path):
    from dagster_mlops.serving.copies import PACKAGE, modules, write_copies

    log_dir = tmp_path / "log"
    log_dir.mkdir()
    old = {**OLD, "request_id": "old"}
    file = log_dir / "2026-01-31-77-0123abcd.jsonl"
    file.write_text(json.dumps(old, separators=(",", ":")) + "\n")
    os.utime(file, (0, 0))
    write_copies(tmp_path / "package" / PACKAGE, modules())
    code = f"""
        import sys, time
        sys.path.insert(0, sys.argv[1])
        from {PACKAGE} import PredictionLog
        from pathlib import Path
        PredictionLog(sys.argv[2]).write(inputs=[{{}}], outputs=[0], request_ids=["new"])
        while not list(Path(sys.argv[2]).glob("*.parquet")):
            time.sleep(0.05)
        assert PredictionLog.find(sys.argv[2], "old")
        assert not any(name.startswith("dagster") and not name.startswith("{PACKAGE}") for name in sys.modules)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "package"), str(log_dir)]
    subprocess.run(command, check=True, timeout=120)
    assert sorted(PredictionLog.read(log_dir)["request_id"]) == ["new", "old"]


# --- cursors ----------------------------------------------------------------------------------------------------------


@FEW
@given(
    steps=st.lists(st.sampled_from(["write", "end", "rotate", "read"]), max_size=14),
    most=st.sampled_from([1, 3, 100]),
)
def test_readers_with_a_cursor_see_each_row_once(tmp_path_factory, steps, most):
    folder = tmp_path_factory.mktemp("log")
    log = PredictionLog(folder, rotate=False, segment_bytes=700)
    every: list[str] = []
    seen: list[str] = []
    cursor = ""
    for step in [*steps, "write", "end", "rotate"]:
        if step == "write":
            ids = [f"{len(every) + n}" for n in range(4)]
            log.write(inputs=[{"x": 1}] * 4, outputs=[0] * 4, request_ids=ids)
            every += ids
        elif step == "end":
            finish(log)
        elif step == "rotate":
            rotate(folder)
        else:
            frame, cursor = PredictionLog.read_after(folder, cursor, most=most)
            seen += list(frame["request_id"])
    while len((answer := PredictionLog.read_after(folder, cursor, most=most))[0]):
        seen += list(answer[0]["request_id"])
        cursor = answer[1]
    assert sorted(seen) == sorted(every)
    assert PredictionLog.read_after(folder, cursor)[1] == cursor


def test_a_cursor_forgets_the_days_before_the_start(tmp_path):
    for day in (29, 30):
        (tmp_path / f"2026-01-{day}-1-a-0.jsonl").write_text(
            json.dumps({**OLD, "request_id": f"r{day}", "timestamp": f"2026-01-{day}T07:00:00+00:00"}) + "\n"
        )
    frame, cursor = PredictionLog.read_after(tmp_path, start=datetime(2026, 1, 29, tzinfo=UTC))
    assert list(frame["request_id"]) == ["r29", "r30"] and "2026-01-29" in cursor
    frame, cursor = PredictionLog.read_after(tmp_path, cursor, start=datetime(2026, 1, 30, tzinfo=UTC))
    assert frame.empty and "2026-01-29" not in cursor and "2026-01-30" in cursor


def test_a_cursor_forgets_the_segments_that_were_removed_and_refuses_other_text(tmp_path):
    logged(tmp_path, [({}, 0)])
    _, cursor = PredictionLog.read_after(tmp_path)
    assert cursor
    for file in tmp_path.glob("*.jsonl"):
        file.unlink()
    assert PredictionLog.read_after(tmp_path, cursor)[1] == ""
    with pytest.raises(ValueError, match="is not a cursor of a prediction log"):
        PredictionLog.read_after(tmp_path, "2026-01-31")


@FEW
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), max_size=8))
def test_progress_is_the_set_of_bytes_that_were_read(ranges):
    progress, read = Progress(), set[int]()
    for start, length in ranges:
        progress.add("s", start, start + length)
        read |= set(range(start, start + length))
    progress = Progress(str(progress))
    for at in range(40):
        assert progress.next("s", at) == next(n for n in range(at, 50) if n not in read)
        assert progress.covers("s", at, at + 3) == ({at, at + 1, at + 2} <= read)


def test_the_command_rotates_at_once(tmp_path, capsys):
    logged(tmp_path, [({}, 0)])
    commands.compact(tmp_path)
    assert capsys.readouterr().out == "1 segment(s) became Parquet\n" and list(tmp_path.glob("*.parquet"))
    with pytest.raises(typer.Exit):
        commands.compact(tmp_path / "none")
    assert "is not a folder. Name that of a prediction log." in capsys.readouterr().err


# --- rules ------------------------------------------------------------------------------------------------------------

KEY = {"DAGSTER_MLOPS_PREDICTION_LOG_KEY": "a secret of 16 characters"}


def _ruled(monkeypatch, folder, rules, **variables) -> PredictionLog:
    """The log of a server that has been started with these rules."""
    for name, value in {"DAGSTER_MLOPS_PREDICTION_LOG": str(folder), **rules.to_environment(), **variables}.items():
        monkeypatch.setenv(name, value)
    log = PredictionLog.from_environment()
    assert log
    return log


def test_private_features_never_reach_the_disk(tmp_path, monkeypatch):
    rules = LogRules(private={"name": "drop", "customer": "hash"})
    log = _ruled(monkeypatch, tmp_path, rules, **KEY)
    rows = [{"name": "Ada", "customer": customer, "hour": 7} for customer in ("c-1", "c-2", "c-1", None)]
    log.write(inputs=rows, outputs=[0] * 4, request_ids=list("abcd"))
    assert not any(text in file.read_bytes() for file in tmp_path.iterdir() for text in (b"Ada", b"c-1"))
    frame = PredictionLog.read(tmp_path)
    first, second, third, fourth = frame["customer"]
    assert first == third != second and fourth is None and len(first) == 32 and "name" not in frame
    record: Any = PredictionLog.find(tmp_path, "a")
    assert record["private"] == {"name": "drop", "customer": "hash"} and record["inputs"]["hour"] == 7
    other = _ruled(monkeypatch, tmp_path / "b", rules, DAGSTER_MLOPS_PREDICTION_LOG_KEY="another of 16 characters")
    other.write(inputs=rows[:1], outputs=[0], request_ids=["a"])
    assert list(PredictionLog.read(tmp_path / "b")["customer"]) != [first], "without the key it cannot be guessed"


def test_a_hash_without_a_key_is_refused_when_the_server_starts(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"DAGSTER_MLOPS_PREDICTION_LOG_KEY has less than 16 characters"):
        _ruled(monkeypatch, tmp_path, LogRules(private={"customer": "hash"}), DAGSTER_MLOPS_PREDICTION_LOG_KEY="short")


@pytest.mark.parametrize(
    "rules", [{"share": 0}, {"share": 1.1}, {"private": {"x": "mask"}}, {"refused": "ignore"}, {"patience": 0}], ids=str
)
def test_rules_without_a_meaning_are_refused_before_anything_runs(tmp_path, rules):
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="log_rules"):
        deployment_asset(
            package="bento", golden_set="rows", state_dir=tmp_path, resource_key="bentoml", log_rules=LogRules(**rules)
        )
    with pytest.raises(ValueError, match="LogRules"):
        PredictionLog(tmp_path, rules=LogRules(**rules))


def test_a_share_of_the_rows_is_the_same_on_every_server(tmp_path, monkeypatch):
    ids = [f"r{n}" for n in range(1000)]
    for folder in ("a", "b"):
        log = _ruled(monkeypatch, tmp_path / folder, LogRules(share=0.1))
        log.write(inputs=[{}] * 1000, outputs=[0] * 1000, request_ids=ids)
    answers: list[Any] = [PredictionLog.read(tmp_path / folder) for folder in "ab"]
    first, second = answers
    assert list(first["request_id"]) == list(second["request_id"]) and 60 < len(first) < 140
    assert (PredictionLog.find(tmp_path / "a", first["request_id"][0]) or {})["logged_share"] == 0.1


def test_rows_that_the_disk_refuses_are_an_error_or_counted_as_the_rules_say(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    strict, lenient = PredictionLog(tmp_path), PredictionLog(tmp_path, rules=LogRules(refused="answer"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            strict.write(inputs=[{}], outputs=[0], request_ids=["a"])
        for n in range(3):
            lenient.write(inputs=[{}] * 2, outputs=[0] * 2, request_ids=[f"{n}/0", f"{n}/1"])
    assert PredictionLog.losses(tmp_path) == []
    lenient.write(inputs=[{}], outputs=[0], request_ids=["after"])
    lenient.write(inputs=[{}], outputs=[0], request_ids=["later"])
    [loss] = PredictionLog.losses(tmp_path)
    assert loss["rows"] == 6 and "No space left" in loss["reason"] and loss["since"] <= loss["until"]
    assert list(PredictionLog.read(tmp_path)["request_id"]) == ["after", "later"]


def test_a_disk_that_is_stuck_holds_up_a_request_for_its_patience_only(tmp_path, monkeypatch):
    log, write, waits, goes_on = PredictionLog(tmp_path, rules=LogRules(patience=0.05)), os.write, *_events()

    def stuck(file, data):
        waits.set()
        goes_on.wait()
        return write(file, data)

    monkeypatch.setattr(os, "write", stuck)
    first = threading.Thread(target=lambda: log.write(inputs=[{}], outputs=[0], request_ids=["first"]))
    first.start()
    waits.wait()
    with pytest.raises(TimeoutError, match=r"busy with earlier rows for 0\.05 s"):
        log.write(inputs=[{}], outputs=[0], request_ids=["second"])
    goes_on.set()
    first.join()
    assert list(PredictionLog.read(tmp_path)["request_id"]) == ["first"]


def _events():
    return threading.Event(), threading.Event()


def test_a_reader_of_one_deployment_passes_the_rows_of_others(tmp_path):
    for name, count in (("d/0", 5), ("d/1", 1), ("d/0", 5)):
        log = PredictionLog(tmp_path, deployment=name, rotate=False)
        ids = [f"{name}-{number}" for number in range(count)]
        log.write(inputs=[{}] * count, outputs=[0] * count, request_ids=ids)
        log.close()
    frame, cursor = PredictionLog.read_after(tmp_path, deployment="d/1", most=2)
    assert frame.request_id.tolist() == ["d/1-0"], "an empty frame would say that there is nothing new"
    frame, _ = PredictionLog.read_after(tmp_path, cursor, deployment="d/1", most=2)
    assert frame.empty
