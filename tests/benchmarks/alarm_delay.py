"""The time from the first bad request to its verdict and to its alert, with a deployed model and Dagster's daemon."""

import random
import tempfile
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import numpy as np
import pandas as pd

from dagster_mlops.serving import stop
from tests.benchmarks.bento_deployment import BentoDeployment
from tests.benchmarks.measure import console, show
from tests.support.dagster_processes import DagsterProcesses, wait_until
from tests.support.watched_service import LOCATION, alerts, evaluations, prepare, ticks

INCIDENTS, CLIENTS, PER_SECOND, ROWS = 100, 4, 40, 100
KINDS = {
    "unit": lambda x, chance: x * 1.8 + 32,
    "default": lambda x, chance: 0.0,
    "half of them shifted": lambda x, chance: x + 40 * (chance.random() < 0.5),
    "far out of range": lambda x, chance: x * 1e6,
}


class Traffic:
    """Requests at a steady rate, with the fault of `kind` in all of them while there is one."""

    def __init__(self, url: str) -> None:
        self.url, self.kind, self.first_bad = url, "", 0.0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(seed,)) for seed in range(CLIENTS)]

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, seed: int) -> None:
        chance = random.Random(seed)
        with httpx.Client(base_url=self.url, timeout=60, trust_env=False) as client:
            while not self._over.is_set():
                began, kind = time.monotonic(), self.kind
                x = chance.gauss(20, 5)
                x = KINDS[kind](x, chance) if kind else x
                headers = {"x-request-id": uuid.uuid4().hex}
                client.post("/predict", json={"rows": [{"x": x, "seconds": 0.0}]}, headers=headers).raise_for_status()
                if kind and not self.first_bad:
                    self.first_bad = time.time()
                time.sleep(max(0.0, CLIENTS / PER_SECOND - (time.monotonic() - began)))


def run(rounds: int | None = None) -> dict[str, Any]:
    """Inject incidents with the looks of the sensors as by default, every 15 s, and as often as Dagster looks."""
    incidents = rounds or INCIDENTS
    results = {}
    for name, interval in (("every second", 1), ("by default", 15)):
        with tempfile.TemporaryDirectory(prefix="alarm-delay-") as folder:
            results[name] = _delays(Path(folder), incidents, interval)
    show(
        f"From the first bad request, {PER_SECOND} requests/s, windows of {ROWS} rows",
        ["looks", "incidents", "missed", "to the verdict: p50, p99, max (s)", "to the alert: p50, p99, max (s)"],
        [
            [name, str(r["incidents"]), str(r["missed"]), _text(r["verdict"]), _text(r["alert"])]
            for name, r in results.items()
        ],
    )
    return results


def _text(figures: dict[str, float]) -> str:
    return ", ".join(f"{value:.1f}" for value in figures.values())


def _delays(folder: Path, incidents: int, interval: int) -> dict[str, Any]:
    deployment = BentoDeployment.built(folder)
    home, watched, log = folder / "dagster", folder / "watched", folder / "state" / "predictions"
    chance, delays = random.Random(1), []
    try:
        deployment.roll_out("1")
        environment = prepare(
            home, watched, _history(), columns=["x", "seconds", "twice"], outputs={"twice": "output"}, rows=ROWS,
            log=str(log), interval=interval,
        )  # fmt: skip
        processes = DagsterProcesses(home, LOCATION, environment)
        with dg.DagsterInstance.from_config(str(home)) as instance, Traffic(deployment.url) as traffic:
            try:
                processes.start("dagster-daemon", "run")
                wait_until(lambda: ticks(instance) == 2, lambda: processes.log("dagster-daemon"))
                for number in range(incidents):
                    time.sleep(chance.uniform(0, 2 * ROWS / PER_SECOND))
                    delays.append(_incident(instance, watched, traffic, list(KINDS)[number % len(KINDS)]))
                    console.print(f"{interval} s: incident {number + 1} of {incidents}: {delays[-1]}")
            finally:
                for name in list(processes.running):
                    processes.kill(name)
    finally:
        stop(deployment.state_dir)
    done = [delay for delay in delays if delay]
    columns = dict(zip(("verdict", "alert"), np.array(done).T, strict=True))
    figures = {
        name: {"p50": float(np.median(v)), "p99": float(np.quantile(v, 0.99)), "max": float(v.max())}
        for name, v in columns.items()
    }
    return {"incidents": incidents, "missed": incidents - len(done), **figures}


def _incident(instance: dg.DagsterInstance, watched: Path, traffic: Traffic, kind: str) -> tuple[float, float] | None:
    """Seconds to the verdict and to the alert; None where there was none in two minutes."""
    before, told = len(evaluations(instance)), len(alerts(watched))
    traffic.first_bad, traffic.kind = 0.0, kind
    try:
        verdict = wait_until(lambda: _state(instance, before, "detected"), lambda: "not detected")
        wait_until(lambda: len(alerts(watched)) > told, lambda: "not told")
        first_bad = traffic.first_bad
    except TimeoutError:
        return None
    finally:
        traffic.kind = ""
    seen = len(evaluations(instance))
    wait_until(
        lambda: _state(instance, seen, "recovered", "ok"), lambda: f"not recovered: {evaluations(instance)[-3:]}"
    )
    wait_until(lambda: len(alerts(watched)) > told + 1, lambda: "its end was not told")
    return verdict - first_bad, alerts(watched)[told][0] - first_bad


def _state(instance: dg.DagsterInstance, start: int, *states: str) -> float | None:
    """The time of the first verdict from `start` on with one of these states."""
    later = evaluations(instance)[start:]
    return next((each["recorded"] for each in later if each["monitoring/state"] in states), None)


def _history() -> pd.DataFrame:
    """Eight weeks of the same traffic, in as many windows of its size as there are hours."""
    random_numbers = np.random.default_rng(0)
    start = datetime.now(UTC) - timedelta(weeks=8)
    times = pd.date_range(start, periods=56 * 24 * ROWS, freq=timedelta(hours=1) / ROWS)
    x = random_numbers.normal(20, 5, len(times))
    return pd.DataFrame({"time": times, "x": x, "seconds": 0.0, "twice": 2 * x})
