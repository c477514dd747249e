"""Dagster's daemon with its code server, killed at any time: each window is judged once, each incident told once."""

import random
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from tests.support.dagster_processes import DagsterProcesses, wait_until
from tests.support.logged_traffic import COLUMNS, OUTPUTS, TimedLog, traffic
from tests.support.watched_service import LOCATION, alerts, evaluations, prepare, ticks

pytestmark = pytest.mark.thorough

ROWS, HOURS, KILLS = 60, 120, 6


def test_kills_of_the_daemon_and_its_code_server_lose_no_window_and_double_none(tmp_path):
    home, folder, log = tmp_path / "dagster", tmp_path / "watched", tmp_path / "log"
    # The time of the rows passes as quickly as they are written.
    start = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    history = traffic(start - timedelta(weeks=8), 56, per_hour=ROWS)
    options = {"columns": COLUMNS, "outputs": OUTPUTS, "rows": ROWS, "log": str(log), "interval": 1, "ahead": 7}
    environment = prepare(home, folder, history, **options)
    rows = traffic(start, HOURS / 24, per_hour=ROWS, seed=3)
    for first in range(20, HOURS, 20):  # five incidents of two windows each
        rows.loc[first * ROWS : (first + 2) * ROWS - 1, "temp"] = None
    processes = DagsterProcesses(home, LOCATION, environment)
    chance = random.Random(7)

    def write():
        writer = TimedLog(str(log), deployment="d", bento="b", model_name="m", model_version="7")
        for hour in range(HOURS):
            writer.write_frame(rows.iloc[hour * ROWS : (hour + 1) * ROWS])
            time.sleep(0.4)

    thread = threading.Thread(target=write)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        try:
            processes.start("dagster-daemon", "run")
            wait_until(lambda: ticks(instance) == 2, lambda: processes.log("dagster-daemon"))
            thread.start()
            for _ in range(KILLS):
                time.sleep(chance.uniform(2, 9))
                processes.kill("dagster-daemon")
                processes.start("dagster-daemon", "run")
            thread.join()
            wait_until(lambda: len(evaluations(instance)) >= HOURS, lambda: f"{len(evaluations(instance))}", 180)
            wait_until(lambda: len(alerts(folder)) >= 10, lambda: f"{alerts(folder)}", 60)
        finally:
            for name in list(processes.running):
                processes.kill(name)
        judged = evaluations(instance)
    ends = [metadata["monitoring/window_end"] for metadata in judged]
    assert len(set(ends)) == len(ends) == HOURS and ends == sorted(ends)
    assert {metadata["monitoring/rows"] for metadata in judged} == {ROWS}
    detected = [hour for hour, metadata in enumerate(judged) if metadata["monitoring/state"] == "detected"]
    assert detected == [hour for first in range(20, HOURS, 20) for hour in (first, first + 1)]
    told = Counter((event, incident) for _, event, _, incident, _ in alerts(folder))
    assert len(told) == 10 and set(told.values()) == {1}
