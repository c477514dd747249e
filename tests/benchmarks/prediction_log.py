"""The cost of a prediction log that a power cut does not harm: rows, requests, and writes of a deployment's state."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx

from dagster_mlops.core.files import write_atomically
from dagster_mlops.serving.copies import PACKAGE, modules, write_copies
from dagster_mlops.serving.local.processes import free_port
from dagster_mlops.serving.runtime import PredictionLog
from tests.benchmarks.measure import ROOT, console, show

ROUNDS, THREADS, ROWS, REQUESTS = 5, 4, 2000, 400
# Never on purpose (as before there was a choice), the default, and before each answer.
SECONDS = {"left to the system": 1e6, "each second": 1.0, "before the answer": 0.0}


def run(rounds: int | None = None) -> dict[str, Any]:
    """Alternate the settings, and compare each with the first."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="prediction-log-") as folder:
        package = _package(Path(folder))
        for title, measure in {
            "log.write": _rows,
            "MLflow's server": lambda log, s: _requests(package, log, s),
        }.items():
            times: dict[str, list[list[float]]] = {name: [] for name in SECONDS}
            for turn in range(rounds or ROUNDS):
                for name, seconds in SECONDS.items():
                    times[name].append(measure(Path(folder, f"{title[:3]}-{turn}-{seconds}"), seconds))
            found[title] = _compared(title, times)
        writes = {
            durable: [
                _timed(lambda n=n, d=durable: write_atomically(Path(folder, f"s{n}"), "x" * 2000, durable=d))
                for n in range(200)
            ]
            for durable in (False, True)
        }
    found["durable write"] = {str(durable): median(times) * 1000 for durable, times in writes.items()}
    console.print(
        f"A write of 2 kB: {found['durable write']['False']:.2f} ms, durable {found['durable write']['True']:.2f} ms.\n"
    )
    return found


def _compared(title: str, times: dict[str, list[list[float]]]) -> dict[str, Any]:
    rows, found = [], {}
    for name, by_round in times.items():
        rates = [THREADS / (sum(each) / len(each)) for each in by_round]
        base = [THREADS / (sum(each) / len(each)) for each in times[next(iter(times))]]
        pooled = sorted(value for each in by_round for value in each)
        percentiles = quantiles(pooled, n=100)
        found[name] = {
            "per_second": median(rates),
            "p50_ms": percentiles[49] * 1000,
            "p99_ms": percentiles[98] * 1000,
            "ratio": median(rate / first for rate, first in zip(rates, base, strict=True)),
        }
        rows.append((name, *found[name].values()))
    show(
        f"{title}, {THREADS} at once, median of {len(next(iter(times.values())))}",
        ["", "per second", "p50, ms", "p99, ms", "ratio"],
        rows,
    )
    return found


def _rows(folder: Path, seconds: float) -> list[float]:
    log = PredictionLog(folder, sync_seconds=seconds)
    row = {f"feature_{n}": n / 7 for n in range(20)}
    return _at_once(lambda n: log.write(inputs=[row], outputs=[0.5], request_ids=[str(n)]), ROWS)


def _requests(package: Path, log: Path, seconds: float) -> list[float]:
    port = free_port()
    variables = {"DAGSTER_MLOPS_PREDICTION_LOG": str(log), "DAGSTER_MLOPS_PREDICTION_LOG_SYNC": str(seconds)}
    app = ["scoring_app:app", "--app-dir", str(package), "--port", str(port), "--no-access-log", "--log-level", "error"]
    with subprocess.Popen([sys.executable, "-m", "uvicorn", *app], env={**os.environ, **variables}) as server:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
                while _status(client) != 200:
                    time.sleep(0.1)
                body = {"dataframe_records": [{"hour": 7.0, "wind": 12.5}]}
                return _at_once(lambda n: client.post("/invocations", json=body).raise_for_status(), REQUESTS)
        finally:
            server.terminate()


def _status(client: httpx.Client) -> int:
    try:
        return client.get("/ping").status_code
    except httpx.HTTPError:
        return 0


def _at_once(act: Callable[[int], Any], times: int) -> list[float]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda n: _timed(lambda: act(n)), range(times)))


def _timed(act: Callable[[], Any]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def _package(folder: Path) -> Path:
    """A package of MLflow's scoring server with a small model."""
    import pandas as pd
    from mlflow.models import infer_signature
    from mlflow.sklearn import save_model
    from sklearn.linear_model import LinearRegression

    frame = pd.DataFrame({"hour": [1.0, 2.0, 3.0], "wind": [3.0, 1.0, 2.0]})
    model, package = LinearRegression().fit(frame, [1, 2, 3]), folder / "package"
    signature = infer_signature(frame, model.predict(frame))
    save_model(
        model, str(package / "model"), signature=signature, pip_requirements=[], serialization_format="cloudpickle"
    )
    write_copies(package, [ROOT / "plugins" / "dagster_mlops" / "mlflow_serving" / "scoring_app.py"])
    write_copies(package / PACKAGE, modules())
    record = {"tag": "bench:1", "model_name": "bench", "model_version": "1", "sha256": ""}
    (package / "dagster_mlops.json").write_text(json.dumps({"record": record}))
    return package
