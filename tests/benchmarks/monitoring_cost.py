"""CPU and memory of one window: counted by a frozen profile, and by NumPy PSI or Evidently with both sides."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import ROOT, environment, show

ROWS = tuple(int(float(n)) for n in os.environ.get("DAGSTER_MLOPS_MONITORING_ROWS", "1e4,1e5,1e6,1e7").split(","))
EVIDENTLY_ROWS = 100_000
PREPARE = """
import sys, json
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from dagster_mlops.monitoring.windows import Profile
folder, rows = sys.argv[1], int(sys.argv[2])
words = np.array(["card", "cash", "transfer", "voucher", "other"])
for side, shift in (("reference", 0.0), ("current", 0.1)):
    rng, writer, left = np.random.default_rng(int(shift * 10)), None, rows
    while left:
        n = min(left, 1_000_000)
        data = {f"n{i}": rng.normal(shift, 1 + i, n) for i in range(15)}
        data |= {f"c{i}": pa.array(words[rng.integers(0, 5, n)]) for i in range(5)}
        table = pa.table(data)
        writer = writer or pq.ParquetWriter(f"{folder}/{side}.parquet", table.schema)
        writer.write_table(table)
        left -= n
    writer.close()
sample = next(pq.ParquetFile(f"{folder}/reference.parquet").iter_batches(100_000))
json.dump(Profile.learn(sample).to_dict(), open(f"{folder}/profile.json", "w"))
"""
CONTENDERS = {
    "this, frozen profile": """
from dagster_mlops.monitoring.windows import Profile
profile = Profile.from_dict(json.load(open(f"{folder}/profile.json")))
start = time.process_time()
profile.count(pq.ParquetFile(f"{folder}/current.parquet").iter_batches(131_072, use_threads=False))
""",
    "NumPy PSI, both sides": """
start = time.process_time()
files = [pq.ParquetFile(f"{folder}/{side}.parquet") for side in ("reference", "current")]
psi = {}
for name in files[0].schema_arrow.names:
    a, b = (file.read([name], use_threads=False)[name] for file in files)
    if name[0] == "n":
        a, b = a.to_numpy(), b.to_numpy()
        edges = np.quantile(a, np.linspace(0, 1, 11))[1:-1]
        p, q = (np.bincount(np.searchsorted(edges, x), minlength=10) / len(x) for x in (a, b))
    else:
        p, q = (dict((e["values"], e["counts"] / len(x)) for e in x.value_counts().to_pylist()) for x in (a, b))
        names = sorted({*p, *q})
        p, q = (np.array([side.get(name, 0) for name in names]) for side in (p, q))
    p, q = np.maximum(p, 1e-4), np.maximum(q, 1e-4)
    psi[name] = float(((q - p) * np.log(q / p)).sum())
""",
    "Evidently DataDriftPreset": """
from evidently import Report
from evidently.presets import DataDriftPreset
start = time.process_time()
frames = [pq.read_table(f"{folder}/{side}.parquet", use_threads=False) for side in ("reference", "current")]
Report([DataDriftPreset()]).run(frames[1].to_pandas(), frames[0].to_pandas()).dict()
""",
}
CHILD = """
import json, sys, time, warnings, resource
warnings.simplefilter("ignore")
import numpy as np, pyarrow.parquet as pq
folder = sys.argv[1]
{body}
print("measured", time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def run(rounds: int = 3) -> dict[str, Any]:
    """Print CPU seconds (the least of some rounds) and peak memory, reading the Parquet file included."""
    rows, results = [], []
    for count in ROWS:
        with tempfile.TemporaryDirectory(prefix="monitoring-") as folder:
            env = environment(Path(folder), OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
            subprocess.run([sys.executable, "-c", PREPARE, folder, str(count)], env=env, check=True)
            cells, times = [], {}
            for name, body in CONTENDERS.items():
                if name.startswith("Evidently") and count > EVIDENTLY_ROWS:
                    cells.append("–")
                    continue
                measured = []
                for _ in range(1 if count > 1_000_000 or name.startswith("Evidently") else rounds):
                    output = subprocess.run(
                        [sys.executable, "-c", CHILD.format(body=body), folder],
                        env=env, check=True, capture_output=True, text=True,
                    ).stdout  # fmt: skip
                    measured.append([float(part) for part in output.split("measured")[-1].split()])
                cpu, memory = min(measured)
                times[name] = cpu
                cells.append(f"{cpu:.3f} s, {memory:.0f} MB")
                results.append({"rows": count, "contender": name, "cpu": cpu, "memory_mb": memory})
            ours, numpy_psi = list(times.values())[:2]
            rows.append([f"{count:,}", *cells, ours / numpy_psi])
    show("Cost of one window, 15 numbers and 5 categories", ["rows", *CONTENDERS, "× NumPy"], rows)
    return {"cost": results}
