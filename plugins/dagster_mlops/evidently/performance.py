"""The quality of predictions, as far as labels have arrived."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dagster_mlops.core.arrays import pd
from dagster_mlops.core.bounds import Range, within
from dagster_mlops.core.extras import extra
from dagster_mlops.core.metadata import table
from dagster_mlops.errors import MonitoringError
from dagster_mlops.evaluation.checks import direction
from dagster_mlops.evidently.metric_names import METRICS
from dagster_mlops.evidently.resource import EvidentlyResource, Snapshot, quiet
from dagster_mlops.monitoring.normalise import normalise


@dataclass(frozen=True)
class Performance:
    """Metrics of the labelled rows; `undecided` says why there are none."""

    metadata: dict[str, Any]
    undecided: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    snapshot: Snapshot | None = None
    plotted: dict[str, "pd.DataFrame"] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement:
    """The parameters of a measurement; see :func:`performance_check`."""

    target: str
    prediction: str
    task: Literal["classification", "regression"]
    bounds: Mapping[str, Range]
    max_drop: float
    threshold: float
    min_labels: int

    def measure(
        self,
        predictions: "pd.DataFrame",
        reference: "pd.DataFrame | None",
        evidently: EvidentlyResource,
        tags: Sequence[str],
    ) -> Performance:
        """Measure the labelled rows; hold them against fixed bounds and against the same metrics of a reference.

        Raises:
            MonitoringError: a column is not there, or the labels are of another kind than the task needs.
        """
        labelled = self._labelled(predictions, "the checked asset")
        counts = {
            "evidently/rows": len(predictions),
            "evidently/labelled": len(labelled),
            "evidently/unlabelled": len(predictions) - len(labelled),
        }
        if undecided := self._too_little(labelled):
            return Performance(counts, undecided)
        metrics, snapshot = self._metrics(labelled, evidently, tags)
        before: dict[str, float] = {}
        if reference is not None:
            baseline = self._labelled(reference, "the reference")
            if undecided := self._too_little(baseline):
                return Performance({**counts, **_metadata(metrics, {}, {})}, f"in the reference, {undecided}")
            before, _ = self._metrics(baseline, evidently, tags)
        limits: dict[str, str] = {}
        problems = []
        for name, value in metrics.items():
            low, high = self.bounds.get(name, (None, None))
            if name in before:
                drop = self.max_drop * abs(before[name])
                if direction(name):
                    low = max(before[name] - drop, -math.inf if low is None else low)
                else:
                    high = min(before[name] + drop, math.inf if high is None else high)
            if low is high is None:
                continue
            limits[name] = within(low, high)
            # NaN is in no range.
            if not (-math.inf if low is None else low) <= value <= (math.inf if high is None else high):
                problems.append(f"{name} is {value:.4f}, {limits[name]} was expected")
        plotted = {}
        if self.task == "classification":
            classes = labelled[self.target]
            plotted = {f"{self.target} = {c}": labelled.loc[classes == c, [self.prediction]] for c in (0, 1)}
        return Performance({**counts, **_metadata(metrics, before, limits)}, "", metrics, problems, snapshot, plotted)

    def _labelled(self, frame: "pd.DataFrame", whose: str) -> "pd.DataFrame":
        target, prediction = self.target, self.prediction
        absent = [name for name in (target, prediction) if name not in frame.columns]
        if absent:
            columns_there = ", ".join(map(str, frame.columns[:30]))
            raise MonitoringError(f"{whose} has no column {', '.join(map(repr, absent))}; it has {columns_there}.")
        normal = normalise(frame, [target, prediction])
        data: Any = normal.data.copy()
        if self.task == "classification" and normal.kinds[target] == "category":
            data[target] = data[target].map({"True": 1.0, "False": 0.0, "1": 1.0, "0": 0.0})
            if data[target].notna().sum() < normal.data[target].notna().sum():
                raise MonitoringError(f"{whose}: '{target}' must be true/false or 1/0; it holds other text.")
        for name in (target, prediction):
            if data[name].dtype == object or normal.kinds[name] == "date":
                raise MonitoringError(f"{whose}: '{name}' must be numbers; it is {normal.kinds[name]}.")
        data = data.dropna().reset_index(drop=True)
        if self.task == "classification":
            if not data[target].isin([0, 1]).all():
                hint = "Use task='regression' for numbers."
                raise MonitoringError(f"{whose}: '{target}' must be true/false or 1/0. {hint}")
            if not data[prediction].between(0, 1).all():
                probability = f"the probability of {target}=1, between 0 and 1"
                raise MonitoringError(f"{whose}: '{prediction}' must be {probability}.")
            data[target] = data[target].astype(int)
        return data

    def _too_little(self, labelled: "pd.DataFrame") -> str:
        if len(labelled) < self.min_labels:
            return f"not enough labels: {len(labelled)} rows have one, min_labels={self.min_labels}."
        if self.task == "classification" and labelled[self.target].nunique() < 2:
            return f"all {len(labelled)} labels that have arrived are {labelled[self.target].iloc[0]}."
        return ""

    def _metrics(
        self, labelled: "pd.DataFrame", evidently: EvidentlyResource, tags: Sequence[str]
    ) -> tuple[dict[str, float], Snapshot]:
        if len(labelled) > evidently.max_rows:
            labelled = labelled.sample(evidently.max_rows, random_state=evidently.seed)
        with quiet():
            tool, metrics = extra("evidently"), extra("evidently.metrics")
            if self.task == "classification":
                roles = tool.BinaryClassification(target=self.target, prediction_probas=self.prediction, pos_label=1)
                options = {"probas_threshold": self.threshold}
            else:
                roles, options = tool.Regression(target=self.target, prediction=self.prediction), {}
            report_metrics = [getattr(metrics, metric)(**options) for metric in METRICS[self.task].values()]
            definition = tool.DataDefinition(**{self.task: [roles]})
            data = tool.Dataset.from_pandas(labelled, data_definition=definition)
        snapshot = evidently.run(report_metrics, data, tags=tags)
        values = {m["config"]["type"].rsplit(":", 1)[-1]: m["value"] for m in snapshot.dict()["metrics"]}
        results = {name: values[metric] for name, metric in METRICS[self.task].items()}
        return {name: float(v["mean"] if isinstance(v, dict) else v) for name, v in results.items()}, snapshot


def _metadata(
    metrics: Mapping[str, float], reference: Mapping[str, float], limits: Mapping[str, str]
) -> dict[str, Any]:
    """Plain numbers, and a table of metric, value, reference and limit."""
    rows = [
        {
            "metric": name,
            "value": value,
            "reference": f"{reference[name]:.4f}" if name in reference else "",
            "limit": limits.get(name, ""),
        }
        for name, value in metrics.items()
    ]
    return {**{f"evidently/{name}": value for name, value in metrics.items()}, **table("evidently/metrics", rows)}
