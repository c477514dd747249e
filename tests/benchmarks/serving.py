"""Requests per second and CPU of our deployments, beside the servers that people write themselves.

Ours is a whole deployment: Envoy, every value checked, every prediction logged. The others only answer.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import dagster as dg
import httpx
import numpy as np
import pandas as pd
import psutil

from dagster_mlops.bentoml import BentomlResource, bento_asset, deployment_asset
from dagster_mlops.provenance import ModelVersion
from dagster_mlops.serving import stop
from dagster_mlops.serving.local.processes import free_port, marked
from tests.benchmarks.measure import QUIET, ROOT, console, show

SECONDS, CLIENTS, BATCHES = 4.0, (1, 16, 64), (1, 10, 100, 1000)
NAMES: Any = [f"x{number}" for number in range(15)]
_PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # where MLflow looks for uvicorn
ENVIRONMENT = {**os.environ, **QUIET, "OMP_NUM_THREADS": "1", "PATH": _PATH}
Cpu = Callable[[], float]


def run(rounds: int | None = None) -> dict[str, Any]:
    """Each server in turn, `rounds` times, with one row by 1, 16 and 64 clients and with more rows by 16."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="serving-") as folder:
        for kind in ("numbers", "pipeline"):
            place = Path(folder, kind)
            rows = _model(place)
            bodies = {
                field: {count: _body(place, rows, count, field) for count in BATCHES} for field in _FIELDS.values()
            }
            results: dict[str, list[dict[str, Any]]] = {}
            for _ in range(rounds or 2):
                for name, server in _servers().items():
                    with server(place) as (url, cpu):
                        field = _FIELDS[urlsplit(url).path]
                        results.setdefault(name, []).append(_measured(name, url, cpu, bodies[field]))
            found[kind] = _compared(kind, results)
    return found


def _compared(kind: str, results: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    best = {
        name: {fact: median(each[fact] for each in rounds) for fact in rounds[0]} for name, rounds in results.items()
    }
    table = [
        [name, *(f"{facts[f'{c} clients, requests/s']:,.0f}" for c in CLIENTS), f"{facts['1 clients, p50 ms']:.2f}"]
        + [f"{facts[f'{c} clients, CPU ms']:.3f}" for c in CLIENTS]
        + [f"{facts[f'{count} rows, rows/s']:,.0f}" for count in BATCHES]
        for name, facts in best.items()
    ]
    heads = [*(f"{c} clients/s" for c in CLIENTS), "p50 ms", *(f"CPU ms at {c}" for c in CLIENTS)]
    show(f"Serving, {kind}", ["server", *heads, *(f"rows/s by {count}" for count in BATCHES)], table)
    return best


def _measured(name: str, url: str, cpu: Cpu, bodies: Mapping[int, Path]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    _load(url, bodies[1], 4, 1.0)
    for clients in CLIENTS:
        before = cpu()
        seen = _load(url, bodies[1], clients, SECONDS)
        facts[f"{clients} clients, requests/s"] = seen["requests_per_second"]
        facts[f"{clients} clients, p50 ms"] = seen["p50_ms"]
        facts[f"{clients} clients, CPU ms"] = (cpu() - before) * 1000 / seen["requests"]
        if seen["failures"]:
            console.print(f"{name}: {seen['failures']} of {seen['requests']} requests failed")
    for count, body in bodies.items():
        facts[f"{count} rows, rows/s"] = _load(url, body, 16, SECONDS)["requests_per_second"] * count
    return facts


def _load(url: str, body: Path, clients: int, seconds: float) -> dict[str, float]:
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.load",
        url,
        str(body),
        f"--clients={clients}",
        f"--seconds={seconds}",
    ]
    return json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout)


def _body(place: Path, rows: pd.DataFrame, count: int, field: str) -> Path:
    path = place / f"{field}{count}.json"
    path.write_text(json.dumps({field: rows.head(count).to_dict("records")}))
    return path


