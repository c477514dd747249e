"""Verdicts on simulated rollouts: false rollbacks where canary and baseline are the same, and faults found.

DAGSTER_MLOPS_ROLLOUTS (200) rollouts of each world, all looked at about every 20 requests to the canary; of faults,
DAGSTER_MLOPS_FAULTS (100). Half of the worlds have one share of the traffic, half of them the steps of the defaults.

Compared are two usual rules at the same 50 requests a second and a tenth of the traffic: a bake of 15 minutes, after
which the canary goes back if its share of errors is one point above the baseline's or its 95th percentile of latency a
fifth; and three checks, one every five minutes, each of which sends it back if Fisher's or Mann and Whitney's test has
p < 0.05.
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from scipy import stats

from dagster_mlops.serving.rollout_verdict.options import Canary, Shadow
from tests.benchmarks.measure import show
from tests.support.simulated_traffic import DAY, Ended, Traffic, roll_out, shadow

ROLLOUTS = int(os.environ.get("DAGSTER_MLOPS_ROLLOUTS", "200"))
FAULTS = int(os.environ.get("DAGSTER_MLOPS_FAULTS", "100"))
STEPS, TENTH, HALF, HUNDREDTH = Canary(), Canary(steps=(0.1,)), Canary(steps=(0.5,)), Canary(steps=(0.01,))
SAME: dict[str, tuple[Canary | Shadow, Traffic]] = {
    "no errors, 1 %, 10 %, 50 %": (STEPS, Traffic()),
    "no errors, 1 % only": (HUNDREDTH, Traffic()),
    "no errors, 50 % only": (HALF, Traffic()),
    "daily wave, errors 0.2 %": (STEPS, Traffic(wave=0.5, errors=0.002)),
    "outages of both, errors 0.2 %": (TENTH, Traffic(outages=0.01, errors=0.002)),
    "heavy tail (5 % Pareto 1.1)": (TENTH, Traffic(heavy_tail=0.05)),
    "load with memory 0.98": (TENTH, Traffic(shared_memory=0.98)),
    "each process with memory 0.9": (HALF, Traffic(memory=0.9)),
    "cold caches that heal": (STEPS, Traffic(cold=3)),
    "shadow": (Shadow(), Traffic()),
}
BEYOND: dict[str, tuple[Canary | Shadow, Traffic]] = {
    "each process with memory 0.98": (HALF, Traffic(memory=0.98)),
}
FAULTY: dict[str, tuple[Canary | Shadow, Traffic]] = {
    "crash on 1 %": (STEPS, Traffic(crash=0.01)),
    "crash on 1 %, 50 % only": (HALF, Traffic(crash=0.01)),
    "crash on 5 %": (STEPS, Traffic(crash=0.05)),
    "crash on 5 %, 50 % only": (HALF, Traffic(crash=0.05)),
    "+20 % latency, spread 0.3": (STEPS, Traffic(slowdown=0.2, spread=0.3)),
    "+20 % latency, spread 0.3, 50 % only": (HALF, Traffic(slowdown=0.2, spread=0.3)),
    "+20 % latency, spread 0.5": (STEPS, Traffic(slowdown=0.2)),
    "twice as slow": (STEPS, Traffic(slowdown=1.0)),
    "cold caches that never heal": (STEPS, Traffic(cold=3, cold_requests=1e9)),
    "constant outputs": (STEPS, Traffic(wrong=1.0)),
    "constant output on half": (STEPS, Traffic(wrong=0.5)),
    "shadow: wrong outputs": (Shadow(), Traffic(wrong=1.0)),
    "shadow: wrong on 20 %": (Shadow(), Traffic(wrong=0.2)),
    "shadow: crash on 5 %": (Shadow(), Traffic(crash=0.05)),
}
PEERS = {
    "none": Traffic(),
    "none, daily wave, memory 0.9": Traffic(wave=0.5, memory=0.9),
    "crash on 1 %": Traffic(crash=0.01),
    "crash on 5 %": Traffic(crash=0.05),
    "+20 % latency, spread 0.3": Traffic(slowdown=0.2, spread=0.3),
    "+20 % latency, spread 0.5": Traffic(slowdown=0.2),
}


def one(world: tuple[Canary | Shadow, Traffic], number: int) -> Ended:
    """The end of one rollout."""
    options, traffic = world
    random = np.random.default_rng([11, number])
    if isinstance(options, Shadow):
        return shadow(options, traffic, random, looks=5 if traffic.wrong else 20)
    return roll_out(options, traffic, random)


def outcome(ended: Ended) -> str:
    """Go, undecided, or the kind of evidence that sent it back."""
    verdict = ended.verdict
    if verdict.value == "back" and verdict.reason.startswith("undecided"):
        return "undecided"
    return verdict.value


def peer(traffic: Traffic, number: int) -> dict[str, tuple[bool, int]]:
    """Of the two usual rules, whether each goes back, and how many users the fault has hit until then."""
    random = np.random.default_rng([12, number])
    world, start = dataclasses.replace(traffic, rate=50.0), random.uniform(0, DAY)
    parts = []
    for minute in range(0, 15, 5):
        times = start + minute * 60 + np.sort(random.uniform(0, 300, random.poisson(world.rate * 300)))
        failed, latencies, _ = world.outcomes(random, times)
        canary = random.random(len(times)) < 0.1
        failed = failed | (canary & (random.random(len(times)) < world.crash))
        latencies = latencies * np.where(canary, 1 + world.slowdown, 1)
        for mask in (canary, ~canary):
            if world.memory:
                steps = random.normal(size=mask.sum()) * np.sqrt(1 - world.memory**2)
                noise = np.empty(len(steps))
                level = random.normal()
                for i, step in enumerate(steps):
                    noise[i] = level = world.memory * level + step
                latencies[mask] *= np.exp(world.memory_size * world.spread * noise)
        parts.append((canary, failed, latencies))
    hits = np.cumsum([mask.sum() if world.slowdown else (failed & mask).sum() for mask, failed, _ in parts])
    canary, failed, latencies = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    rates = failed[canary].mean() - failed[~canary].mean()
    tails = [np.quantile(latencies[mask], 0.95) for mask in (canary, ~canary)]
    back = bool(rates > 0.01 or tails[0] > 1.2 * tails[1])
    result = {"bake of 15 minutes": (back, int(hits[-1])), "three checks": (False, int(hits[-1]))}
    for check, (mask, wrong, taken) in enumerate(parts):
        table = [[wrong[mask].sum(), (~wrong[mask]).sum()], [wrong[~mask].sum(), (~wrong[~mask]).sum()]]
        errors: Any = stats.fisher_exact(table, alternative="greater")[1]
        slower: Any = stats.mannwhitneyu(taken[mask], taken[~mask], alternative="greater")[1]
        if errors < 0.05 or slower < 0.05:
            return {**result, "three checks": (True, int(hits[check]))}
    return result


def run(rounds: int | None = None) -> dict[str, Any]:
    """Measure and print; `rounds` replaces both numbers of rollouts."""
    result: dict[str, Any] = {}
    with ProcessPoolExecutor(2) as pool:
        for title, worlds, count in (
            ("Canary and baseline are the same", SAME, rounds or ROLLOUTS),
            ("Beyond what a test can tell", BEYOND, rounds or ROLLOUTS),
            ("Faults", FAULTY, rounds or FAULTS),
        ):
            rows = []
            for name, world in worlds.items():
                ends = list(pool.map(partial(one, world), range(count), chunksize=5))
                rows.append(_row(name, ends))
                result[name] = rows[-1]
            columns = ["world", "back", "undecided", "go", "requests, median", "95 %", "users hit, median", "95 %"]
            show(title, columns, rows)
            if worlds is SAME:
                backs = sum(row[1] for row in rows)
                print(f"false rollbacks: {backs} of {count * len(rows)}")
        rows = []
        for name, traffic in PEERS.items():
            usual = list(pool.map(partial(peer, traffic), range(rounds or FAULTS), chunksize=5))
            ours = list(pool.map(partial(one, (STEPS, traffic)), range(rounds or FAULTS), chunksize=5))
            gates = {gate: [ends[gate] for ends in usual] for gate in usual[0]}
            gates["sequential"] = [(outcome(ended) == "back", ended.hit) for ended in ours]
            for gate, ends in gates.items():
                hits = [hit for _, hit in ends]
                rows.append([name, gate, f"{np.mean([back for back, _ in ends]):.1%}", np.median(hits), _late(hits)])
        show("Beside usual rules", ["fault", "rule", "back", "users hit, median", "95 %"], rows)
        result["peers"] = rows
    return result


def _row(name: str, ends: Sequence[Ended]) -> list[Any]:
    outcomes = Counter(map(outcome, ends))
    requests, hits = [ended.verdict.requests for ended in ends], [ended.hit for ended in ends]
    counts = [outcomes[value] for value in ("back", "undecided", "go")]
    return [name, *counts, float(np.median(requests)), _late(requests), float(np.median(hits)), _late(hits)]


def _late(values: Sequence[float]) -> float:
    return float(np.quantile(values, 0.95))
