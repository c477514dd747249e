"""The lifecycle driven through Dagster, against the same steps as a plain script."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.measure import ROOT, console, cpu_of_state, environment, python, ratio, show, timed, told

ROUNDS = 3
# What the script does by hand or with a tool's defaults, by its clock, and the ends of the names of Dagster's steps.
OTHERWISE = {"evaluation": ("_evaluation", "validation_rows"), "evidently": ("_quality", "_drift", "_performance")}
# Waiting threads of the training do not spin: beside other work, half of the CPU time of its stage went on that.
PASSIVE = {"OMP_WAIT_POLICY": "passive"}
STAGES = ("static", "ingest", "train", "promote", "release", "replay")


def run(rounds: int | None = None) -> dict[str, Any]:
    """Alternate the plain script and the demo, each in a fresh state folder; the demo runs twice in its own.

    With DAGSTER_MLOPS_TOGETHER=1 both run at the same time, so that other work on the machine slows them alike.

    Raises:
        SystemExit: one of them fails, or they do not come to the same result.
    """
    # Everything once from disk, so that the first round is no different from the others.
    with tempfile.TemporaryDirectory(prefix="lifecycle-") as folder:
        code = "import assets.definitions, bentoml.mlflow, dvc.repo, evidently.presets, feast, mlflow, sklearn.ensemble"
        timed(["sh", "-c", 'exec "$@" 2>/dev/null', "sh", *python(code)], environment(Path(folder)))
    pairs = []
    for turn in range(rounds or ROUNDS):
        with ThreadPoolExecutor(2 if os.environ.get("DAGSTER_MLOPS_TOGETHER") else 1) as pool:
            pairs.append(tuple(side.result() for side in [pool.submit(plain_script), pool.submit(dagster_demo)]))
        raw, demo = pairs[-1]
        console.print(
            f"round {turn + 1}: plain script {raw['wall']:.1f} s, Dagster {demo['wall']:.1f} s "
            f"(ratio {demo['wall'] / raw['wall']:.2f}; load {os.getloadavg()[2]:.1f} over the last 15 minutes)"
        )
        different = {
            name: (raw["results"][name], value)
            for name, value in demo["results"].items()
            if abs(raw["results"][name] - value) > 1e-9
        }
        if different:
            raise SystemExit(f"the plain script and Dagster disagree: {different}")

    found: dict[str, Any] = {"rounds": pairs, "results": pairs[0][0]["results"], "stages": {}}
    rows = []
    for stage in STAGES:
        compared = _compared([(raw["stages"][stage]["seconds"], demo["stages"][stage]) for raw, demo in pairs])
        cpu = _compared([(raw["stages"][stage]["cpu"], demo["cpu"][stage]) for raw, demo in pairs])
        inside = median(demo["in_steps"][stage] for _, demo in pairs)
        found["stages"][stage] = {**compared, "cpu": cpu, "dagster_in_steps": inside}
        rows.append((stage, *compared.values(), *cpu.values(), inside))
    found["cpu"] = _compared(
        [(sum(stage["cpu"] for stage in raw["stages"].values()), sum(demo["cpu"].values())) for raw, demo in pairs]
    )
    totals = {
        "work": ("all, without process start-up", [(raw["work"], demo["work"]) for raw, demo in pairs]),
        "wall": ("all, with process start-up", [(raw["wall"], demo["wall"]) for raw, demo in pairs]),
        "rest": ("without evaluation and reports", [_rest(raw, demo) for raw, demo in pairs]),
    }
    for name, (title, seconds) in totals.items():
        found[name] = _compared(seconds)
        rows.append((title, *found[name].values(), *(found["cpu"].values() if name == "work" else ("", "", "")), ""))
    steps = {step: median(demo["steps"][step] for _, demo in pairs) for step in pairs[0][1]["steps"]}
    found["unchanged"] = median(demo["unchanged"] for _, demo in pairs)
    show(
        f"The lifecycle, median of {len(pairs)}, seconds",
        ["", "plain script", "Dagster", "ratio", "plain script, CPU", "Dagster, CPU", "ratio", "Dagster, in steps"],
        rows,
    )
    console.print(f"Dagster again, nothing changed: {found['unchanged']:.1f} s.")
    slowest = ", ".join(f"{step} {seconds:.1f}" for step, seconds in list(steps.items())[:8])
    console.print(f"Slowest steps and checks (all partitions, s): {slowest}.\nSame results: {found['results']}\n")
    return found


def plain_script() -> dict[str, Any]:
    """Seconds and results of the plain script: `work` from the end of its first imports, `wall` with start-up.

    It borrows its functions from the code location, so it imports Dagster, which a plain script would not. What counts
    as its start-up is therefore that of a process that imports pandas.
    """
    with tempfile.TemporaryDirectory(prefix="lifecycle-raw-") as folder:
        state = Path(folder)
        command = [sys.executable, "-m", "tests.benchmarks.raw_lifecycle"]
        start_up, _ = timed(python("import pandas"), environment(state))
        with _child(command, environment(state, **PASSIVE), state / "script.log", stdout=subprocess.PIPE) as child:
            assert child.stdout
            for line in child.stdout:
                if line.startswith(b'{"seconds"'):
                    found = json.loads(line)
                    return {"wall": start_up + found["seconds"], "work": found["seconds"], **found}
        raise SystemExit(f"the plain script failed:\n{(state / 'script.log').read_text()[-3000:]}")


def dagster_demo() -> dict[str, Any]:
    """Seconds and results of the demo's worker, and how long a second run with nothing to do takes."""
    with tempfile.TemporaryDirectory(prefix="lifecycle-dagster-") as folder, socket.socket() as probe:
        state = Path(folder)
        (state / "dagster").mkdir()
        shutil.copy(ROOT / "resources" / "dagster.yaml", state / "dagster")
        probe.bind(("127.0.0.1", 0))
        env = environment(state, **PASSIVE, DAGSTER_MLOPS_PORT=str(probe.getsockname()[1]))
        probe.close()
        try:
            found = _worker(state, env)
            found |= _told_by_dagster(state, env)
            again = _worker(state, env)
            if again["ran"]:
                raise SystemExit(f"the second run executed {again['ran']} unchanged assets")
            return {**found, "unchanged": again["wall"]}
        finally:
            stop = [sys.executable, "-m", "dagster_mlops.cli", "serving", "stop", str(state / "serving")]
            subprocess.run(stop, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, check=False)


