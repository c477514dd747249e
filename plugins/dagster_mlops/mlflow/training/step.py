"""One training step, from the search for earlier attempts to the model version."""

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg

from dagster_mlops.core.environment import environment
from dagster_mlops.core.failures import not_retried
from dagster_mlops.core.metadata import link, table
from dagster_mlops.core.pictures import MOST_BYTES, Picture, drawn, failed, gallery
from dagster_mlops.core.run_files import CODE, READS, SYSTEM, files_hash
from dagster_mlops.errors import TrainingRunError
from dagster_mlops.mlflow import upstream
from dagster_mlops.mlflow.lazy import ArtifactRepository, LoggedModel, MlflowClient, Run, entities, mlflow
from dagster_mlops.mlflow.metadata_keys import METRIC, RUN_URL, STUDY_NAME, VERSION_URL
from dagster_mlops.mlflow.models import requirements
from dagster_mlops.mlflow.registry.versions import finite_metrics, logged_model_id, register
from dagster_mlops.mlflow.resource import MlflowResource, Tracking
from dagster_mlops.mlflow.runs import lookup as runs
from dagster_mlops.mlflow.runs.active import open_run, parent_run
from dagster_mlops.mlflow.runs.signals import delivered_outside_of_databases
from dagster_mlops.mlflow.server.advice import check_version
from dagster_mlops.mlflow.server.client import artifact_store, request_limits
from dagster_mlops.mlflow.server.connection import sqlite_file
from dagster_mlops.mlflow.training import only_model
from dagster_mlops.mlflow.training.capture import log_json, not_kept, stored_hashes, switches
from dagster_mlops.mlflow.training.checkpoints import FOLDER
from dagster_mlops.mlflow.training.determinism import repeatable
from dagster_mlops.mlflow.training.function import Training
from dagster_mlops.mlflow.training.reads import Reads, unversioned, watched_reads
from dagster_mlops.mlflow.training.run_facts import RunFacts, run_facts
from dagster_mlops.mlflow.training.system_metrics import watched
from dagster_mlops.provenance import TrainingRun

_FIGURES = 3
_DAGSTERS_OWN = ("history", "schedules", "logs", ".logs_queue", "dagster.yaml")  # in its folder
_FOLDERS = 5  # that are listed: each takes a request


@not_retried(TrainingRunError)
def train_step(
    call: Callable[[], Any], context: dg.AssetExecutionContext, resource: MlflowResource, training: Training
) -> dg.MaterializeResult:
    """Train inside the run of this step, register the model, and return the metadata.

    Raises:
        Failure: the function breaks the contract of a training, which no retry changes.
    """
    facts = run_facts(context, resource, training)
    first = runs.TRAINING_TAG not in context.run.tags
    if first:
        # For the sensor: this Dagster run may leave an MLflow run behind.
        context.instance.add_run_tags(context.run.run_id, {runs.TRAINING_TAG: "true"})
    with resource.activate_experiment(training.experiment) as tracking:
        client, experiment_id = tracking.client, tracking.experiment_id
        if first:
            check_version(resource.uri, timeout=resource.connect_timeout)
        earlier = runs.latest_runs(client, experiment_id, facts.tags[runs.TARGET])
        previous = runs.find_run(context, earlier, facts.tags)
        for run_id in runs.close_orphans(client, context.instance, earlier, but=previous):
            context.log.warning(f"Closed MLflow run {run_id}, which a dead process had left running.")
        model = _trained_before(client, context, previous, training, facts)
        attempt = runs.attempt(previous) + 1 if previous else 0

        result, usage = None, {}
        with (
            parent_run(context, tracking) as parent,
            open_run(context, tracking, facts.name, {**facts.tags, **parent}, continued=previous) as run,
        ):
            run_id = run.info.run_id
            context.log.info(f"MLflow run {run_id} (attempt {attempt}) {resource.run_url(experiment_id, run_id)}")
            for name in {runs.CLOSED, runs.TRAINED}.intersection(previous.data.tags if previous else ()):
                client.delete_tag(run_id, name)
            record, hashes = facts.log(client, resource, run, attempt)
            if model is not None:
                context.log.info("The model of an earlier attempt on the same code and inputs is used.")
            else:
                if previous:
                    runs.close_models(client, run)
                before = {logged.model_id for logged in runs.logged_models(client, run)} if previous else set()
                result, model_id, usage = _train(call, context, tracking, training, facts, run, before, hashes)
                logged = [logged for logged in runs.logged_models(client, run) if logged.model_id not in before]
                model = only_model.only_model(context, logged, resource.address, model_id)
                if before or model_id:
                    client.set_tag(run_id, runs.TRAINED, model.model_id)
            if attempt or STUDY_NAME in ((result and result.metadata) or {}):
                hashes |= stored_hashes(artifact_store(run.info.artifact_uri, resource.address), hashes)
            mlflow.flush_async_logging()
            record = _at_end(client, record, hashes)
            sha256 = only_model.seal(client, model)
            run = client.get_run(run_id)
            try:
                version = register(
                    client,
                    training.registered_model_name,
                    model,
                    run,
                    record,
                    facts.datasets,
                    sha256=sha256,
                    is_retry=attempt > 0,
                )
            except Exception:
                with suppress(mlflow.MlflowException, OSError):
                    client.set_tag(run_id, runs.TRAINED, model.model_id)  # the next attempt need not train
                raise

        metadata, record = present_run(resource, run, record)
        version_url = resource.version_url(version.name, version.version)
    result = result or dg.MaterializeResult()
    above = {
        **metadata,
        **link(VERSION_URL, version_url),
        **table("mlflow/code_not_kept", not_kept(facts.code)),
        **usage,
        **(result.metadata or {}),
    }
    return dg.MaterializeResult(
        metadata=version.to_metadata(record.to_metadata(above)),
        check_results=result.check_results,
        tags=result.tags,
        data_version=dg.DataVersion(f"{version.name}/{version.version}"),
    )


