"""A code location that watches a service by its prediction log: for Dagster's daemon, in processes of their own.

The environment names the folder (``WATCHED``), the start of the live traffic (``START``), which a test lets pass as
quickly as it likes, the rows of a window (``ROWS``) and the seconds between two looks (``INTERVAL``).
"""

import json
import os
import time
from datetime import datetime, timedelta
from pathlib import Path

import dagster as dg

from dagster_mlops.monitoring import (
    Persistence,
    alarm_asset,
    alert_sensor,
    divergence_checks,
    divergence_sensor,
    incident_report_asset,
)
from tests.support.logged_traffic import COLUMNS, OUTPUTS, traffic

START = datetime.fromisoformat(os.environ["START"])
FOLDER = Path(os.environ["WATCHED"])
ROWS = int(os.environ.get("ROWS", "60"))
INTERVAL = int(os.environ.get("INTERVAL", "1"))
LOG = FOLDER / "log"
CHECKS = ["service:divergence", "service:blind"]


@dg.asset
def history():
    """Eight weeks before the live traffic."""
    return traffic(START - timedelta(weeks=8), 56, per_hour=ROWS)


@dg.asset
def service() -> None:
    """What is watched."""


def send(alert, context) -> None:
    """Write the alert down, with the time."""
    line = json.dumps([time.time(), alert.event, alert.check, alert.incident, alert.text])
    with (FOLDER / "alerts.jsonl").open("a") as file:
        file.write(line + "\n")


alarm = alarm_asset(history=history, time="time", columns=COLUMNS, outputs=OUTPUTS, rows=ROWS)
report = incident_report_asset(deployment=service, alarm=alarm, prediction_log=LOG)
defs = dg.Definitions(
    assets=[history, service, alarm, report],
    asset_checks=[divergence_checks(deployment=service)],
    sensors=[
        divergence_sensor(
            deployment=service,
            alarm=alarm,
            prediction_log=LOG,
            persistence=Persistence(calm=1, quiet=timedelta(0)),
            silence=None,
            minimum_interval_seconds=INTERVAL,
        ),
        alert_sensor(checks=CHECKS, send=send, cooldown=timedelta(0), minimum_interval_seconds=INTERVAL),
    ],
    resources={"io_manager": dg.FilesystemIOManager(base_dir=str(FOLDER / "values"))},
)
