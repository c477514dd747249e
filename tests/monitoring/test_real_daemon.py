"""Dagster's daemon with its code server, killed at any time: each window is judged once, each incident told once."""

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from tests.support.dagster_processes import DagsterProcesses, wait_until
from tests.support.logged_traffic import TimedLog, traffic

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[2]
LOCATION = ROOT / "tests" / "support" / "watched_service.py"
KEY = dg.AssetCheckKey(dg.AssetKey("service"), "divergence")
ROWS, HOURS, KILLS = 60, 120, 6


def test_kills_of_the_daemon_and_its_code_server_lose_no_window_and_double_none(tmp_path):
    home, folder = tmp_path / "dagster", tmp_path / "watched"
    for path in (home, folder):
        path.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    start = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    environment = {
        "WATCHED": str(folder), "START": start.isoformat(), "ROWS": str(ROWS), "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    materialize = "from tests.support.watched_service import *; dg.materialize(list(defs.assets)[:3], instance="
    code = f"{materialize}dg.DagsterInstance.get(), resources=defs.resources)"
    variables = {**os.environ, **environment, "DAGSTER_HOME": str(home)}
    subprocess.run([sys.executable, "-c", code], env=variables, check=True, cwd=ROOT)

    rows = traffic(start, HOURS / 24, per_hour=ROWS, seed=3)
    for first in range(20, HOURS, 20):  # five incidents of two windows each
        rows.loc[first * ROWS : (first + 2) * ROWS - 1, "temp"] = None
    processes = DagsterProcesses(home, LOCATION, environment)
    chance = random.Random(7)
    with dg.DagsterInstance.from_config(str(home)) as instance:

        def evaluations() -> list[dict[str, Any]]:
            history = instance.event_log_storage.get_asset_check_execution_history(KEY, limit=1000)
            metadata = [record.evaluation.metadata for record in reversed(history) if record.evaluation]
            return [{name: value.value for name, value in each.items()} for each in metadata]

        def write():
            log = TimedLog(str(folder / "log"), deployment="d", bento="b", model_name="m", model_version="7")
            for hour in range(HOURS):
                log.write_frame(rows.iloc[hour * ROWS : (hour + 1) * ROWS])
                time.sleep(0.4)

        writer = threading.Thread(target=write)
        try:
            processes.start("dagster-daemon", "run")
            wait_until(lambda: len(ticks(instance)) == 2, lambda: processes.log("dagster-daemon"))
            writer.start()
            for _ in range(KILLS):
                time.sleep(chance.uniform(2, 9))
                processes.kill("dagster-daemon")
                processes.start("dagster-daemon", "run")
            writer.join()
            wait_until(lambda: len(evaluations()) >= HOURS, lambda: f"{len(evaluations())} windows", 180)
            wait_until(lambda: len(alerts(folder)) >= 10, lambda: f"{alerts(folder)}", 60)
        finally:
            for name in list(processes.running):
                processes.kill(name)
        judged = evaluations()
    ends = [metadata["monitoring/window_end"] for metadata in judged]
    assert len(set(ends)) == len(ends) == HOURS and ends == sorted(ends)
    assert {metadata["monitoring/rows"] for metadata in judged} == {ROWS}
    detected = [hour for hour, metadata in enumerate(judged) if metadata["monitoring/state"] == "detected"]
    assert detected == [hour for first in range(20, HOURS, 20) for hour in (first, first + 1)]
    told = Counter((event, incident) for _, event, _, incident, _ in alerts(folder))
    assert len(told) == 10 and set(told.values()) == {1}


def alerts(folder):
    file = folder / "alerts.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [line for line in map(json.loads, lines) if line[2] == "service:divergence"]


def ticks(instance):
    """The states of sensors that have had a tick."""
    return [state for state in instance.all_instigator_state() if state.instigator_data.cursor]