def _train(
    call: Callable[[], Any],
    context: dg.AssetExecutionContext,
    tracking: Tracking,
    training: Training,
    facts: RunFacts,
    run: Run,
    models_before: Collection[str],
    hashes: dict[str, str],
) -> tuple[dg.MaterializeResult | None, str, dict[str, float]]:
    """The function's result, the id of the model that it returned, and metadata of its time and resources."""
    client, began = tracking.client, time.monotonic()
    watch = watched(client, run.info.run_id) if training.system_metrics else nullcontext(dict)
    refuse_second = partial(only_model.refuse_second, tracking, run, models_before)
    with (
        watch as usage,
        nullcontext() if training.seed is None else repeatable(training.seed, deterministic=training.deterministic),
        delivered_outside_of_databases(),
        upstream.settings_restored(),
        upstream.requirements_from(requirements.of_stored),
        nullcontext() if training.several_models else upstream.before_each_model(refuse_second),
        watched_reads() as reads,
    ):
        result, model_id = _call(call)
        metadata = {"mlflow/training_seconds": round(time.monotonic() - began, 3)}
        changeable = switches()
    if training.several_models and not model_id:
        raise TrainingRunError(
            "with several_models, the training function returns the model that becomes the version: `return info`, "
            "where info = log_model(…)."
        )
    if any(facts.system.get(name, {}) != value for name, value in changeable.items()):
        store = artifact_store(run.info.artifact_uri, tracking.resource.address)
        hashes[SYSTEM] = log_json(store, SYSTEM, {**facts.system, **changeable})
    _log_reads(context, tracking, facts, run, reads, hashes)
    return result, model_id, {**metadata, **usage()}


def _log_reads(
    context: dg.AssetExecutionContext,
    tracking: Tracking,
    facts: RunFacts,
    run: Run,
    reads: Reads,
    hashes: dict[str, str],
) -> None:
    """Keep the reads of the training that nothing versions, and warn of the first of them."""
    root = context.instance.root_directory
    artifacts = Path(str(run.info.artifact_uri).removeprefix("file://"))  # <place of the experiment>/<run>/artifacts
    # With the models of other runs, such as the trials of a sweep. A rerun has another place, and sees who reads them.
    mlflows_own = [sqlite_file(tracking.resource.uri), artifacts.parents[1] if artifacts.is_absolute() else None]
    paths = [*map(str, filter(None, mlflows_own)), *(os.path.join(root, name) for name in _DAGSTERS_OWN)]
    if read := unversioned(reads, facts.code, facts.inputs, paths):
        for file in [*read.get("files", ()), *read.get("addresses", ())][:_FIGURES]:
            context.log.warning(
                f"The training read {file}, which no commit and no recorded input versions. A rerun would read "
                "whatever is there then: make it an input asset whose IO manager keeps versions."
            )
        # The client would ask the server for the run once more.
        hashes[READS] = log_json(artifact_store(run.info.artifact_uri, tracking.resource.address), READS, read)


