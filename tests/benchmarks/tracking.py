"""What tracking a training costs, against the same function calling MLflow by hand and against the bare script."""

import importlib.util
import inspect
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from time import sleep
from typing import Any

from tests.benchmarks import trainings
from tests.benchmarks.measure import ROOT, console, environment, show

ROUNDS, FIXED_ROUNDS = 3, 15
TARGET_SHARE, TARGET_SECONDS = 0.02, 0.3
PORT = 25_117
TRAININGS = ("forest", "cnn", "text")


def run(rounds: int | None = None) -> dict[str, Any]:
    """The cost of tracking nothing first, then of trainings of about a minute; EFFORT=0.1 makes them shorter."""
    sides = list(trainings.SIDES)
    whole = [side for side in sides if side != "in Dagster by hand"]
    with tempfile.TemporaryDirectory(prefix="tracking-") as folder, _server(Path(folder)) as uri:
        home, found = Path(folder, "dagster"), {}
        home.mkdir()
        (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
        backends = {"a database": f"sqlite:///{folder}/alone.db", "a server": uri}
        for backend, address in backends.items():
            env = environment(Path(folder), TRACKING_URI=address)
            for side in sides:  # makes the database, the experiment and the registered model
                _child("nothing", side, env)
            found[backend] = _rounds("nothing", sides, env, (rounds and rounds * 5) or FIXED_ROUNDS)
        env = environment(Path(folder), TRACKING_URI=uri)
        names = [name for name in TRAININGS if name == "forest" or importlib.util.find_spec("torch")]
        for name in names:
            found[name] = _rounds(name, whole, env, rounds or ROUNDS)

    fixed = [[where, *_medians(found[where], sides, lambda t: t["seconds"] - t["loop"])] for where in backends]
    show("Beside the training, seconds (median)", ["MLflow in", *sides], fixed)
    rows = [[name, *_medians(found[name], whole, lambda t: t["seconds"])] for name in names]
    show("Whole trainings, seconds (median), MLflow behind a server", ["", *whole], rows)
    costs = [_costs(name, found[name]) for name in names]
    show("Over the bare script", ["", "by hand", "training_asset", "training_asset over by hand"], costs)
    counted = ["by hand", "training_asset"]
    show("Lines beside those that train", ["", *counted], [["", *(_lines(trainings.SIDES[side]) for side in counted)]])
    own = max(row[sides.index("training_asset") + 1] - row[sides.index("by hand") + 1] for row in fixed)
    console.print(
        f"Fixed cost over by hand: {own:.2f} s (target {TARGET_SECONDS}: "
        f"{'met' if own <= TARGET_SECONDS else 'missed'}); goal for a training of a minute: {TARGET_SHARE:.0%}.\n"
    )
    if len(names) < len(TRAININGS):
        console.print("Without PyTorch the image and text workloads are left out: pip install torch.\n")
    return {"seconds": found, "fixed": fixed, "trainings": rows, "costs": costs}


def _rounds(workload: str, sides: list[str], env: dict[str, str], rounds: int) -> dict[str, list[dict[str, float]]]:
    """The sides one after the other, and again: what slows the machine down slows each of them."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for number in range(rounds):
        # Forwards and backwards, so that no side always comes after the same one.
        for side in sides if number % 2 == 0 else sides[::-1]:
            found[side].append(_child(workload, side, env))
    return found


def _medians(
    found: dict[str, list[dict[str, float]]], sides: list[str], of: Callable[[dict[str, float]], float]
) -> list[float]:
    return [median(of(turn) for turn in found[side]) for side in sides]


def _costs(name: str, found: dict[str, list[dict[str, float]]]) -> list[str]:
    bare, hand, own = (median(t["seconds"] for t in found[side]) for side in ("bare", "by hand", "training_asset"))
    return [name, f"{hand / bare - 1:+.1%}", f"{own / bare - 1:+.1%}", f"{own / hand - 1:+.1%}"]


def _child(workload: str, side: str, env: dict[str, str]) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.trainings", workload, side]
    # Not in the checkout: MLflow by hand puts the artifacts of a database into the working directory.
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env, folder = {**env, "PYTHONPATH": paths}, env["DAGSTER_MLOPS_STATE"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=1800, check=False)
    if done.returncode:
        raise SystemExit(f"{workload} {side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _lines(side: Any) -> int:
    """The lines that a side adds to the function that trains: its own, and none for opening a Dagster instance."""
    return len([line for line in inspect.getsource(side).splitlines()[1:] if line.strip()])


@contextmanager
def _server(folder: Path) -> Iterator[str]:
    """An MLflow server on a loopback port, with its database and artifacts below `folder`."""
    uri = f"http://127.0.0.1:{PORT}"
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(PORT), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    server = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with suppress(OSError), urllib.request.urlopen(f"{uri}/health", timeout=1):
                break
            if server.poll() is not None:
                raise SystemExit(f"the MLflow server ended with {server.returncode}: is port {PORT} taken?")
            sleep(0.1)
        yield uri
    finally:
        server.terminate()
        server.wait(20)
