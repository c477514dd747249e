"""Child processes timed, and what they are compared with, on this machine, in this run."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent.parent
QUIET = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "FEAST_USAGE": "False",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "BENTOML_DO_NOT_TRACK": "True",
    "DAGSTER_DISABLE_TELEMETRY": "yes",
    **{f"GIT_{who}_NAME": "benchmark" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_EMAIL": "benchmark@example.com" for who in ("AUTHOR", "COMMITTER")},
}
PACKAGES = ("dagster", "dvc", "feast", "mlflow", "bentoml", "evidently", "scikit-learn", "pandas", "pyarrow", "duckdb")

console = Console(highlight=False)


def environment(state: Path, **more: str) -> dict[str, str]:
    """The environment of a child that keeps everything below `state`."""
    own = {"DAGSTER_MLOPS_STATE": str(state), "DAGSTER_HOME": str(state / "dagster")}
    # An environment without bytecode would compile this project at every import, but not the packages installed.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, **QUIET, **own, **more}


def timed(command: Sequence[str], env: dict[str, str]) -> tuple[float, float]:
    """Wall and CPU seconds of a child that must succeed, its own children included."""
    start = time.perf_counter()
    child = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    wall = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {child.returncode}")
    return wall, used.ru_utime + used.ru_stime


def cpu_of_state(state: Path) -> float:
    """CPU seconds of the processes that work in `state`, by their environment, and of the children they waited for."""
    import psutil

    seconds, marker = 0.0, str(state)
    for process in psutil.process_iter():
        try:
            if process.environ().get("DAGSTER_MLOPS_STATE") == marker:
                seconds += sum(process.cpu_times()[:4])
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return seconds


def told(command: Sequence[str], env: dict[str, str]) -> str:
    """What a child that must succeed says."""
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=True, timeout=120)
    return done.stdout


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """The median of b / a over pairs measured one right after the other."""
    return median(b / a for a, b in pairs)


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(pages * size / 1e9),
        "load_at_start": os.getloadavg()[0],
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table: the first column is text, the others numbers."""
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row))
    console.print(table)