def _model(place: Path) -> pd.DataFrame:
    """A model of 15 numbers, or of these and a text in a pipeline, in a registry; returns rows for it."""
    import mlflow
    from mlflow.artifacts import download_artifacts
    from mlflow.models import infer_signature
    from mlflow.sklearn import log_model
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    place.mkdir()
    random = np.random.default_rng(0)
    rows = pd.DataFrame(random.normal(size=(5000, 15)), columns=NAMES)
    late = (rows.x0 + rows.x1 * rows.x2 + random.normal(size=5000) > 0).astype(int)
    model: Any = HistGradientBoostingClassifier(max_iter=100)
    if place.name == "pipeline":
        rows["carrier"] = random.choice(["AA", "UA", "DL"], 5000)
        encoder = OneHotEncoder(sparse_output=False)
        model = make_pipeline(make_column_transformer((encoder, ["carrier"]), remainder="passthrough"), model)
    model.fit(rows, late)
    mlflow.set_tracking_uri(f"sqlite:///{place}/mlflow.db")
    mlflow.create_experiment("delay", artifact_location=f"file://{place}/artifacts")
    mlflow.set_experiment("delay")
    with mlflow.start_run():
        info = log_model(
            model,
            name="model",
            signature=infer_signature(rows, model.predict_proba(rows)),
            input_example=rows.head(20),
            pyfunc_predict_fn="predict_proba",
            serialization_format="cloudpickle",
            pip_requirements=["scikit-learn"],
            registered_model_name="delay",
        )
    (place / "model_folder").write_text(download_artifacts(info.model_uri, dst_path=str(place)))
    rows.head(500).to_parquet(place / "golden.parquet")
    return rows


def _servers() -> dict[str, Callable[[Path], Any]]:
    python = [sys.executable, "-m"]
    fastapi = "tests.benchmarks.raw_fastapi:app"
    commands: dict[str, Callable[[int], list[str]]] = {
        "FastAPI, uvicorn": lambda port: [*python, "uvicorn", fastapi, "--port", str(port), "--no-access-log"],
        "bentoml serve": lambda port: [
            *python,
            "bentoml",
            "serve",
            "tests.benchmarks.raw_bento:RawDelay",
            "-p",
            str(port),
        ],
    }
    if importlib.util.find_spec("granian"):
        flags = ["--interface", "asgi", "--no-access-log"]
        commands["FastAPI, granian"] = lambda port: [*python, "granian", *flags, "--port", str(port), fastapi]
    if importlib.util.find_spec("litserve"):
        commands["LitServe"] = lambda port: [*python, "tests.benchmarks.raw_litserve", str(port)]
    raw = {name: lambda place, command=command: _raw(place, command) for name, command in commands.items()}
    return {"dagster-mlops": _ours, **raw, "mlflow models serve": _mlflow}


def _mlflow(place: Path) -> Any:
    flags = ["--env-manager", "local", "--model-uri", (place / "model_folder").read_text()]
    command = [sys.executable, "-m", "mlflow", "models", "serve", *flags, "--port"]
    return _raw(place, lambda port: [*command, str(port)], "/invocations")


@contextmanager
def _raw(place: Path, command: Callable[[int], list[str]], route: str = "/predict") -> Iterator[tuple[str, Cpu]]:
    port = free_port()
    environment = {**ENVIRONMENT, "RAW_MODEL": (place / "model_folder").read_text(), "BENTOML_HOME": str(place / "raw")}
    server = subprocess.Popen(
        command(port), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    root = psutil.Process(server.pid)
    url = f"http://127.0.0.1:{port}{route}"
    try:
        _await(url, place)
        yield url, lambda: sum(sum(one.cpu_times()[:2]) for one in (root, *root.children(recursive=True)))
    finally:
        for one in (*root.children(recursive=True), root):
            one.kill()
        server.wait()


@contextmanager
def _ours(place: Path) -> Iterator[tuple[str, Cpu]]:
    state, port = place / "serving", free_port()
    uri = f"sqlite:///{place}/mlflow.db"

    @dg.asset
    def champion() -> dg.MaterializeResult:
        return dg.MaterializeResult(metadata=ModelVersion(name="delay", version="1", tracking_uri=uri).to_metadata())

    @dg.asset
    def golden() -> pd.DataFrame:
        return pd.read_parquet(place / "golden.parquet")

    bento = bento_asset(promoted=champion.key)
    served = deployment_asset(bento=bento.key, golden_set=golden.key, state_dir=state, port=port)
    resource = BentomlResource(home=str(place / "bentoml"), tracking_uri=uri, allow_pickle=True)
    with dg.DagsterInstance.ephemeral() as instance:
        assert dg.materialize(
            [champion, golden, bento, served], resources={"bentoml": resource}, instance=instance
        ).success

    def cpu() -> float:
        return sum(sum(one.cpu_times()[:2]) for group in marked(state).values() for one in group)

    try:
        yield f"http://127.0.0.1:{port}/predict", cpu
    finally:
        stop(state)


def _await(url: str, place: Path) -> None:
    for _ in range(600):
        try:
            body = place / f"{_FIELDS[urlsplit(url).path]}1.json"
            if httpx.post(url, content=body.read_bytes(), headers=_JSON).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"{url} does not answer")


_JSON = {"content-type": "application/json"}
_FIELDS = {"/predict": "rows", "/invocations": "dataframe_records"}
