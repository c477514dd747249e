"""What loading the code location costs, against a bare ``import dagster``."""

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.measure import console, environment, python, ratio, show, timed

PAIRS = 9
TARGET = 1.2
TOOLS = ("mlflow", "feast", "evidently", "bentoml", "dvc", "kubernetes")

BARE = "import dagster"
LOCATION = "import assets.definitions"
# What the same location would cost if its modules imported their tools at the top.
EAGER = "import dagster, dvc.repo, feast, mlflow, bentoml.mlflow, evidently, dagster_k8s"
UNLOADED = (
    f"import sys; {LOCATION}; loaded = {set(TOOLS)!r} & set(sys.modules); sys.exit(', '.join(sorted(loaded)) or 0)"
)


def run(rounds: int | None = None) -> dict[str, Any]:
    """Alternate bare and full loads; a fresh state folder makes the first load a cold one."""
    with tempfile.TemporaryDirectory(prefix="load-cost-") as folder:
        env = environment(Path(folder))
        timed(python(BARE), env)
        cold = timed(python(LOCATION), env)
        timed(python(UNLOADED), env)
        pairs = [(timed(python(BARE), env), timed(python(LOCATION), env)) for _ in range(rounds or PAIRS)]
        eager = timed(python(f"import sys, os; sys.stderr = open(os.devnull, 'w'); {EAGER}"), env)

    walls, cpus = ([(a[i], b[i]) for a, b in pairs] for i in (0, 1))
    found = {
        "pairs": len(pairs),
        "dagster": {"wall": median(a for a, _ in walls), "cpu": median(a for a, _ in cpus)},
        "location": {"wall": median(b for _, b in walls), "cpu": median(b for _, b in cpus)},
        "cold": {"wall": cold[0], "cpu": cold[1]},
        "eager": {"wall": eager[0], "cpu": eager[1]},
        "ratio": {"wall": ratio(walls), "cpu": ratio(cpus)},
        "ratio_range": [min(b / a for a, b in walls), max(b / a for a, b in walls)],
        "target": TARGET,
    }
    rows = [
        ("import dagster", *found["dagster"].values(), "1"),
        ("import assets.definitions", *found["location"].values(), f"{found['ratio']['wall']:.2f}"),
        ("… the first time: Feast's definitions are parsed", *cold, f"{cold[0] / found['dagster']['wall']:.1f}"),
        ("all tools imported at the top instead (once)", *eager, f"{eager[0] / found['dagster']['wall']:.1f}"),
    ]
    show(f"Loading the code location, median of {len(pairs)} pairs", ["", "wall s", "CPU s", "ratio"], rows)
    low, high = found["ratio_range"]
    console.print(
        f"Ratio {found['ratio']['wall']:.2f} of wall ({low:.2f} to {high:.2f}), {found['ratio']['cpu']:.2f} of CPU; "
        f"target at most {TARGET}: {'met' if found['ratio']['wall'] <= TARGET else 'missed'}. "
        f"None of {', '.join(TOOLS)} was imported.\n"
    )
    return found
