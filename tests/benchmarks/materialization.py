"""What loading a year of features costs as an asset, partition by partition, against Feast's own `materialize`.

DAGSTER_MLOPS_LOAD_ROWS (1,000,000) is how many rows the year has, of DAGSTER_MLOPS_LOAD_KEYS (20,000) keys. Both sides
load the same twelve months into an empty SQLite store, each window in a run of its own (`dg.materialize`, one ephemeral
instance) on the side of the asset. What Dagster needs for a run of an empty asset is part of the glue, and beside it in
the table. Both processes run that empty asset first, so that the memory of Dagster itself counts on both sides, and the
ratio is that of loading features as an asset. Prints a Markdown table.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from tests.benchmarks.measure import ROOT, environment

ROUNDS = 2
WINDOWS = 12
TARGET_SECONDS, TARGET_RATIO, TARGET_MEMORY = 0.2, 1.05, 1.1
SETTINGS = """
project: year
provider: local
registry: {{registry_type: sql, path: "sqlite:///{root}/registry.db"}}
online_store: {{type: sqlite, path: "{root}/online.db"}}
offline_store: {{type: dagster_mlops.feast.offline_store.AsofOfflineStore}}
entity_key_serialization_version: 3
"""
DEFINITIONS = """
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Float64
key = Entity(name="key", join_keys=["key"], value_type=ValueType.INT64)
source = FileSource(name="events", path="{root}/events.parquet", timestamp_field="event_timestamp")
schema = [Field(name=f"f{{i}}", dtype=Float64) for i in range(4)]
year = FeatureView(name="year", entities=[key], source=source, schema=schema)
"""
PREPARE = """
import sys, duckdb
from dagster_mlops.feast import FeastResource
root, rows, keys = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
duckdb.sql(f'''COPY (SELECT CAST(floor(random() * {keys}) AS BIGINT) AS key,
    random() AS f0, random() AS f1, random() AS f2, random() AS f3,
    TIMESTAMPTZ '2013-01-01 00:00:00+00' + to_seconds(CAST(floor(random() * 31536000) AS BIGINT))
    AS event_timestamp FROM range({rows})) TO '{root}/events.parquet' ''')
FeastResource(repo=root + "/repo").apply()
"""
CHILD = """
import json, resource, sys, time
from datetime import datetime, timedelta, timezone
import dagster as dg
import feast, pyarrow.dataset, duckdb, pandas
from dagster_mlops.feast import FeastResource, feature_view_assets
repo, side = sys.argv[1:]
months = dg.MonthlyPartitionsDefinition("2013-01-01", end_date="2014-01-01")
keys = list(months.get_partition_keys())
resource_ = FeastResource(repo=repo)
store = resource_.store()
@dg.asset(partitions_def=months)
def empty() -> None: ...
instance = dg.DagsterInstance.ephemeral()
def materialize(asset, key):
    started = time.perf_counter()
    assert dg.materialize([asset], resources={"feast": resource_}, partition_key=key, instance=instance).success
    return time.perf_counter() - started
alone = [materialize(empty, key) for key in keys]
times = []
if side == "raw":
    for key in keys:
        window = months.time_window_for_partition_key(key)
        first, last = (moment.astimezone(timezone.utc) for moment in (window.start, window.end))
        started = time.perf_counter()
        store.materialize(first, last - timedelta(microseconds=1), feature_views=["year"])
        times.append(time.perf_counter() - started)
else:
    [asset] = feature_view_assets(repo=repo, partitions_def=months)
    times = [materialize(asset, key) for key in keys]
print("\\n" + json.dumps([times, alone, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


class Turn(NamedTuple):
    """Seconds of each window, those of an empty asset for as many windows, and the peak of memory in MB."""

    windows: list[float]
    empty: list[float]
    peak: float


def run(rounds: int | None = None) -> dict[str, Any]:
    """Load the year with both sides in turn, each in a process and a repository of its own."""
    rows = int(os.environ.get("DAGSTER_MLOPS_LOAD_ROWS", "1000000"))
    keys = int(os.environ.get("DAGSTER_MLOPS_LOAD_KEYS", "20000"))
    turns: dict[str, list[Turn]] = {"raw": [], "ours": []}
    for number in range(rounds or ROUNDS):
        for side in ("raw", "ours") if number % 2 else ("ours", "raw"):
            turns[side].append(_turn(side, rows, keys))
    # The faster of the rounds: what the code costs, less what else the machine was doing.
    windows = {side: zip(*(turn.windows for turn in found), strict=True) for side, found in turns.items()}
    best = {side: [min(times) for times in found] for side, found in windows.items()}
    glue = [ours - raw for raw, ours in zip(best["raw"], best["ours"], strict=True)]
    raw, ours = (sum(best[side]) for side in ("raw", "ours"))
    memory = {side: median(turn.peak for turn in found) for side, found in turns.items()}
    dagster = min(median(turn.empty) for found in turns.values() for turn in found)
    within = ours / raw <= TARGET_RATIO or median(glue) <= TARGET_SECONDS
    met = within and memory["ours"] / memory["raw"] <= TARGET_MEMORY
    print(f"{rows:,} rows of {keys:,} keys in {WINDOWS} monthly windows\n")
    print(
        "| | Feast (s) | as an asset (s) | ratio | glue per window (s) | of it Dagster | "
        "MB, Feast | MB, asset | ratio | target |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---|")
    print(
        f"| one year | {raw:.2f} | {ours:.2f} | {ours / raw:.2f} | {median(glue):.2f} | {dagster:.2f} | "
        f"{memory['raw']:.0f} | {memory['ours']:.0f} | {memory['ours'] / memory['raw']:.2f} | "
        f"{'met' if met else 'missed'} |"
    )
    print(f"\nTarget: at most {TARGET_RATIO} or {TARGET_SECONDS} s per window more, {TARGET_MEMORY} of the memory.\n")
    return {"rows": rows, "keys": keys, "rounds": turns, "glue": glue, "dagster": dagster, "met": met}


def _turn(side: str, rows: int, keys: int) -> Turn:
    with tempfile.TemporaryDirectory(prefix="materialization-") as folder:
        repo, env = Path(folder, "repo"), environment(Path(folder), PYTHONWARNINGS="ignore")
        repo.mkdir()
        (repo / "feature_store.yaml").write_text(SETTINGS.format(root=folder))
        (repo / "views.py").write_text(DEFINITIONS.format(root=folder))
        prepare = [sys.executable, "-c", PREPARE, folder, str(rows), str(keys)]
        subprocess.run(prepare, cwd=ROOT, env=env, check=True, timeout=300)
        command = [sys.executable, "-c", CHILD, str(repo), side]
        done = subprocess.run(command, cwd=ROOT, env=env, check=True, text=True, timeout=600, capture_output=True)
        return Turn(*json.loads(done.stdout.splitlines()[-1]))
