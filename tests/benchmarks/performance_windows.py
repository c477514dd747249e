"""False alarms of the performance check on windows of flights without a change, and the losses that it sees.

A window is 200, 1,000 or 5,000 flights of one month, drawn at random or consecutive; the reference is the rest of the
month, all of it in order of time or a random sample of 8,000. "Before" is the rule that any of six metrics lost 10 %.
Figures are shares of windows; the false alarm rate asked is 1 %.
"""

from typing import Any

import numpy as np

from dagster_mlops.monitoring.performance.judgement import Terms, judge
from dagster_mlops.monitoring.performance.metrics import DEFAULTS, by_name
from tests.benchmarks.flight_scores import flight_scores

ROUNDS = 200
SIX = ("roc_auc", "f1", "precision", "recall", "accuracy", "log_loss")


def run(rounds: int | None = None) -> dict[str, Any]:
    """Draw windows, judge them, and print a Markdown table."""
    flights, random = flight_scores(), np.random.default_rng(0)
    months = {month: flights[flights["month"] == month] for month in range(3, 13)}
    measurements: dict[str, Any] = {}
    print("| rows | windows are | reference | before | six metrics: alarm | undecided | two (default) | undecided | "
          "half of the scores shuffled: alarm |")  # fmt: skip
    print("|---:|---|---|---:|---:|---:|---:|---:|---:|", flush=True)
    for size in (200, 1_000, 5_000):
        for way in ("random", "consecutive"):
            for whole in (True, False):
                results = [_window(months, size, way, whole, random) for _ in range(rounds or ROUNDS)]
                shares = np.mean(results, axis=0)
                name = "rest of the month" if whole else "8,000 of it"
                print(f"| {size:,} | {way} | {name} | {' | '.join(f'{s:.3f}' for s in shares)} |", flush=True)
                measurements[f"{size} {way} {name}"] = shares.tolist()
    return measurements


def _window(months: Any, size: int, way: str, whole: bool, random: Any) -> list[bool]:
    rows = months[random.choice(list(months))]
    labels, scores = rows["late"].to_numpy(), rows["probability"].to_numpy()
    start = random.integers(0, len(rows) - size)
    chosen = random.choice(len(rows), size, replace=False) if way == "random" else np.arange(start, start + size)
    inside = np.isin(np.arange(len(rows)), chosen)
    rest = np.flatnonzero(~inside)
    if not whole:
        rest = np.sort(random.choice(rest, 8_000, replace=False))
    window, reference = (labels[inside], scores[inside]), (labels[rest], scores[rest])
    before = any(
        (m(*reference) - m(*window)) * (-1 if name == "log_loss" else 1) > 0.1 * m(*reference)
        for name, m in by_name(SIX, "classification", 0.5).items()
    )
    six, two = (_states(window, reference, names) for names in (SIX, DEFAULTS["classification"]))
    mixed = scores[inside].copy()
    half = random.random(size) < 0.5
    mixed[half] = random.permutation(mixed[half])
    worse = _states((labels[inside], mixed), reference, DEFAULTS["classification"])
    return [
        before,
        "detected" in six,
        "undecided" in six and "detected" not in six,
        "detected" in two,
        "undecided" in two and "detected" not in two,
        "detected" in worse,
    ]


def _states(window: Any, reference: Any, names: Any) -> set[str]:
    metrics = by_name(names, "classification", 0.5)
    terms = Terms(metrics, frozenset(metrics) - {"log_loss"}, {}, 0.1, 0.01)
    return {line.state for line in judge(window, reference, terms, questions=len(metrics))}
