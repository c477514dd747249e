"""Evidently's report on labelled predictions, for people to look at."""

from typing import Any

from dagster_mlops.core.extras import extra

# The metrics of a report, by task, as Evidently names them.
METRICS = {
    "classification": ("RocAuc", "F1Score", "Precision", "Recall", "Accuracy", "LogLoss"),
    "regression": ("R2Score", "RMSE", "MAE"),
}


def measured(
    evidently: Any, labelled: Any, *, target: str, prediction: str, task: str, threshold: float, tags: list[str]
) -> Any:
    """A snapshot of a frame of labels and predictions, sampled like every report."""
    if len(labelled) > evidently.max_rows:
        labelled = labelled.sample(evidently.max_rows, random_state=evidently.seed)
    tool, metrics = extra("evidently"), extra("evidently.metrics")
    if task == "classification":
        roles = tool.BinaryClassification(target=target, prediction_probas=prediction, pos_label=1)
        options = {"probas_threshold": threshold}
    else:
        roles, options = tool.Regression(target=target, prediction=prediction), {}
    report_metrics = [getattr(metrics, metric)(**options) for metric in METRICS[task]]
    data = tool.Dataset.from_pandas(
        labelled[[target, prediction]], data_definition=tool.DataDefinition(**{task: [roles]})
    )
    return evidently.run(report_metrics, data, tags=tags)
