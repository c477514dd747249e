"""Benign changes told from harmful ones on real flights, with labels and without, beside NannyML's CBPE.

The history is every other week of March to December; incidents lie in the other weeks. The truth about a change is what
it does to all rows of these weeks: harm is an ROC AUC or a log loss that is worse by 5 % or more, relatively; benign is
one that is worse by 1 % at most. What lies between counts as neither.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dagster_mlops.monitoring.performance.harm import HarmScale
from dagster_mlops.monitoring.performance.metrics import builtin
from tests.benchmarks.flight_scores import scored_flights

SIZES = (1_000, 5_000, 20_000)
INCIDENTS = 8
CHILD = """
import json, sys, warnings
warnings.simplefilter("ignore")
import nannyml, pandas as pd
folder, size = sys.argv[1], int(sys.argv[2])
reference, rows = (pd.read_parquet(f"{folder}/{name}.parquet") for name in ("reference", "rows"))
estimator = nannyml.CBPE(
    problem_type="classification_binary", y_pred_proba="probability", y_pred="predicted", y_true="late",
    metrics=["roc_auc"], chunk_size=size,
)
estimator.fit(reference)
result = estimator.estimate(rows).filter(period="analysis").to_df()
print(json.dumps([result[("roc_auc", "value")].tolist(), result[("roc_auc", "alert")].astype(bool).tolist()]))
"""

Change = Callable[[Any], Any]


def changes(inputs: list[str], deviations: Any, random: np.random.Generator) -> dict[str, Change]:
    """Changes of one input in all rows, of the mix of rows, and of the labels."""
    kinds: dict[str, Change] = {}
    for name in inputs:
        kinds |= {
            f"{name} missing": lambda rows, c=name: rows.assign(**{c: np.nan}),
            f"{name} is 0": lambda rows, c=name: rows.assign(**{c: 0.0}),
            f"{name} + 1 sd": lambda rows, c=name: rows.assign(**{c: rows[c] + deviations[c]}),
            f"{name} × 1,000": lambda rows, c=name: rows.assign(**{c: rows[c].astype(float) * 1000}),
            f"{name} of other rows": lambda rows, c=name: rows.assign(**{c: random.permutation(rows[c].to_numpy())}),
        }
    for name, column, values in (
        *((f"only {carrier}", "carrier", [carrier]) for carrier in ("B6", "UA", "EV", "DL", "AA", "MQ", "WN")),
        *((f"only airport {code}", "origin_code", [code]) for code in range(3)),
        ("only mornings", "hour", range(9)),
        ("only evenings", "hour", range(18, 24)),
    ):
        kinds[name] = lambda rows, c=column, v=values: rows[rows[c].isin(v)]
    for share in (0.05, 0.1, 0.3):
        kinds[f"{share:.0%} of labels wrong"] = lambda rows, s=share: rows.assign(
            late=np.where(random.random(len(rows)) < s, 1 - rows["late"], rows["late"])
        )
    return kinds


def run(rounds: int | None = None) -> dict[str, Any]:
    """Let each change last for 1,000, 5,000 and 20,000 flights, `rounds` times (eight); prints a Markdown table."""
    flights, model, inputs = scored_flights()
    rows: Any = flights[flights["month"] > 2].reset_index(drop=True)
    even = rows["at"].dt.isocalendar().week.to_numpy() % 2 == 0
    history, later = rows[even], rows[~even].reset_index(drop=True)
    random = np.random.default_rng(0)
    base = _truth(later)
    scale = HarmScale.learn(history, "late", "probability", 1_000, columns=inputs)
    with_model = HarmScale.learn(
        history, "late", "probability", 1_000, columns=inputs, predict=lambda r: model.predict_proba(r)[:, 1]
    )
    cases: dict[int, list[dict[str, Any]]] = {size: [] for size in SIZES}
    chunks: dict[int, list[pd.DataFrame]] = {size: [] for size in SIZES}
    truths: dict[str, int] = {"harmful": 0, "benign": 0, "neither": 0}
    for name, change in {"nothing": lambda r: r, **changes(inputs, history[inputs].std(), random)}.items():
        changed = change(later)
        changed = changed.assign(probability=model.predict_proba(changed[inputs])[:, 1])
        worse = max((base[0] - _truth(changed)[0]) / base[0], (_truth(changed)[1] - base[1]) / base[1])
        truth = "harmful" if worse >= 0.05 else "benign" if worse <= 0.01 else "neither"
        truths[truth] += 1
        for size in SIZES:
            for start in random.integers(0, max(len(changed) - size, 1), rounds or INCIDENTS):
                part = changed.iloc[start : start + size]
                if truth == "neither" or len(part) < size or part["late"].nunique() < 2:
                    continue
                labels, scores = part["late"].to_numpy(), part["probability"].to_numpy()
                realized = scale.realized(labels, scores)
                findings = _findings(name, inputs)
                rehearsed, by_model = (
                    each.rehearsed(findings).verdict if findings else "undecided" for each in (scale, with_model)
                )
                by_labels = realized.verdict if realized else "undecided"
                cases[size].append(
                    {
                        "truth": truth,
                        "labels": by_labels,
                        "estimate (CBPE)": scale.estimated(scores).verdict,
                        "rehearsal, stand-in": rehearsed,
                        "rehearsal, the model": by_model,
                        "labels, else rehearsal": by_labels if by_labels != "undecided" else by_model,
                        "change": name,
                        "auc": builtin("roc_auc", 0.5)(labels, scores),
                    }
                )
                chunks[size].append(part)
    print(f"Changes: {truths}\n")
    heads = " | ".join(f"{head}: right / wrong / undecided" for head in ("harmful", "benign"))
    print(f"| rows | by | incidents | {heads} | right of all |")
    print("|---:|---|---:|---:|---:|---:|", flush=True)
    results: dict[str, Any] = {"truths": truths}
    for size in SIZES:
        frame = pd.DataFrame(cases[size])
        theirs = _nannyml(history, chunks[size], size)
        if theirs:
            frame["NannyML's CBPE"] = np.where(theirs[1], "harmful", "benign")
        for basis in [name for name in frame.columns if name not in ("truth", "change", "auc")]:
            cells, right = [], float((frame[basis] == frame["truth"]).mean())
            for truth, other in (("harmful", "benign"), ("benign", "harmful")):
                answers = frame.loc[frame["truth"] == truth, basis]
                shares = [(answers == answer).mean() for answer in (truth, other, "undecided")]
                cells.append(" / ".join(f"{100 * share:.0f} %" for share in shares))
            print(f"| {size:,} | {basis} | {len(frame)} | {' | '.join(cells)} | {100 * right:.0f} % |", flush=True)
            results[f"{basis} {size}"] = {"cells": cells, "right": right}
        if os.environ.get("HARM_PICKLE"):
            frame.to_pickle(f"{os.environ['HARM_PICKLE']}-{size}.pkl")
    return results


def _findings(change: str, inputs: list[str]) -> list[tuple[str, str]]:
    """The columns that alarm by a change of one input, and what about them."""
    return [
        (name, "missing" if change.endswith("missing") else "far above" if change.endswith("1,000") else "distribution")
        for name in inputs
        if change.startswith((f"{name} ",))
    ]


def _truth(rows: pd.DataFrame) -> tuple[float, float]:
    labels, scores = rows["late"].to_numpy(), rows["probability"].to_numpy()
    return builtin("roc_auc", 0.5)(labels, scores), builtin("log_loss", 0.5)(labels, scores)


def _nannyml(reference: pd.DataFrame, chunks: list[pd.DataFrame], size: int) -> Any:
    folder = os.environ.get("DAGSTER_MLOPS_NANNYML")
    if not folder:
        return None
    with tempfile.TemporaryDirectory(prefix="harm-") as work:
        columns = ["probability", "predicted", "late"]
        rows = pd.concat(chunks)
        rows["predicted"] = (rows["probability"] >= 0.5).astype(int)
        reference[columns].to_parquet(Path(work, "reference.parquet"))
        rows[columns].to_parquet(Path(work, "rows.parquet"))
        done = subprocess.run(
            [sys.executable, "-c", CHILD, work, str(size)],
            env={**os.environ, "PYTHONPATH": folder, "NML_DISABLE_USAGE_LOGGING": "1"},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    return json.loads(done.stdout.splitlines()[-1])
