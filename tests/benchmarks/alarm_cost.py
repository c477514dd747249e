"""The cost of a tick of the watch after one day of windows and after ninety: log, event log and state have grown."""

import multiprocessing
import re
import sqlite3
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import dagster as dg

from dagster_mlops.monitoring import alarm_asset, alert_sensor, divergence_sensor
from dagster_mlops.monitoring.alarm.value import Alarm
from dagster_mlops.monitoring.live.state_files import StateFiles
from dagster_mlops.monitoring.live.watch import Watch
from dagster_mlops.serving.runtime.log.rotation import rotate
from tests.benchmarks.measure import console, show
from tests.support.logged_traffic import COLUMNS, OUTPUTS, TimedLog, traffic

FACTS: Any = {"deployment": "d", "bento": "b", "model_name": "m", "model_version": "7", "rotate": False}
DAYS, PER_HOUR, EVERY, TICKS = (1, 7, 30, 90), 600, timedelta(minutes=5), 10
PER_DAY, PER_WINDOW = 24 * PER_HOUR, round(PER_HOUR * (EVERY / timedelta(hours=1)))
NAMES = {
    "full": "CPU of a tick with a window (ms)",
    "idle": "CPU of a tick without (ms)",
    "events": "CPU of Dagster's storing of a verdict (ms)",
    "alert": "CPU of a tick of alert_sensor with a verdict (ms)",
    "quiet": "CPU of a tick of alert_sensor without (ms)",
    "peak": "peak memory of the process (MB)",
    "import": "of it its imports and the alarm (MB)",
    "state": "state (kB)",
    "files": "files of the log",
    "log": "log (MB)",
    "verdicts": "verdicts in the event log",
}


def run(rounds: int | None = None) -> dict[str, Any]:
    """Let `rounds` windows pass, by default ten, after each length of the history.

    The log is written, rotated and judged day by day by the code of the sensor; verdicts of former days are copies in
    Dagster's event log, as storing 25,920 of them one by one takes SQLite a quarter of an hour. The ticks run in a
    process of their own.
    """
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="alarm-cost-") as folder:
        world = _World(Path(folder))
        instance = dg.DagsterInstance.local_temp(str(world.home))
        dg.materialize(world.assets, instance=instance, resources=world.resources)
        value: Any = world.repository.load_asset_value("alarm", instance=instance)
        watch = Watch(Alarm.from_dict(value), world.log)
        progress, cursor, rows = watch.begin(world.start), None, traffic(world.start, DAYS[-1] + 1, per_hour=PER_HOUR)
        for day in range(DAYS[-1]):
            with closing(TimedLog(str(world.log), **FACTS)) as log:
                log.write_frame(rows.iloc[day * PER_DAY : (day + 1) * PER_DAY])
            rotate(world.log)
            progress = watch.step(progress, datetime.now(UTC)).progress
            cursor = world.files.write(progress, cursor)
            if day + 1 not in DAYS:
                continue
            console.print(f"{day + 1} days are written and judged")
            fresh = rows.iloc[(day + 1) * PER_DAY :][: PER_WINDOW * (rounds or TICKS)]
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                results[f"{day + 1} days"] = pool.submit(_ticks, world.folder, cursor, fresh, day + 1).result()
    table = [[text, *(f"{result[name]:,.3g}" for result in results.values())] for name, text in NAMES.items()]
    show(f"A tick as the history grows: {PER_HOUR} rows an hour, windows of {EVERY}", ["after", *results], table)
    return results


