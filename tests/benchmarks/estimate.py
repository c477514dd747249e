"""Performance without labels: the error of our estimate beside NannyML's CBPE, on the same chunks of flights.

The model learnt from January and February; March, in order of time, is the reference, and April to December are cut
into chunks of consecutive flights. NannyML runs from the folder in DAGSTER_MLOPS_NANNYML (`pip install --target FOLDER
nannyml`), in a process of its own; without the folder its column is skipped.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from dagster_mlops.monitoring import estimated_performance
from dagster_mlops.monitoring.performance.metrics import builtin
from tests.benchmarks.flight_scores import flight_scores

SIZES = (1_000, 5_000)
METRICS = ("roc_auc", "f1", "accuracy")
CHILD = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
import nannyml, pandas as pd
folder, size, metrics = sys.argv[1], int(sys.argv[2]), sys.argv[3].split(",")
reference, rows = (pd.read_parquet(f"{folder}/{name}.parquet") for name in ("reference", "rows"))
started = time.process_time()
estimator = nannyml.CBPE(
    problem_type="classification_binary", y_pred_proba="probability", y_pred="predicted", y_true="late",
    metrics=metrics, chunk_size=size,
)
estimator.fit(reference)
result = estimator.estimate(rows).filter(period="analysis").to_df()
values = {metric: result[(metric, "value")].tolist() for metric in metrics}
print(json.dumps({"values": values, "cpu": time.process_time() - started}))
"""


def run(rounds: int | None = None) -> dict[str, Any]:
    """Mean absolute difference of each estimate from what the labels say; prints a Markdown table."""
    flights = flight_scores()
    reference, rows = flights[flights["month"] == 3], flights[flights["month"] > 3]
    measurements: dict[str, Any] = {}
    print("| chunk | chunks | metric | our error | as we state it | NannyML's CBPE | the reference's value |")
    print("|---:|---:|---|---:|---:|---:|---:|", flush=True)
    for size in SIZES:
        chunks = [rows.iloc[start : start + size] for start in range(0, len(rows) - size + 1, size)]
        started = time.process_time()
        ours = [
            estimated_performance(reference["late"], reference["probability"], chunk["probability"], metrics=METRICS)
            for chunk in chunks
        ]
        cpu = time.process_time() - started
        theirs = _nannyml(reference, rows.iloc[: len(chunks) * size], size)
        for position, name in enumerate(METRICS):
            metric = builtin(name, 0.5)
            realized, constant = _realized(metric, chunks), metric(*_pair(reference))
            error = np.mean([abs(answer[position].value - real) for answer, real in zip(ours, realized, strict=True)])
            claimed = np.mean([answer[position].error for answer in ours])
            other = np.mean(np.abs(np.array(theirs["values"][name]) - realized)) if theirs else float("nan")
            naive = np.mean(np.abs(constant - np.array(realized)))
            cells = [f"{error:.4f}", f"{claimed:.4f}", f"{other:.4f}" if theirs else "skipped", f"{naive:.4f}"]
            print(f"| {size:,} | {len(chunks)} | {name} | {' | '.join(cells)} |", flush=True)
            measurements[f"{name} {size}"] = {"ours": error, "claimed": claimed, "nannyml": other, "constant": naive}
        seconds = f"{theirs['cpu']:.1f} s" if theirs else "skipped"
        print(f"\nCPU for {len(chunks)} chunks of {size:,}: ours {cpu:.1f} s, NannyML {seconds}\n")
    if not os.environ.get("DAGSTER_MLOPS_NANNYML"):
        print("NannyML is skipped: DAGSTER_MLOPS_NANNYML names no folder that it is installed in.")
    return measurements


def _pair(rows: Any) -> tuple[Any, Any]:
    return rows["late"].to_numpy(), rows["probability"].to_numpy()


def _realized(metric: Any, chunks: list[Any]) -> list[float]:
    return [metric(*_pair(chunk)) for chunk in chunks]


def _nannyml(reference: Any, rows: Any, size: int) -> dict[str, Any] | None:
    folder = os.environ.get("DAGSTER_MLOPS_NANNYML")
    if not folder:
        return None
    with tempfile.TemporaryDirectory(prefix="estimate-") as work:
        columns = ["probability", "predicted", "late"]
        reference[columns].to_parquet(Path(work, "reference.parquet"))
        rows[columns].to_parquet(Path(work, "rows.parquet"))
        environment = {**os.environ, "PYTHONPATH": folder, "NML_DISABLE_USAGE_LOGGING": "1"}
        done = subprocess.run(
            [sys.executable, "-c", CHILD, work, str(size), ",".join(METRICS)],
            env=environment,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    return json.loads(done.stdout.splitlines()[-1])