def _at_end(client: MlflowClient, record: TrainingRun, hashes: Mapping[str, str]) -> TrainingRun:
    """The record with the hash of all files that a rerun will read; the run gets a tag of it, and one of the time.

    The hash travels in records, and in Dagster's event log, apart from the files: a change of these is noticed.
    """
    record = dataclasses.replace(record, files_hash=files_hash(hashes))
    tags = {runs.UNTIL: str(int(time.time() * 1000)), runs.RECORD: runs.record_tag(record)}
    client.log_batch(record.run_id, tags=[entities.RunTag(name, value) for name, value in tags.items()])
    return record


def _trained_before(
    client: MlflowClient,
    context: dg.AssetExecutionContext,
    previous: Run | None,
    training: Training,
    facts: RunFacts,
) -> "LoggedModel | None":
    """The model of the `previous` attempt, if it only has to be recorded.

    An asset with its own checks must run to evaluate them.
    """
    same = previous is not None and previous.data.tags.get(runs.INPUTS) == facts.tags[runs.INPUTS]
    if previous is None or not same or context.op_execution_context.selected_asset_check_keys:
        return None
    model_id = previous.data.tags.get(runs.TRAINED)
    if model_id is None:
        versions = client.search_model_versions(f"run_id='{previous.info.run_id}'")
        model_id = next((logged_model_id(v) for v in versions if v.name == training.registered_model_name), None)
    return client.get_logged_model(model_id) if model_id else None


def _call(call: Callable[[], Any]) -> tuple[dg.MaterializeResult | None, str]:
    """The result of the function for Dagster, and the id of the model that it returned, if any."""
    try:
        result = call()
    except mlflow.MlflowException as error:
        if "skops_trusted_types" not in str(error):
            raise
        raise TrainingRunError(
            f"MLflow stores scikit-learn models with skops, which refuses unknown types: {str(error)[:300]}\n"
            'Give log_model skops_trusted_types=[…] with the types named above, or serialization_format="cloudpickle".'
        ) from error
    except Exception as error:
        if type(error) is not Exception or "is already active" not in str(error):  # MLflow has no error class for it
            raise
        raise TrainingRunError(
            "the MLflow run of this step is open when the training function starts. Leave out mlflow.start_run(), or "
            "write mlflow.start_run(nested=True) for a nested run; log the model in the open run."
        ) from error
    if result is None:
        return None, ""
    if isinstance(model_id := getattr(result, "model_id", None), str):  # MLflow's ModelInfo or LoggedModel
        return None, model_id
    if not isinstance(result, dg.MaterializeResult):
        raise TrainingRunError(
            f"the training function returned {type(result).__name__}. Log the model with mlflow.<flavor>.log_model, "
            "and return nothing, what log_model returned, or a dagster.MaterializeResult."
        )
    if result.data_version is not None or result.value is not dg.MaterializeResult().value:
        raise TrainingRunError(
            "the training function returned a MaterializeResult with a value or a data version. Leave both out: the "
            "asset is a model version, downstream assets load it from MLflow, and its data version names it."
        )
    return result, ""


def present_run(resource: MlflowResource, run: Run, record: TrainingRun) -> tuple[dict[str, Any], TrainingRun]:
    """Metadata of a run, and its record with the metrics filled in."""
    metrics = finite_metrics(run)
    metadata: dict[str, Any] = {f"{METRIC}/{name}": value for name, value in metrics.items()}
    metadata |= table("mlflow/params", [{"param": name, "value": v} for name, v in sorted(run.data.params.items())])
    metadata |= link(RUN_URL, resource.run_url(run.info.experiment_id, run.info.run_id))
    if figures := gallery(_figures(resource, run)):
        metadata["mlflow/figures"] = figures
    return metadata, dataclasses.replace(record, metrics=metrics, params=dict(sorted(run.data.params.items())))


def _figures(resource: MlflowResource, run: Run) -> list[Picture]:
    """The first small PNG files among the run's artifacts."""
    try:
        with environment(**request_limits(retries=3)), tempfile.TemporaryDirectory() as folder:
            store = artifact_store(run.info.artifact_uri, resource.address)
            top = store.list_artifacts()
            folders = [file.path for file in top if file.is_dir and file.path not in (CODE, FOLDER)][:_FOLDERS]
            below = [file for path in folders for file in store.list_artifacts(path)]
            small = [f.path for f in [*top, *below] if f.path.endswith(".png") and 0 < (f.file_size or 0) <= MOST_BYTES]
            return [drawn(path, partial(_content, store, path, folder), tool="mlflow") for path in small[:_FIGURES]]
    except Exception as error:  # noqa: BLE001 - whatever a store raises, no training fails for a picture
        return [failed(f"What MLflow run {run.info.run_id} logged", error)]


def _content(store: ArtifactRepository, path: str, folder: str) -> bytes:
    return Path(store.download_artifacts(path, folder)).read_bytes()
