"""What loading the code location costs, against a bare ``import dagster``."""

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.measure import console, environment, python, ratio, show, timed, told

ROUNDS = 11
TARGET = 1.2
TOOLS = ("mlflow", "feast", "evidently", "bentoml", "dvc", "kubernetes")

BARE = "import dagster"
LOCATION = "import assets.definitions"
# The location freezes what Dagster's import made, so the fair peer of the whole process does it, too.
FROZEN = f"{BARE}, gc; gc.freeze()"
# What the same location would cost if its modules imported their tools at the top.
EAGER = "import dagster, dvc.repo, feast, mlflow, bentoml.mlflow, evidently, dagster_k8s"
UNLOADED = f"import sys; {LOCATION}; sys.exit(', '.join(sorted({set(TOOLS)!r} & set(sys.modules))) or 0)"
CLOCK = "import time; print(time.process_time())"


def run(rounds: int | None = None) -> dict[str, Any]:
    """Alternate the loads; a fresh state folder makes the first load of the location a cold one.

    Raises:
        SystemExit: loading the location imports a tool.
    """
    with tempfile.TemporaryDirectory(prefix="load-cost-") as folder:
        env = environment(Path(folder))
        timed(python(BARE), env)
        cold = timed(python(LOCATION), env)
        timed(python(UNLOADED), env)
        turns = []
        for _ in range(rounds or ROUNDS):
            whole = [timed(python(code), env) for code in (BARE, FROZEN, LOCATION)]
            imported = [float(told(python(f"{code}; {CLOCK}"), env)) for code in (BARE, LOCATION)]
            turns.append({"wall": [wall for wall, _ in whole], "cpu": [cpu for _, cpu in whole], "import": imported})
        eager = timed(python(f"import os, sys; sys.stderr = open(os.devnull, 'w'); {EAGER}"), env)

    compared = {
        "CPU until the import is done": [(turn["import"][0], turn["import"][1]) for turn in turns],
        "CPU of the whole process": [(turn["cpu"][0], turn["cpu"][2]) for turn in turns],
        "… against `import dagster` and gc.freeze()": [(turn["cpu"][1], turn["cpu"][2]) for turn in turns],
        "wall of the whole process": [(turn["wall"][0], turn["wall"][2]) for turn in turns],
    }
    rows = [
        (name, median(a for a, _ in pairs), median(b for _, b in pairs), ratio(pairs))
        for name, pairs in compared.items()
    ]
    show(
        f"Loading the code location, median of {len(turns)}, seconds",
        ["", "import dagster", "the location", "ratio"],
        rows,
    )
    load = rows[0][3]
    console.print(
        f"Target at most {TARGET} until the import is done: {'met' if load <= TARGET else 'missed'}. None of "
        f"{', '.join(TOOLS)} was imported.\nThe first load, which parses Feast's definitions: {cold[0]:.1f} s. "
        f"With all tools imported at the top: {eager[0]:.1f} s.\n"
    )
    return {
        "rounds": turns,
        "compared": [dict(zip(("measure", "dagster", "location", "ratio"), row, strict=True)) for row in rows],
        "cold": {"wall": cold[0], "cpu": cold[1]},
        "eager": {"wall": eager[0], "cpu": eager[1]},
        "target": TARGET,
    }
