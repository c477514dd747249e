"""``python -m tests.benchmarks [name…] [--rounds N] [--json PATH]``: run benchmarks one after the other."""

import argparse
import json
import signal
import sys
from pathlib import Path

from tests.benchmarks import (
    alarm_cost,
    alarm_delay,
    batch,
    canary,
    datasets,
    estimate,
    evaluation,
    harm,
    history,
    lifecycle,
    load_cost,
    materialization,
    monitoring,
    online_read,
    performance_windows,
    pipelines,
    point_in_time,
    prediction_log,
    prediction_log_reading,
    promotion,
    records,
    reproduction,
    serving,
    serving_faults,
    slices,
    sweeps,
    tracking,
)
from tests.benchmarks.measure import console, machine

BENCHMARKS = {
    "alarm_cost": alarm_cost.run,
    "alarm_delay": alarm_delay.run,
    "batch": batch.run,
    "load_cost": load_cost.run,
    "lifecycle": lifecycle.run,
    "point_in_time": point_in_time.run,
    "prediction_log": prediction_log.run,
    "prediction_log_reading": prediction_log_reading.run,
    "online_read": online_read.run,
    "datasets": datasets.run,
    "materialization": materialization.run,
    "monitoring": monitoring.run,
    "pipelines": pipelines.run,
    "tracking": tracking.run,
    "serving": serving.run,
    "sweeps": sweeps.run,
    "evaluation": evaluation.run,
    "estimate": estimate.run,
    "performance": performance_windows.run,
    "promotion": promotion.run,
    "canary": canary.run,
    "slices": slices.run,
    "harm": harm.run,
    "history": history.run,
    "reproduction": reproduction.run,
    "records": records.run,
    "serving_faults": serving_faults.run,
    "serving_faults_bento": serving_faults.run_bento,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"any of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--rounds", type=int, help="how often each side runs; each benchmark has its own default")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the numbers there, too")
    asked = parser.parse_args()
    if unknown := sorted(set(asked.names) - set(BENCHMARKS)):
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")

    found = {"machine": machine(), "benchmarks": {}}
    facts = found["machine"]
    console.print(
        f"{facts['cores']} cores, {facts['memory_gb']} GB, Python {facts['python']}, "
        f"load {facts['load_at_start']:.1f} at start\n"
    )
    for name in asked.names or BENCHMARKS:
        found["benchmarks"][name] = BENCHMARKS[name](asked.rounds)
        if asked.json:
            asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that children end, too
    main()
