"""An evaluation as MLflow keeps it: a run of its own below the training run, linked to the model and to the rows."""

import hashlib
import json
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops.core.extras import extra
from dagster_mlops.mlflow.evaluation.measure import Estimate, Evaluation
from dagster_mlops.mlflow.evaluation.present import csv_text, slice_facts
from dagster_mlops.mlflow.resource import MlflowResource
from dagster_mlops.mlflow.runs import lookup as runs
from dagster_mlops.provenance import NAMESPACE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion as MlflowModelVersion

EVALUATION = f"{NAMESPACE}.evaluation"
"""Tag: of an evaluation's run, the hash of what it found; of a model version, the latest evaluation in JSON."""
EVALUATED = f"{NAMESPACE}.evaluated"
"""Tag of an evaluation's run: the version that was measured, as name/version."""
FOLDER = "evaluation"
_SUMMARY_LIMIT = 5000  # characters of a version's tag in MLflow's database


def log_evaluation(
    client: "MlflowClient",
    context: dg.AssetExecutionContext,
    resource: MlflowResource,
    evaluation: Evaluation,
    version: "MlflowModelVersion",
    training: "Run | None",
    pngs: Mapping[str, bytes],
) -> "Run":
    """Write an evaluation once: the same result again is the run that is there, one that was killed is completed.

    The training run is left as it finished, since `reproduce` compares its metrics. In a run of their own, which has
    the logged model and the rows as inputs, the metrics show on the model's page beside those of other rows.
    """
    content = json.dumps(evaluation.to_dict(), sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()
    experiment = training.info.experiment_id if training else resource.experiment_id(client)
    run = _known(client, experiment, evaluation, digest)
    if run and run.info.status == "FINISHED":
        return run
    # Tells the sensor which Dagster runs may leave an MLflow run behind.
    context.instance.add_run_tags(context.run.run_id, {runs.TRAINING_TAG: "true"})
    run = run or client.create_run(
        experiment,
        run_name=f"evaluation of {evaluation.model} {evaluation.version}",
        tags={
            EVALUATION: digest,
            EVALUATED: f"{evaluation.model}/{evaluation.version}",
            runs.OWNER: runs.owner(),
            f"{NAMESPACE}.dagster_asset": context.asset_key.to_user_string(),
            **({"mlflow.parentRunId": training.info.run_id} if training else {}),
        },
    )
    client.set_tag(run.info.run_id, runs.DAGSTER_RUN, context.run.run_id)
    try:
        _write(client, run.info.run_id, evaluation, content, _logged_model(version), pngs)
    except BaseException as error:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        runs.close_run(client, run, status, f"{type(error).__name__}: {error}")
        raise
    if runs.CLOSED in run.data.tags:  # by an attempt that failed
        client.delete_tag(run.info.run_id, runs.CLOSED)
    client.set_terminated(run.info.run_id, "FINISHED")
    return client.get_run(run.info.run_id)


def summary(evaluation: Evaluation, run_id: str) -> str:
    """What a version's tag says of its latest evaluation."""
    facts: dict[str, Any] = {
        "run_id": run_id,
        "rows": evaluation.whole.rows,
        "rows_asset": evaluation.rows_asset,
        "rows_hash": evaluation.rows_hash,
        "metrics": {name: [found.value, found.low, found.high] for name, found in evaluation.whole.metrics.items()},
    }
    if evaluation.whole.differences:
        facts["compared_with"] = evaluation.rival_version
        facts["verdicts"] = {name: found.verdict for name, found in evaluation.whole.differences.items()}
    text = json.dumps(facts)
    return text if len(text) <= _SUMMARY_LIMIT else json.dumps({"run_id": run_id})


def _known(client: "MlflowClient", experiment: str, evaluation: Evaluation, digest: str) -> "Run | None":
    query = f"tags.`{EVALUATION}` = '{digest}' and tags.`{EVALUATED}` = '{evaluation.model}/{evaluation.version}'"
    found = client.search_runs([experiment], query, order_by=["attributes.start_time ASC"], max_results=1)
    return found[0] if found else None


def _write(
    client: "MlflowClient", run_id: str, evaluation: Evaluation, content: str, model_id: str, pngs: Mapping[str, bytes]
) -> None:
    entities = extra("mlflow.entities")
    name, digest = evaluation.rows_asset, evaluation.rows_hash[:32]  # MLflow takes 36 characters
    rows = entities.Dataset(name=name, digest=digest, source_type="dagster", source=json.dumps({"asset": name}))
    client.log_inputs(
        run_id,
        [entities.DatasetInput(rows, [entities.InputTag("mlflow.data.context", "evaluation")])],
        [entities.LoggedModelInput(model_id)] if model_id else [],
    )
    now = time.time_ns() // 1_000_000
    values = {
        **_flat("eval", evaluation.whole.metrics),
        **_flat("eval_rival", evaluation.whole.rival),
        **{k: v for who, found in evaluation.whole.baselines.items() for k, v in _flat(f"eval_{who}", found).items()},
    }
    linked = {"model_id": model_id or None, "dataset_name": name, "dataset_digest": digest, "run_id": run_id}
    metrics = [
        entities.Metric(key, value, now, 0, **(linked if key.startswith("eval/") else {}))
        for key, value in values.items()
    ]
    client.log_batch(run_id, metrics=metrics)
    with tempfile.TemporaryDirectory(prefix="dagster-mlops-") as scratch:
        Path(scratch, "evaluation.json").write_text(content)
        if rows := slice_facts(evaluation):
            Path(scratch, "slices.csv").write_text(csv_text(rows))
        for figure, png in pngs.items():
            Path(scratch, f"{figure}.png").write_bytes(png)
        client.log_artifacts(run_id, scratch, FOLDER)


def _logged_model(version: "MlflowModelVersion") -> str:
    """The id of the version's logged model; empty where the version was made of files."""
    source = str(version.source).rpartition("/")[2]
    return version.model_id or (source if source.startswith("m-") else "")


def _flat(prefix: str, metrics: Mapping[str, Estimate]) -> dict[str, float]:
    """``eval/auc``, ``eval/auc_low`` and ``eval/auc_high``; MLflow refuses most punctuation in a name."""
    found = {f"{prefix}/{name}": estimate.value for name, estimate in metrics.items()}
    for name, estimate in metrics.items():
        if estimate.low is not None and estimate.high is not None:
            found |= {f"{prefix}/{name}_low": estimate.low, f"{prefix}/{name}_high": estimate.high}
    return {re.sub(r"[^\w\-. :/]", "_", name): value for name, value in found.items()}
