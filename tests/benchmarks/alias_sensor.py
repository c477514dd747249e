"""The cost of a tick of `alias_sensor`, and the time until a real daemon has launched the run of a move.

``python -m tests.benchmarks.alias_sensor``: ticks against an MLflow server, through a proxy that counts the requests,
with 10 and 200 versions and as many moves; then Dagster's daemon, with a sensor of every interval, and moves of an
alias by hand at random times.
"""

import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import psutil

from dagster_mlops.mlflow import MlflowResource
from dagster_mlops.promotion import alias_sensor
from dagster_mlops.promotion.history.entry import PROMOTION
from dagster_mlops.promotion.history.log import History
from tests.support.mlflow_servers import Proxy, mlflow_server

_PORT = 23_771
_LOCATION = """
import dagster as dg
from dagster_mlops.mlflow import MlflowResource, alias_sensor

@dg.asset
def after() -> None: ...

defs = dg.Definitions(
    assets=[after],
    sensors=[
        alias_sensor(
            registered_model_name="model",
            asset_selection=["after"],
            name=f"every_{{seconds}}",
            minimum_interval_seconds=seconds,
            default_status=dg.DefaultSensorStatus.RUNNING,
        )
        for seconds in {intervals}
    ],
    resources={{"mlflow": MlflowResource(tracking_uri={uri!r})}},
)
"""


def main() -> None:
    """Measure, and print."""
    os.environ["PYTHONWARNINGS"] = "ignore"
    with tempfile.TemporaryDirectory() as folder:
        _ticks(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        _daemon(Path(folder), intervals=[5, 30, 60], moves=8)


def _model(resource: MlflowResource, name: str, versions: int) -> None:
    client = resource.client()
    client.create_registered_model(name)
    run = client.create_run("0").info.run_id
    for _ in range(versions):
        client.create_model_version(name, f"runs:/{run}/model", run)


def _ticks(folder: Path) -> None:
    with (
        mlflow_server(folder, _PORT, f"sqlite:///{folder}/mlflow.db") as url,
        dg.DagsterInstance.ephemeral() as instance,
    ):
        proxy = Proxy(_PORT + 1, _PORT)
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        for versions in (10, 200):
            name, resource = f"model{versions}", MlflowResource(tracking_uri=f"http://127.0.0.1:{_PORT + 1}")
            _model(MlflowResource(tracking_uri=url), name, versions)
            with resource.models() as models:
                history = History(models, models, name)
                for number in range(1, versions + 1):
                    before = str(number - 1) if number > 1 else ""
                    history.move(PROMOTION, "champion", before, str(number), by="benchmark", why="", facts={})
            sensor = alias_sensor(registered_model_name=name, asset_selection=["after"])
            resources = {"mlflow": resource}
            definitions = dg.Definitions(assets=[dg.AssetSpec("after")], sensors=[sensor], resources=resources)
            options: dict[str, Any] = {"instance": instance, "definitions": definitions, "resources": resources}
            cursor, seconds = None, list[float]()
            for _ in range(22):
                proxy.seen.clear()
                start = time.process_time()
                with dg.build_sensor_context(cursor=cursor, **options) as context:
                    cursor = sensor.evaluate_tick(context).cursor
                seconds.append(time.process_time() - start)
            cpu = statistics.median(seconds[2:]) * 1000
            print(f"{versions} versions: a tick takes {cpu:.0f} ms of CPU and {len(proxy.seen)} requests")


def _daemon(folder: Path, intervals: Sequence[int], moves: int) -> None:
    uri = f"sqlite:///{folder}/mlflow.db"
    resource = MlflowResource(tracking_uri=uri)
    _model(resource, "model", 2)
    client, home = resource.client(), folder / "home"
    client.set_registered_model_alias("model", "champion", "2")
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    (folder / "location.py").write_text(_LOCATION.format(intervals=list(intervals), uri=uri))
    command = [str(Path(sys.executable).with_name("dagster-daemon")), "run", "-f", "location.py"]
    with (folder / "daemon.log").open("w") as log:
        daemon = subprocess.Popen(
            command, cwd=folder, env={**os.environ, "DAGSTER_HOME": str(home)}, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    latencies: dict[str, list[float]] = {f"every_{seconds}": [] for seconds in intervals}
    try:
        time.sleep(2 * max(intervals))
        print(f"the daemon and its code servers, no move: {_cpu(daemon.pid, 60):.1f} s of CPU in a minute")
        with dg.DagsterInstance.from_config(str(home)) as instance:
            for number in range(moves):
                time.sleep(random.uniform(0, 20))
                earlier = {run.run_id for run in instance.get_runs()}
                client.set_registered_model_alias("model", "champion", str(1 + number % 2))
                start, missing = time.monotonic(), set(latencies)
                while missing:
                    time.sleep(0.1)
                    for run in instance.get_runs(limit=10):
                        name = run.tags["dagster/sensor_name"]
                        if run.run_id not in earlier and name in missing:
                            latencies[name].append(time.monotonic() - start)
                            missing.remove(name)
    finally:
        os.killpg(daemon.pid, signal.SIGKILL)
    for name, seconds in latencies.items():
        median, worst = statistics.median(seconds), max(seconds)
        print(f"{name} s: a run is launched after {median:.0f} s (median), {worst:.0f} s at most")


def _cpu(pid: int, seconds: float) -> float:
    """CPU seconds of a process and its children, of which some end and others begin."""
    used: dict[int, list[float]] = {}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            used.setdefault(process.pid, []).append(times.user + times.system)
        time.sleep(1)
    return sum(values[-1] - values[0] for values in used.values())


if __name__ == "__main__":
    main()