def _worker(state: Path, env: dict[str, str]) -> dict[str, Any]:
    from assets.demo import STAGES as titles

    jobs = {title: job for title, job, _ in titles}
    reading, writing = os.pipe()
    stages: dict[str, float] = defaultdict(float)
    cpu: dict[str, float] = defaultdict(float)
    began, first, ran, stage_began, cpu_before = time.perf_counter(), 0.0, 0, 0.0, 0.0
    command = [sys.executable, "-m", "assets.demo", str(writing)]
    with _child(command, env, state / "worker.log", pass_fds=[writing]) as child, os.fdopen(reading) as events:
        os.close(writing)
        for event in map(json.loads, events):
            now = time.perf_counter()
            if "stage" in event:
                first, stage_began, cpu_before = first or now, now, cpu_of_state(state)
            elif "stage_done" in event:
                stages[jobs[event["stage_done"]]] += now - stage_began
                cpu[jobs[event["stage_done"]]] += cpu_of_state(state) - cpu_before
                ran += event["ran"]
            elif "failure" in event:
                raise SystemExit(f"the demo failed: {event['failure']}\n{(state / 'worker.log').read_text()[-3000:]}")
        done = time.perf_counter()
        child.wait()
    return {"wall": done - began, "work": done - first, "stages": dict(stages), "cpu": dict(cpu), "ran": ran}


def _told_by_dagster(state: Path, env: dict[str, str]) -> dict[str, Any]:
    """What its event log says: seconds inside steps by job, the slowest steps, and the results."""
    code = """
import json, sys
import dagster as dg
import pandas as pd

steps = []
with dg.DagsterInstance.get() as instance:
    for run in instance.get_runs():
        for step in instance.get_run_step_stats(run.run_id):
            steps.append([run.job_name, step.step_key, step.end_time - step.start_time])
    event = instance.get_latest_materialization_event(dg.AssetKey("arrival_delay_model"))
    metadata = event.asset_materialization.metadata
frame = pd.read_parquet(sys.argv[1])
results = {
    "auc": next(m.value for name, m in metadata.items() if name.rsplit("/", 1)[-1] == "auc"),
    "predictions": len(frame),
    "mean_probability": float(frame["probability"].mean()),
}
print(json.dumps({"steps": steps, "results": results}))
"""
    predictions = state / "data" / "production" / "predictions" / "2013-07-01.parquet"
    events = json.loads(told([*python(code), str(predictions)], env).splitlines()[-1])
    jobs, steps = Counter(), Counter()
    for job, step, seconds in events["steps"]:
        jobs[job] += seconds
        steps[step] += seconds
    return {"in_steps": dict(jobs), "steps": dict(steps.most_common()), "results": events["results"]}


def _rest(raw: dict[str, Any], demo: dict[str, Any]) -> tuple[float, float]:
    """Seconds without start-up, evaluation and Evidently, which the two sides do in different ways."""
    by_hand = sum(stage.get(part, 0.0) for stage in raw["stages"].values() for part in OTHERWISE)
    ends = tuple(end for ends in OTHERWISE.values() for end in ends)
    in_steps = sum(seconds for step, seconds in demo["steps"].items() if step.endswith(ends))
    return raw["work"] - by_hand, demo["work"] - in_steps


def _compared(pairs: list[tuple[float, float]]) -> dict[str, float]:
    return {"raw": median(a for a, _ in pairs), "dagster": median(b for _, b in pairs), "ratio": ratio(pairs)}


@contextmanager
def _child(command: list[str], env: dict[str, str], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A child in a process group of its own, which does not outlive the block."""
    with log.open("ab") as output:
        options = {"stdout": output, "stderr": output, **options}
        child: Any = subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True, **options)
    try:
        yield child
        child.wait(60)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGTERM)
            child.wait(60)