class _World:
    """A deployment with its alarm, below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log, self.home = folder, folder / "log", folder / "home"
        self.home.mkdir(exist_ok=True)
        today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        self.start = start = today - timedelta(days=DAYS[-1] + 2)

        @dg.asset
        def history():
            return traffic(start - timedelta(days=56), 56, per_hour=PER_HOUR)

        @dg.asset
        def service(): ...

        alarm = alarm_asset(history=history, time="time", columns=COLUMNS, outputs=OUTPUTS, every=EVERY)
        self.sensor = divergence_sensor(deployment=service, alarm=alarm, prediction_log=self.log, silence=None)
        self.alerts = alert_sensor(checks=["service:divergence", "service:blind"], send=lambda alert, context: None)
        self.assets = [history, service, alarm]
        self.resources: Any = {"io_manager": dg.FilesystemIOManager(base_dir=str(folder / "values"))}
        defs = dg.Definitions(assets=self.assets, sensors=[self.sensor, self.alerts], resources=self.resources)
        self.repository = defs.get_repository_def()
        self.files = StateFiles(self.log / "watches" / "service" / "divergence")


def _ticks(folder: Path, cursor: str, rows: Any, days: int) -> dict[str, float]:
    """The cost of ticks, each after the rows of one window, in a process that has made no history."""
    world = _World(folder)
    instance = dg.DagsterInstance.local_temp(str(world.home))
    state, alerts = cursor, None
    figures: dict[str, list[float]] = {"full": [], "idle": [], "events": [], "alert": [], "quiet": []}

    def tick(kind: str) -> Any:
        nonlocal state
        with _Cpu(figures[kind]):
            result: Any = world.sensor(dg.build_sensor_context(instance, cursor=state, repository_def=world.repository))
        state = result.cursor
        return result.asset_events

    def judge(window: int) -> None:
        nonlocal alerts
        log.write_frame(rows.iloc[window * PER_WINDOW : (window + 1) * PER_WINDOW])
        events = tick("full")
        assert sum(event.check_name == "divergence" for event in events) == 1
        with _Cpu(figures["events"]):
            for event in events:
                instance.report_runless_asset_event(event)
        tick("idle")
        for kind in ("alert", "quiet"):
            with _Cpu(figures[kind]):
                alerts = world.alerts(dg.build_sensor_context(instance, cursor=alerts and alerts.cursor))

    with closing(TimedLog(str(world.log), **FACTS)) as log:
        judge(0)  # imports, the alarm and Dagster's first connections
        imports = _peak()
        _fill(world.home / "history" / "runs" / "index.db", round(days * timedelta(days=1) / EVERY))
        for values in figures.values():
            values.clear()
        for window in range(1, len(rows) // PER_WINDOW):
            judge(window)
    peak = _peak()
    files = [file for file in world.log.iterdir() if file.is_file()]
    history = instance.event_log_storage.get_asset_check_execution_history
    return {
        **{name: 1e3 * median(values) for name, values in figures.items()},
        "peak": peak,
        "import": imports,
        "state": max(file.stat().st_size for file in world.files.folder.iterdir()) / 1e3,
        "files": len(files),
        "log": sum(file.stat().st_size for file in files) / 1e6,
        "verdicts": len(history(dg.AssetCheckKey(dg.AssetKey("service"), "divergence"), limit=10**6)),
    }


def _fill(database: Path, verdicts: int) -> None:
    """Copy the last verdict into Dagster's event log until it has so many."""
    check = "asset_check_executions where check_name = 'divergence'"
    sources = {
        "asset_check_executions": f"select * from {check} order by id desc limit 1",
        "event_logs": "select * from event_logs where dagster_event_type = 'ASSET_CHECK_EVALUATION' limit 1",
    }
    with closing(sqlite3.connect(database)) as connection, connection:
        (count,) = connection.execute(f"select count(*) from {check}").fetchone()
        for name, source in sources.items():
            names = [row[1] for row in connection.execute(f"pragma table_info({name})") if row[1] != "id"]
            columns = ", ".join(names)
            connection.execute(
                "with recursive n(i) as (select 1 union all select i + 1 from n where i < ?) "
                f"insert into {name} ({columns}) select {columns} from ({source}), n",
                (verdicts - count,),
            )


def _peak() -> float:
    """The largest memory of this process so far, in MB; that of `getrusage` may be its parent's."""
    (peak,) = re.findall(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
    return int(peak) / 1e3


class _Cpu:
    """Appends the CPU seconds of its block to a list."""

    def __init__(self, values: list[float]) -> None:
        self._values = values

    def __enter__(self) -> None:
        self._start = time.process_time()

    def __exit__(self, *_: object) -> None:
        self._values.append(time.process_time() - self._start)
