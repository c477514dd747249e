"""What masking credentials adds to the reading of a record."""

import time
from statistics import median
from typing import Any
from unittest import mock

from rich.table import Table

from dagster_mlops.provenance import Record, record
from tests.benchmarks.measure import console

COUNT = 1000


def _facts(role: str, number: int) -> dict[str, Any]:
    inputs = [{"tool": "dvc", "role": "dataset", "id": f"{i}.csv@{number:031x}{i}", "at": "/data"} for i in range(3)]
    common = {"dagster_run_id": f"{number:036x}", "dagster_asset": "flights/raw", "upstream": inputs}
    if role == "dataset":
        own = {"path": f"raw/{number}.csv", "md5": f"{number:032x}", "repo": "/data", "rows": 336776, "rev": "c" * 40}
    else:
        values = {f"name{i}": number / (i + 1) for i in range(10)}
        params = {name: str(value) for name, value in values.items()}
        own = {"run_id": f"{number:032x}", "tracking_uri": "http://mlflow:5000", "metrics": values, "params": params}
    return {"schema": 2, "of": {"tool": "x", "role": role}, **common, **own}


def _microseconds(stored: list[dict[str, Any]]) -> float:
    start = time.process_time()
    for facts in stored:
        Record.from_dict(facts)
    return (time.process_time() - start) / len(stored) * 1e6


def run(rounds: int | None) -> dict[str, Any]:
    """CPU time of one record, with the mask and without it; each round reads new records."""
    table = Table("µs CPU for a record", "masked", "not masked", "difference")
    facts: dict[str, Any] = {}
    for role in ("dataset", "training_run"):
        pairs = []
        for start in range(0, (rounds or 9) * 2 * COUNT, 2 * COUNT):
            first, second = ([_facts(role, start + i + shift) for i in range(COUNT)] for shift in (0, COUNT))
            masked = _microseconds(first)
            with mock.patch.object(record, "current_mask", lambda: lambda value: value):
                pairs.append((masked, _microseconds(second)))
        masked, bare = (median(side) for side in zip(*pairs, strict=True))
        facts[role] = {"masked": masked, "bare": bare}
        table.add_row(role.replace("_", " "), f"{masked:.0f}", f"{bare:.0f}", f"{masked - bare:.0f}")
    console.print(table)
    return facts
