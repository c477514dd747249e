"""A code location that watches a service by its prediction log: for Dagster's daemon, in processes of their own.

The folder that the environment names (``WATCHED``) has the history, and the options in ``watch.json``.
"""

import json
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd

from dagster_mlops.monitoring import (
    Persistence,
    alarm_asset,
    alert_sensor,
    divergence_checks,
    divergence_sensor,
    incident_report_asset,
)
from dagster_mlops.monitoring.live import watch

ROOT = Path(__file__).parents[2]
LOCATION = Path(__file__)
KEY = dg.AssetCheckKey(dg.AssetKey("service"), "divergence")


def prepare(home: Path, folder: Path, history: pd.DataFrame, **options: Any) -> dict[str, str]:
    """Make an instance in `home` that has the alarm, and return the environment of its daemon.

    Args:
        home: Dagster's home.
        folder: Folder for the history, the alarm and the alerts.
        history: Rows with the column ``time``.
        options: ``columns``, ``outputs``, ``rows`` of a window, ``log``, ``interval``, seconds between two looks, and
            ``ahead``, days that rows may be before the clock, which the watch would take for a wrong one.
    """
    for path in (home, folder):
        path.mkdir(parents=True, exist_ok=True)
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    history.to_parquet(folder / "history.parquet")
    (folder / "watch.json").write_text(json.dumps(options))
    names = {"WATCHED": str(folder), "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "DAGSTER_HOME": str(home)}
    code = f"from tests.support.{LOCATION.stem} import *; calibrate()"
    subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **names}, check=True, cwd=ROOT, stderr=subprocess.DEVNULL
    )
    return names


def alerts(folder: Path) -> list[list[Any]]:
    """The alerts of the divergence so far: time, event, check, incident and text."""
    file = folder / "alerts.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [line for line in map(json.loads, lines) if line[2] == KEY.to_user_string()]


def evaluations(instance: dg.DagsterInstance) -> list[dict[str, Any]]:
    """The metadata of all verdicts as plain values, oldest first, each with the time at which it was recorded."""
    history = instance.event_log_storage.get_asset_check_execution_history(KEY, limit=10_000)
    return [
        {name: value.value for name, value in record.evaluation.metadata.items()}
        | {"recorded": record.create_timestamp}
        for record in reversed(history)
        if isinstance(record.evaluation, dg.AssetCheckEvaluation)
    ]


def ticks(instance: dg.DagsterInstance) -> int:
    """The number of sensors that have had a tick."""
    data: list[Any] = [state.instigator_data for state in instance.all_instigator_state()]
    return sum(bool(each.cursor) for each in data)


if "WATCHED" in os.environ:
    FOLDER = Path(os.environ["WATCHED"])
    OPTIONS = json.loads((FOLDER / "watch.json").read_text())
    watch._AHEAD = max(watch._AHEAD, timedelta(days=OPTIONS.get("ahead", 0)))

    @dg.asset
    def history() -> pd.DataFrame:
        """The rows before the live traffic."""
        return pd.read_parquet(FOLDER / "history.parquet")

    @dg.asset
    def service() -> None:
        """What is watched."""

    def send(alert: Any, context: Any) -> None:
        """Write the alert down, with the time."""
        line = json.dumps([time.time(), alert.event, alert.check, alert.incident, alert.text])
        with (FOLDER / "alerts.jsonl").open("a") as file:
            file.write(line + "\n")

    alarm = alarm_asset(
        history=history, time="time", columns=OPTIONS["columns"], outputs=OPTIONS["outputs"], rows=OPTIONS["rows"]
    )
    report = incident_report_asset(deployment=service, alarm=alarm, prediction_log=OPTIONS["log"])
    interval = {"minimum_interval_seconds": OPTIONS["interval"]}
    defs = dg.Definitions(
        assets=[history, service, alarm, report],
        asset_checks=[divergence_checks(deployment=service)],
        sensors=[
            divergence_sensor(
                deployment=service,
                alarm=alarm,
                prediction_log=OPTIONS["log"],
                persistence=Persistence(calm=1, quiet=timedelta(0)),
                silence=None,
                **interval,
            ),
            alert_sensor(checks=["service:divergence", "service:blind"], send=send, cooldown=timedelta(0), **interval),
        ],
        resources={"io_manager": dg.FilesystemIOManager(base_dir=str(FOLDER / "values"))},
    )

    def calibrate() -> None:
        """Materialize what the sensor needs."""
        dg.materialize([history, service, alarm], instance=dg.DagsterInstance.get(), resources=defs.resources)
