"""An evaluation in MLflow: a child run of the training run, linked to the model and the rows."""

import hashlib
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import dagster as dg

from dagster_mlops.evaluation.keeping import EVALUATION
from dagster_mlops.evaluation.measure import Estimate, Evaluation
from dagster_mlops.evaluation.model_card import shortened
from dagster_mlops.evaluation.ui_metadata import csv_text, slice_facts
from dagster_mlops.mlflow.lazy import MlflowClient, MlflowModelVersion, Run, entities
from dagster_mlops.mlflow.registry.versions import logged_model_id
from dagster_mlops.mlflow.runs import lookup as runs
from dagster_mlops.provenance import NAMESPACE

EVALUATED = f"{NAMESPACE}.evaluated"
"""Tag of an evaluation's run: the evaluated version, as name/version."""
CARD = f"{NAMESPACE}.model_card"
"""Tag of a version: the hash of its model card."""
CARD_FILE, FOLDER = "model_card.md", "evaluation"
_DESCRIPTION_LIMIT = 5000  # characters of a version's description in MLflow's database


def log_evaluation(
    client: "MlflowClient",
    context: dg.AssetExecutionContext,
    evaluation: Evaluation,
    version: "MlflowModelVersion",
    training: "Run | None",
    experiment: str,
    pngs: Mapping[str, bytes],
) -> "Run":
    """Write an evaluation once: for the same result return the existing run, and complete one that was killed.

    The training run stays as it finished, since `reproduce` compares its metrics. In a run of their own, with the
    logged model and the rows as inputs, the metrics show on the model's page beside those of other rows.
    """
    identity = {EVALUATION: evaluation.digest, EVALUATED: f"{evaluation.model}/{evaluation.version}"}
    run = next(runs.search(client, [experiment], identity), None)
    if run and run.info.status == "FINISHED":
        return run
    # For the sensor: this Dagster run may leave an MLflow run behind.
    context.instance.add_run_tags(context.run.run_id, {runs.TRAINING_TAG: "true"})
    run = run or client.create_run(
        experiment,
        run_name=f"evaluation of {evaluation.model} {evaluation.version}",
        tags={
            **identity,
            runs.OWNER: runs.owner(),
            f"{NAMESPACE}.dagster_asset": context.asset_key.to_user_string(),
            **({runs.PARENT: training.info.run_id} if training else {}),
        },
    )
    client.set_tag(run.info.run_id, runs.DAGSTER_RUN, context.run.run_id)
    try:
        _write(client, run.info.run_id, evaluation, logged_model_id(version), pngs)
    except BaseException as error:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        runs.close_run(client, run, status, f"{type(error).__name__}: {error}")
        raise
    if runs.CLOSED in run.data.tags:  # by a failed attempt
        client.delete_tag(run.info.run_id, runs.CLOSED)
    client.set_terminated(run.info.run_id, "FINISHED")
    return client.get_run(run.info.run_id)


def attach_card(client: "MlflowClient", version: "MlflowModelVersion", card: str, run_id: str) -> None:
    """Make the card the version's description, which MLflow's UI renders, and an artifact of the run, if it changed."""
    digest = hashlib.sha256(card.encode()).hexdigest()
    description = shortened(card, f"The rest is in `{CARD_FILE}`, an artifact of run {run_id}.", _DESCRIPTION_LIMIT)
    if version.tags.get(CARD) == digest and version.description == description:
        return
    client.log_text(run_id, card, CARD_FILE)
    client.update_model_version(version.name, str(version.version), description)
    client.set_model_version_tag(version.name, str(version.version), CARD, digest)  # last: now all of it is stored


def _write(client: MlflowClient, run_id: str, evaluation: Evaluation, model_id: str, pngs: Mapping[str, bytes]) -> None:
    name, digest = evaluation.rows_asset, evaluation.rows_hash[:32]  # MLflow's limit is 36 characters
    rows = runs.dataset_input(name, digest, "dagster", {"asset": name}, "evaluation")
    client.log_inputs(run_id, [rows], [entities.LoggedModelInput(model_id)] if model_id else [])
    timestamp = time.time_ns() // 1_000_000
    values = {
        **_flat("eval", evaluation.whole.metrics),
        **_flat("eval_rival", evaluation.whole.rival),
        **{k: v for who, scores in evaluation.whole.baselines.items() for k, v in _flat(f"eval_{who}", scores).items()},
    }
    linked = {"model_id": model_id or None, "dataset_name": name, "dataset_digest": digest, "run_id": run_id}
    metrics = [
        entities.Metric(key, value, timestamp, 0, **(linked if key.startswith("eval/") else {}))
        for key, value in values.items()
    ]
    client.log_batch(run_id, metrics=metrics)
    with tempfile.TemporaryDirectory(prefix="dagster-mlops-") as scratch:
        Path(scratch, "evaluation.json").write_text(evaluation.to_json())
        if rows := slice_facts(evaluation):
            Path(scratch, "slices.csv").write_text(csv_text(rows))
        for figure, png in pngs.items():
            Path(scratch, f"{figure}.png").write_bytes(png)
        client.log_artifacts(run_id, scratch, FOLDER)


def _flat(prefix: str, metrics: Mapping[str, Estimate]) -> dict[str, float]:
    """``eval/auc``, ``eval/auc_low`` and ``eval/auc_high``; MLflow refuses most punctuation in a name."""
    values = {f"{prefix}/{name}": estimate.value for name, estimate in metrics.items()}
    for name, estimate in metrics.items():
        if estimate.low is not None and estimate.high is not None:
            values |= {f"{prefix}/{name}_low": estimate.low, f"{prefix}/{name}_high": estimate.high}
    return {re.sub(r"[^\w\-. :/]", "_", name): value for name, value in values.items()}
