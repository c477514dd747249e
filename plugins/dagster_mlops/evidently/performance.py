"""The quality of predictions, as far as labels have arrived."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from dagster_mlops.core.extras import extra
from dagster_mlops.core.metadata import table
from dagster_mlops.errors import MonitoringError
from dagster_mlops.evidently.metadata_keys import ROWS
from dagster_mlops.evidently.quiet import quiet
from dagster_mlops.evidently.resource import EvidentlyResource
from dagster_mlops.monitoring.normalise import normalise

if TYPE_CHECKING:
    import pandas as pd
    from evidently.core.report import Snapshot

# Our name → Evidently's metric. The lower of the second group the better.
_HIGH = {
    "classification": {
        "roc_auc": "RocAuc",
        "f1": "F1Score",
        "precision": "Precision",
        "recall": "Recall",
        "accuracy": "Accuracy",
    },
    "regression": {"r2": "R2Score"},
}
_LOW = {"classification": {"log_loss": "LogLoss"}, "regression": {"rmse": "RMSE", "mae": "MAE"}}


@dataclass(frozen=True)
class Performance:
    """Metrics of the labelled rows; `undecided` says why there are none."""

    rows: int
    labelled: int
    undecided: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    reference: dict[str, float] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    snapshot: "Snapshot | None" = None
    plotted: dict[str, "pd.DataFrame"] = field(default_factory=dict)

    def to_metadata(self) -> dict[str, Any]:
        """Plain numbers, and a table of metric, value, reference and limit."""
        rows = [
            {
                "metric": name,
                "value": value,
                "reference": f"{self.reference[name]:.4f}" if name in self.reference else "",
                "limit": f"{self.limits[name]:.4f}" if name in self.limits else "",
            }
            for name, value in self.metrics.items()
        ]
        return {
            ROWS: self.rows,
            "evidently/labelled": self.labelled,
            "evidently/unlabelled": self.rows - self.labelled,
            **{f"evidently/{name}": value for name, value in self.metrics.items()},
            **table("evidently/metrics", rows),
        }


def measure(
    predictions: "pd.DataFrame",
    reference: "pd.DataFrame | None",
    evidently: EvidentlyResource,
    *,
    target: str,
    prediction: str,
    task: Literal["classification", "regression"] = "classification",
    bounds: Mapping[str, float] | None = None,
    max_drop: float = 0.1,
    threshold: float = 0.5,
    min_labels: int = 200,
    tags: Sequence[str] = (),
) -> Performance:
    """Measure the labelled rows; hold them against fixed bounds and against the same metrics of a reference.

    Raises:
        MonitoringError: a column or metric is not there, or the labels are of another kind than the task needs.
    """
    bounds, types = bounds or {}, {**_HIGH[task], **_LOW[task]}
    unknown = sorted(set(bounds) - set(types))
    if unknown:
        raise MonitoringError(f"{task} has no metric {', '.join(unknown)}; there are {', '.join(types)}.")
    labelled = _labelled(predictions, target, prediction, task, "the checked asset")
    counts: dict[str, Any] = {"rows": len(predictions), "labelled": len(labelled)}
    undecided = _too_little(labelled, target, task, min_labels)
    if undecided:
        return Performance(**counts, undecided=undecided)
    metrics, snapshot = _metrics(labelled, target, prediction, task, threshold, evidently, tags)
    before: dict[str, float] = {}
    if reference is not None:
        baseline = _labelled(reference, target, prediction, task, "the reference")
        undecided = _too_little(baseline, target, task, min_labels)
        if undecided:
            return Performance(**counts, undecided=f"in the reference, {undecided}", metrics=metrics)
        before, _ = _metrics(baseline, target, prediction, task, threshold, evidently, tags)
    limits, problems = {}, []
    for name, value in metrics.items():
        high = name in _HIGH[task]
        candidates = [bounds[name]] if name in bounds else []
        if name in before:
            slack = max_drop * abs(before[name])
            candidates.append(before[name] - slack if high else before[name] + slack)
        if not candidates:
            continue
        limits[name] = max(candidates) if high else min(candidates)
        if value < limits[name] if high else value > limits[name]:
            limit = f"{'at least' if high else 'at most'} {limits[name]:.4f}"
            problems.append(f"{name} is {value:.4f}, {limit} was expected")
    plotted = {}
    if task == "classification":
        plotted = {f"{target} = {c}": labelled.loc[labelled[target] == c, [prediction]] for c in (0, 1)}
    return Performance(
        **counts,
        metrics=metrics,
        reference=before,
        limits=limits,
        problems=problems,
        snapshot=snapshot,
        plotted=plotted,
    )


def _labelled(frame: "pd.DataFrame", target: str, prediction: str, task: str, whose: str) -> "pd.DataFrame":
    absent = [name for name in (target, prediction) if name not in frame.columns]
    if absent:
        raise MonitoringError(
            f"{whose} has no column {', '.join(map(repr, absent))}; it has {', '.join(map(str, frame.columns[:30]))}."
        )
    normal = normalise(frame, [target, prediction])
    data: Any = normal.data.copy()
    if task == "classification" and normal.kinds[target] == "category":
        data[target] = data[target].map({"True": 1.0, "False": 0.0, "1": 1.0, "0": 0.0})
        if data[target].notna().sum() < normal.data[target].notna().sum():
            raise MonitoringError(f"{whose}: '{target}' must be true/false or 1/0; it holds other text.")
    for name in (target, prediction):
        if data[name].dtype == object or normal.kinds[name] == "date":
            raise MonitoringError(f"{whose}: '{name}' must be numbers; it is {normal.kinds[name]}.")
    data = data.dropna().reset_index(drop=True)
    if task == "classification":
        if not data[target].isin([0, 1]).all():
            raise MonitoringError(f"{whose}: '{target}' must be true/false or 1/0. Use task='regression' for numbers.")
        if not data[prediction].between(0, 1).all():
            raise MonitoringError(f"{whose}: '{prediction}' must be the probability of {target}=1, between 0 and 1.")
        data[target] = data[target].astype(int)
    return data


def _too_little(labelled: "pd.DataFrame", target: str, task: str, min_labels: int) -> str:
    if len(labelled) < min_labels:
        return f"not enough labels: {len(labelled)} rows have one, min_labels={min_labels}."
    if task == "classification" and labelled[target].nunique() < 2:
        return f"all {len(labelled)} labels that have arrived are {labelled[target].iloc[0]}."
    return ""


def _metrics(
    labelled: "pd.DataFrame",
    target: str,
    prediction: str,
    task: Literal["classification", "regression"],
    threshold: float,
    evidently: EvidentlyResource,
    tags: Sequence[str],
) -> tuple[dict[str, float], "Snapshot"]:
    if len(labelled) > evidently.max_rows:
        labelled = labelled.sample(evidently.max_rows, random_state=evidently.seed)
    types = {**_HIGH[task], **_LOW[task]}
    with quiet():
        tool, metrics = extra("evidently"), extra("evidently.metrics")
        if task == "classification":
            roles = tool.BinaryClassification(target=target, prediction_probas=prediction, pos_label=1)
            report_metrics = [getattr(metrics, cls)(probas_threshold=threshold) for cls in types.values()]
        else:
            roles = tool.Regression(target=target, prediction=prediction)
            report_metrics = [getattr(metrics, cls)() for cls in types.values()]
        definition = tool.DataDefinition(**{task: [roles]})
        data = tool.Dataset.from_pandas(labelled, data_definition=definition)
    snapshot = evidently.run(report_metrics, data, tags=tags)
    values = {m["config"]["type"].rsplit(":", 1)[-1]: m["value"] for m in snapshot.dict()["metrics"]}
    results = {name: values[cls] for name, cls in types.items()}
    return {name: float(v["mean"] if isinstance(v, dict) else v) for name, v in results.items()}, snapshot
