"""What storing and reading datasets costs, against DVC's own API and git commands doing the same.

DAGSTER_MLOPS_DATASET_MB (1000) is the size of the one file, DAGSTER_MLOPS_DATASET_FILES (10000) how many files of 4 kB
the folder has. Both sides have Dagster imported, as in a step. Reading checks the version out: raw copies it
into the workspace, ours puts links beside it. Prints a Markdown table; takes about five minutes.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.measure import ROOT, environment

ROUNDS = 2
TARGET_SECONDS, TARGET_RATIO, TARGET_MEMORY = 0.2, 1.05, 1.1
STEPS = ("store", "read from the cache", "read from the remote")
CHILD = """
import json, resource, subprocess, sys, time
from pathlib import Path
root, name, step, side = sys.argv[1:]
work = Path(root, "data")
def git(*arguments):
    subprocess.run(["git", *arguments], cwd=work, check=True, stdout=subprocess.DEVNULL)
import dvc.repo, dvc.repo.add, dvc.repo.push, dvc.repo.pull, dvc_data.hashfile.transfer
from dagster_mlops.dvc import DvcResource
started = time.perf_counter()
if side == "ours":
    ours = DvcResource(repo=str(work))
    ours.store(name) if step == "store" else ours.read_path(name, rev="HEAD")
else:
    with dvc.repo.Repo(str(work)) as repo:
        if step == "store":
            repo.add(name)
            git("add", name + ".dvc", ".gitignore")
            git("commit", "-q", "-m", "Store " + name)
            repo.push(name)
        elif step.endswith("remote"):
            repo.pull(name + ".dvc")
        else:
            repo.checkout(name + ".dvc")
wall = time.perf_counter() - started
print(json.dumps([wall, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""
PREPARE = """
import sys
from dagster_mlops.dvc import DvcResource
DvcResource(repo=sys.argv[1] + "/data", remote_url=sys.argv[1] + "/remote").init()
"""


def run(rounds: int | None = None) -> dict[str, Any]:
    """Store a file and a folder, and read them back from cache and remote, ours and raw alternating."""
    megabytes = int(os.environ.get("DAGSTER_MLOPS_DATASET_MB", "1000"))
    files = int(os.environ.get("DAGSTER_MLOPS_DATASET_FILES", "10000"))
    found: dict[str, Any] = {"megabytes": megabytes, "files": files}
    print("| dataset | step | DVC and git (s) | ours (s) | ratio | memory, raw (MB) | ours (MB) | ratio | target |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---|", flush=True)
    for name, what in (("one.bin", f"{megabytes} MB in one file"), ("many", f"{files} files")):
        times: dict[str, list[list[list[float]]]] = {step: [] for step in STEPS}
        for number in range(rounds or ROUNDS):
            sides = ("raw", "ours") if number % 2 else ("ours", "raw")
            turn = {side: _turn(name, side, megabytes, files) for side in sides}
            for step in STEPS:
                times[step].append([turn["raw"][step], turn["ours"][step]])
        rows = []
        for step, pairs in times.items():
            # The faster of the rounds: what the code costs, less what else the machine was doing.
            seconds = [min(pair[side][0] for pair in pairs) for side in (0, 1)]
            memory = [median(pair[side][1] for pair in pairs) for side in (0, 1)]
            within = seconds[1] - seconds[0] <= TARGET_SECONDS or seconds[1] / seconds[0] <= TARGET_RATIO
            met = within and memory[1] / memory[0] <= TARGET_MEMORY
            cells = [f"{a:.2f} | {b:.2f} | {b / a:.2f}" for a, b in (seconds, memory)]
            print(f"| {what} | {step} | {' | '.join(cells)} | {'met' if met else 'missed'} |", flush=True)
            rows.append((step, *seconds, *memory, met))
        found[name] = {"rounds": times, "rows": rows}
    target = f"{TARGET_RATIO} times or {TARGET_SECONDS} s more than DVC and git, {TARGET_MEMORY} times the memory"
    print(f"\nTarget: at most {target}.\n")
    return found


def _turn(name: str, side: str, megabytes: int, files: int) -> dict[str, list[float]]:
    """Seconds and peak MB of each step in a repository of its own."""
    with tempfile.TemporaryDirectory(prefix="datasets-") as folder:
        env, data = environment(Path(folder)), Path(folder, "data")
        subprocess.run([sys.executable, "-c", PREPARE, folder], cwd=ROOT, env=env, check=True)
        if name == "many":
            (data / name).mkdir()
            for number in range(files):
                (data / name / f"{number}.bin").write_bytes(os.urandom(4096))
        else:
            with (data / name).open("wb") as file:
                for _ in range(megabytes):
                    file.write(os.urandom(1_000_000))
        measured = {}
        for step in STEPS:
            if step != "store":
                # Both read into nothing: raw into the workspace, ours beside it.
                subprocess.run(["rm", "-rf", data / name, data / ".dvc/tmp/dagster_mlops"], check=True)
            if step.endswith("remote"):
                subprocess.run(["rm", "-rf", data / ".dvc" / "cache"], check=True)
            command = [sys.executable, "-c", CHILD, folder, name, step, side]
            done = subprocess.run(command, cwd=data, env=env, check=True, stdout=subprocess.PIPE, text=True)
            measured[step] = json.loads(done.stdout.splitlines()[-1])
        return measured
