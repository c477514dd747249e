"""An evaluation by hand, as one writes it with scikit-learn and matplotlib: metrics by slice, intervals, figures."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from assets.data import DataFrame
from assets.training import learned_and_later, model_inputs, timetable_rates
from tests.benchmarks.raw_tools import clock

RESAMPLES = 200  # for each interval; the library draws a thousand
FEWEST = 100  # rows of a slice


def evaluate(model: Any, training_set: DataFrame, run_id: str) -> dict[str, float]:
    """Evaluate a loaded model on the last training month, and log metrics, slices and figures to its run."""
    import mlflow
    import pandas as pd

    with clock.part("evaluation"), TemporaryDirectory() as scratch:
        rows = learned_and_later(training_set)[1].reset_index(drop=True)
        late = rows["late"].to_numpy().astype(int)
        scores = model.predict(model_inputs(rows))[:, 1]
        baseline = np.asarray(timetable_rates(rows, training_set))
        by_slice = {
            name: {"rows": int(mask.sum()), **_metrics(late[mask], scores[mask]), **_interval(late[mask], scores[mask])}
            for name, mask in _slices(rows)
        }
        pd.DataFrame(by_slice).T.to_csv(Path(scratch, "slices.csv"))
        _draw(late, scores, model, rows, Path(scratch))
        values = {**_metrics(late, scores), **{f"baseline_{k}": v for k, v in _metrics(late, baseline).items()}}
        with mlflow.start_run(run_id=run_id):
            mlflow.log_metrics({f"eval_{name}": value for name, value in values.items()})
            mlflow.log_artifacts(scratch, "evaluation")
        return values


def _slices(rows: DataFrame) -> Iterator[tuple[str, Any]]:
    yield "all", np.ones(len(rows), dtype=bool)
    for column in ("origin", "carrier"):
        for value, count in rows[column].value_counts().items():
            if count >= FEWEST:
                yield f"{column}={value}", (rows[column] == value).to_numpy()
    yield "evening", (rows["departure_minute"] >= 1080).to_numpy()
    yield "long haul", (rows["distance"] >= 2000).to_numpy()


def _metrics(labels: Any, scores: Any) -> dict[str, float]:
    from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

    called = {"auc": roc_auc_score, "pr_auc": average_precision_score, "log_loss": log_loss, "brier": brier_score_loss}
    return {name: float(metric(labels, scores)) for name, metric in called.items()}


def _interval(labels: Any, scores: Any) -> dict[str, float]:
    from sklearn.metrics import roc_auc_score

    random, drawn = np.random.default_rng(7), []
    for _ in range(RESAMPLES):
        sample = random.integers(0, len(labels), len(labels))
        if 0 < labels[sample].sum() < len(sample):
            drawn.append(roc_auc_score(labels[sample], scores[sample]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"auc_low": float(low), "auc_high": float(high)}


def _draw(labels: Any, scores: Any, model: Any, rows: DataFrame, folder: Path) -> None:
    from matplotlib.figure import Figure
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import precision_recall_curve, roc_auc_score, roc_curve

    precision, recall, _ = precision_recall_curve(labels, scores)
    sample = model_inputs(rows.sample(1000, random_state=7))
    sample_labels = rows.loc[sample.index, "late"].astype(int)
    whole, random = roc_auc_score(sample_labels, model.predict(sample)[:, 1]), np.random.default_rng(7)
    lost = {}
    for column in sample:
        shuffled = sample.assign(**{str(column): random.permutation(sample[column].to_numpy())})
        lost[str(column)] = whole - roc_auc_score(sample_labels, model.predict(shuffled)[:, 1])
    curves = {
        "roc": roc_curve(labels, scores)[:2],
        "precision_recall": (recall, precision),
        "calibration": calibration_curve(labels, scores, n_bins=10)[::-1],
        "importance": (list(lost), list(lost.values())),
    }
    for name, (across, up) in curves.items():
        figure = Figure()
        figure.subplots().plot(across, up)
        figure.savefig(folder / f"{name}.png")
