"""What unchanged stages cost against ``dvc repro``, and what the 1,000th partition costs against the first.

Processor seconds, of all processes. Through Dagster the twelve stages are one run in a process that has imported
Dagster, as a step has; ``dvc repro`` is the command. DAGSTER_MLOPS_PARTITIONS (1000) is the number of partitions.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.measure import ROOT, environment, show, timed

ROUNDS, STAGES, BATCH = 5, 12, 20
TARGET_STAGES, TARGET_PARTITION = 3.0, 1.2
RUN = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
import dagster as dg
from dagster_mlops.dvc import DvcResource, pipeline_assets
root, push = sys.argv[1:]
assets = pipeline_assets(repo=root)
def cpu():
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
with dg.instance_for_test() as instance:
    before = cpu()
    result = dg.materialize(assets, instance=instance, resources={"dvc": DvcResource(repo=root, push=push == "push")})
    print(json.dumps(cpu() - before))
"""
STORE = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from dagster_mlops.dvc import DvcResource
root, first, last = sys.argv[1], *map(int, sys.argv[2:])
dvc = DvcResource(repo=root, remote_url=root + "-remote")
dvc.init()
def cpu():
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
Path(root, "parts").mkdir(exist_ok=True)
seconds = []
for number in range(first, last):
    Path(root, "parts", f"{number}.txt").write_text(str(number))
    before = cpu()
    dvc.store(f"parts/{number}.txt")
    seconds.append(cpu() - before)
print(json.dumps(seconds))
"""
DVC = str(Path(sys.executable).with_name("dvc"))


def run(rounds: int | None = None) -> dict[str, Any]:
    """Twelve unchanged stages in turn with ``dvc repro``; then partitions, one after the other."""
    with tempfile.TemporaryDirectory(prefix="pipelines-") as folder:
        env = environment(Path(folder, "state"))
        results: dict[str, Any] = {"stages": _stages(Path(folder, "stages"), env, rounds or ROUNDS)}
        results["partitions"] = _partitions(Path(folder, "parts"), env)
    rows = [
        (side, median(seconds), median(seconds) / median(results["stages"]["dvc repro"]))
        for side, seconds in results["stages"].items()
    ]
    show(f"{STAGES} unchanged stages, at most {TARGET_STAGES:g} times dvc repro", ["", "CPU s", "ratio"], rows)
    first = results["partitions"][0][1]
    rows = [(f"from the {start + 1}th", seconds, seconds / first) for start, seconds in results["partitions"]]
    show(f"storing a new partition, at most {TARGET_PARTITION:g} times the first", ["", "CPU s", "ratio"], rows)
    return results


def _stages(root: Path, env: dict[str, str], rounds: int) -> dict[str, list[float]]:
    def sh(*command: str) -> None:
        subprocess.run(command, cwd=root, env=env, check=True, stdout=subprocess.DEVNULL)

    root.mkdir()
    sh("git", "init", "-q")
    sh(DVC, "init", "-q")
    sh(DVC, "remote", "add", "-d", "storage", f"{root}-remote")
    (root / "raw.txt").write_text("raw\n")
    sh(DVC, "add", "-q", "raw.txt")
    names = ["raw", *(f"out{number}" for number in range(STAGES))]
    stages = {
        f"stage{i}": {"cmd": f"cat {a}.txt > {b}.txt", "deps": [f"{a}.txt"], "outs": [f"{b}.txt"]}
        for i, (a, b) in enumerate(itertools.pairwise(names))
    }
    (root / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    sh(DVC, "repro", "-q")
    sh(DVC, "push", "-q")
    sh("git", "add", ".")
    sh("git", "commit", "-qm", "pipeline")
    sides = {
        "dvc repro": lambda: timed([DVC, "--cd", str(root), "repro", "-q"], env)[1],
        "assets, push=False": lambda: _printed(RUN, env, str(root), "keep"),
        "assets, pushed": lambda: _printed(RUN, env, str(root), "push"),
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds + 1):
        for side, measure in sides.items():
            value = measure()
            if number:  # the first one warms up
                seconds[side].append(value)
    return seconds


def _partitions(root: Path, env: dict[str, str]) -> list[tuple[int, float]]:
    """The median seconds of batches at the start, at an eighth, and at the end."""
    count = int(os.environ.get("DAGSTER_MLOPS_PARTITIONS", "1000"))
    seconds = _printed(STORE, env, str(root), "0", str(count))[1:]  # the first one imports DVC
    return [(start, median(seconds[start : start + BATCH])) for start in (0, count // 8, count - BATCH - 1)]


def _printed(code: str, env: dict[str, str], *arguments: str) -> Any:
    command = [sys.executable, "-c", code, *arguments]
    process = subprocess.run(command, cwd=ROOT, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(process.stdout.splitlines()[-1])
