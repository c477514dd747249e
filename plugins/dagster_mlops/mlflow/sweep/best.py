"""The end of a sweep: its best trial's model, metrics and parameters become those of the asset's own run."""

import json
import tempfile
from pathlib import Path
from typing import Any

import dagster as dg

from dagster_mlops.core.run_files import CODE, REPRODUCES_TAG, TRIAL, TRIAL_TAG
from dagster_mlops.errors import TrainingRunError
from dagster_mlops.mlflow.lazy import entities, mlflow, optuna
from dagster_mlops.mlflow.metadata_keys import METRIC, TRIAL_NUMBER
from dagster_mlops.mlflow.resource import MlflowResource
from dagster_mlops.mlflow.runs import lookup as runs
from dagster_mlops.mlflow.sweep.report import log_plots, sweep_metadata
from dagster_mlops.mlflow.sweep.study import RUN_ID, Objective, Search, active_run, settled
from dagster_mlops.mlflow.sweep.trial import INTERMEDIATE, final_point, log_params


def conclude(
    search: Search, context: dg.AssetExecutionContext, resource: MlflowResource, storage: str
) -> dict[str, Any]:
    """Give MLflow's active run the best trial's results and plots of the search, and return the metadata.

    Raises:
        TrainingRunError: no trial completed, or the best one's run or model is gone.
    """
    study, metric = search.study, search.metric
    outcome = settled(study)
    if not outcome.count("COMPLETE"):
        raise TrainingRunError(
            f"none of {len(outcome.trials)} trials completed, {outcome.count('PRUNED')} were pruned. The MLflow runs "
            f"of the study {study.study_name} say why."
        )
    best = study.best_trial
    _adopt(search, best)
    tried = json.dumps({"number": best.number, "params": best.params}, default=str)
    search.client.log_text(search.parent.info.run_id, tried, f"{CODE}/{TRIAL}")
    plots = log_plots(search)
    context.log.info(f"Trial {best.number} is the best: {metric} {best.value:.6g} with {best.params}.")
    return sweep_metadata(search, outcome, resource, storage) | plots


def tried_before(context: dg.AssetExecutionContext) -> str:
    """The trial that this Dagster run must rerun instead of a search; empty when it must search.

    Raises:
        TrainingRunError: the run is a rerun, and the best trial is no longer on record.
    """
    tried = context.run.tags.get(TRIAL_TAG, "")
    if not tried and (run_id := context.run.tags.get(REPRODUCES_TAG)):
        raise TrainingRunError(
            f"run {run_id} was a sweep and no longer has its file {CODE}/{TRIAL} with the best trial. A new search "
            "would write to the sweep's own storage, so it is not started."
        )
    return tried


def repeat_trial(objective: Objective, tried: str, *, metric: str) -> dict[str, Any]:
    """Run one trial of an earlier sweep, JSON with its `number` and `params`, in MLflow's active run itself."""
    fields = json.loads(tried)
    trial: Any = optuna.trial.FixedTrial(fields["params"], number=fields["number"])
    value = objective(trial)
    client, run = mlflow.MlflowClient(), active_run()
    client.log_batch(run.info.run_id, metrics=[final_point(client, run.info.run_id, metric, float(value))])
    log_params(client, run.info.run_id, trial.params)
    return {TRIAL_NUMBER: trial.number, f"{METRIC}/{metric}": float(value)}


def _adopt(search: Search, best: "optuna.trial.FrozenTrial") -> None:
    """Give the sweep's run a copy of the best trial's model, its metrics and its parameters.

    Raises:
        TrainingRunError: the trial's run or model was deleted.
    """
    client, parent = search.client, search.parent
    child = client.get_run(best.user_attrs[RUN_ID])
    models = [model for model in runs.logged_models(client, child) if str(model.status) == "READY"]
    if len(models) != 1:
        raise TrainingRunError(
            f"MLflow run {child.info.run_id} of the best trial {best.number} has {len(models)} models, and one is "
            "expected. Start a new sweep."
        )
    [model] = models
    with tempfile.TemporaryDirectory(prefix="dagster-mlops-model-") as scratch:
        source = mlflow.artifacts.download_artifacts(artifact_uri=f"models:/{model.model_id}", dst_path=scratch)
        copy = client.create_logged_model(
            parent.info.experiment_id,
            name=model.name,
            source_run_id=parent.info.run_id,
            tags={key: value for key, value in model.tags.items() if not key.startswith("mlflow.")},
            params={name: str(value) for name, value in best.params.items()},
            model_type=model.model_type,
        )
        described = mlflow.models.Model.load(source)
        described.run_id, described.model_id, described.model_uuid = parent.info.run_id, copy.model_id, copy.model_id
        described.artifact_path = copy.artifact_location
        described.save(str(Path(source, "MLmodel")))
        client.log_model_artifacts(copy.model_id, source)
        client.finalize_logged_model(copy.model_id, entities.LoggedModelStatus.READY)
    timestamp = child.info.end_time or child.info.start_time
    metrics = {k: v for k, v in child.data.metrics.items() if not k.startswith((INTERMEDIATE, "system/"))}
    client.log_batch(
        parent.info.run_id,
        metrics=[
            entities.Metric(name, value, timestamp, 0) for name, value in {**metrics, search.metric: best.value}.items()
        ],
    )
    # A param of the config may have the same name; the trial's run and the asset's metadata have the trial's value.
    log_params(client, parent.info.run_id, child.data.params)
