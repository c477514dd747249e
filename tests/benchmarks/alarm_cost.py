"""The cost of a tick of the watch after one day of windows, and after ninety: log, event log and state have grown."""

import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import dagster as dg

from dagster_mlops.monitoring import alarm_asset, divergence_sensor
from dagster_mlops.monitoring.alarm.value import Alarm
from dagster_mlops.monitoring.live.state_files import StateFiles
from dagster_mlops.monitoring.live.watch import Watch
from dagster_mlops.serving.runtime.log.rotation import rotate
from tests.benchmarks.measure import console, show
from tests.support.logged_traffic import COLUMNS, OUTPUTS, TimedLog, traffic

FACTS: Any = {"deployment": "d", "bento": "b", "model_name": "m", "model_version": "7", "rotate": False}
DAYS, PER_HOUR, EVERY, TICKS = (1, 90), 600, timedelta(minutes=5), 10


def run(rounds: int | None = None) -> dict[str, Any]:
    """Let `rounds` windows pass, by default ten, after each length of the history."""
    results = {}
    for days in DAYS:
        with tempfile.TemporaryDirectory(prefix="alarm-cost-") as folder:
            results[f"{days} days"] = _after(Path(folder), days, rounds or TICKS)
    names = ["CPU of a tick with a window (s)", "CPU of a tick without (s)", "state (kB)", "log (MB)", "verdicts"]
    rows = [[name, *(f"{value:.3g}" for value in result.values())] for name, result in results.items()]
    show(f"A tick as the history grows: {PER_HOUR} rows an hour, windows of {EVERY}", ["after", *names], rows)
    return results


def _after(folder: Path, days: int, windows: int) -> dict[str, float]:
    log_dir, per_window = folder / "log", round(PER_HOUR * (EVERY / timedelta(hours=1)))
    end = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
    start = end - timedelta(days=days)

    @dg.asset
    def history():
        return traffic(start - timedelta(days=56), 56, per_hour=PER_HOUR)

    @dg.asset
    def service(): ...

    alarm = alarm_asset(history=history, time="time", columns=COLUMNS, outputs=OUTPUTS, every=EVERY)
    sensor = divergence_sensor(deployment=service, alarm=alarm, prediction_log=log_dir, silence=None, seconds=45)
    resources: Any = {"io_manager": dg.FilesystemIOManager(base_dir=str(folder / "values"))}
    defs = dg.Definitions(assets=[history, service, alarm], sensors=[sensor], resources=resources)
    repository = defs.get_repository_def()
    rows = traffic(start, days + 1, per_hour=PER_HOUR, seed=3)
    for day in range(days):
        with closing(TimedLog(str(log_dir), **FACTS)) as log:
            log.write_frame(rows.iloc[day * 24 * PER_HOUR : (day + 1) * 24 * PER_HOUR])
        rotate(log_dir)
    (folder / "home").mkdir()
    with dg.instance_for_test(temp_dir=str(folder / "home")) as instance:
        dg.materialize([history, service, alarm], instance=instance, resources=resources)
        value: Any = repository.load_asset_value("alarm", instance=instance)
        files = StateFiles(log_dir / "watches" / "service" / "divergence")
        cursor = files.write(Watch(Alarm.from_dict(value), log_dir).begin(start), None)

        def tick() -> tuple[float, int]:
            """CPU seconds of a tick and of what the daemon does with it, and its verdicts."""
            nonlocal cursor
            started = time.process_time()
            result: Any = sensor(dg.build_sensor_context(instance, cursor=cursor, repository_def=repository))
            for event in result.asset_events:
                instance.report_runless_asset_event(event)
            cursor = result.cursor
            return time.process_time() - started, len(result.asset_events)

        seconds, verdicts = 0.0, 0
        while verdicts < days * 24 * (timedelta(hours=1) / EVERY):
            spent, count = tick()
            seconds, verdicts = seconds + spent, verdicts + count
        console.print(f"{days} days: {verdicts:,} windows took {seconds:.0f} s of CPU")
        full, idle = [], []
        with closing(TimedLog(str(log_dir), **FACTS)) as log:
            for window in range(windows):
                first = days * 24 * PER_HOUR + window * per_window
                log.write_frame(rows.iloc[first : first + per_window])
                spent, count = tick()
                assert count == 1
                full.append(spent)
                idle.append(tick()[0])
    size = sum(file.stat().st_size for file in log_dir.iterdir() if file.is_file())
    state = max(file.stat().st_size for file in files.folder.iterdir())
    return {"full": median(full), "idle": median(idle), "state": state / 1e3, "log": size / 1e6, "verdicts": verdicts}
