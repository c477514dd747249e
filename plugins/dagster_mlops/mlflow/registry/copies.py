"""Versions whose files came from another registry, or from another model of this one.

MLflow's own `copy_model_version` is not used: it works inside one server only, and there it makes a version that points
to the first one. It has no logged model, and so no hash, and breaks when the first one is deleted.
"""

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from dagster_mlops.core.model_digest import changed, model_digest
from dagster_mlops.core.model_loading import DIGEST
from dagster_mlops.errors import ModelVersionError
from dagster_mlops.mlflow.lazy import LoggedModel, Run, entities
from dagster_mlops.mlflow.registry.turns import turn
from dagster_mlops.mlflow.registry.versions import create_version
from dagster_mlops.mlflow.runs import lookup as runs
from dagster_mlops.mlflow.server.client import EXISTS, refused, stored_folder
from dagster_mlops.provenance import NAMESPACE, ModelVersion, mask_credentials
from dagster_mlops.tools import ModelCopy

if TYPE_CHECKING:
    from dagster_mlops.mlflow.registry.models import MlflowModels

COPY = f"{NAMESPACE}.copy"
"""Tag of a version that is a copy, and of its run: the hash of what it is a copy of."""


def take(models: "MlflowModels", new: ModelCopy) -> ModelVersion:
    """See :class:`dagster_mlops.tools.TakesModels`. Each step can be repeated; the version comes last, with its record.

    The copy has a run, which has the metrics of the training, its record and the files: evaluations and rules find them
    there, as those of a version that was trained here.
    """
    record, place = new.record, mask_credentials(models.resource.uri)
    [source] = record.upstream
    if (source.at, source.id.rpartition("/")[0]) == (place, record.name):
        raise ModelVersionError(f"{source.id} is a version of {record.name!r} in {place} already. Name another model.")
    identity = hashlib.sha256(json.dumps([source.to_dict(), record.sha256]).encode()).hexdigest()
    copy = _existing(models, record, identity)
    if copy is None:
        refused(EXISTS, lambda: models.client.create_registered_model(record.name))
        run = _run(models, new, identity)
        here = dataclasses.replace(record, run_id=run.info.run_id, tracking_uri=place)
        model = _stored(models, run, new.folder, record.sha256)
        _keep(models, here, new.files)
        with turn(models.client, record.name):
            copy = _existing(models, record, identity)
            if copy is None:  # another process may have been quicker
                version = create_version(models.client, record.name, model, here.run_id, here, {COPY: identity})
                return models.version(record.name, str(version.version))
    with tempfile.TemporaryDirectory(prefix="dagster-mlops-") as scratch:
        _verify(models.fetch(copy, Path(scratch)).folder, record.sha256, f"{copy.name}/{copy.version}")
    _keep(models, copy, new.files)
    return copy


def _existing(models: "MlflowModels", record: ModelVersion, identity: str) -> ModelVersion | None:
    """The version that is this copy by its tag and by its record; anyone may set a tag."""
    versions = models.client.search_model_versions(f"tags.`{COPY}` = '{identity}'")
    for version in sorted(versions, key=lambda version: int(version.version)):
        if version.name == record.name:
            copy = models.version(version.name, str(version.version))
            if (copy.upstream, copy.sha256) == (record.upstream, record.sha256):
                return copy
    return None


def _run(models: "MlflowModels", copy: ModelCopy, identity: str) -> Run:
    """The run of a copy: one that a killed process has left is continued."""
    client = models.client
    experiment = models.resource.experiment_id(client)
    run = next(runs.search(client, [experiment], {COPY: identity}), None)
    if run is None:
        record = {runs.RECORD: runs.record_tag(copy.training)} if copy.training else {}
        run = client.create_run(
            experiment, run_name=f"copy of {copy.record.upstream[0].id}", tags={COPY: identity, **record}
        )
    if missing := {name: value for name, value in copy.metrics.items() if name not in run.data.metrics}:
        start = run.info.start_time
        client.log_batch(run.info.run_id, metrics=[entities.Metric(*each, start, 0) for each in missing.items()])
    client.set_terminated(run.info.run_id, "FINISHED")
    return run


def _stored(models: "MlflowModels", run: Run, folder: Path, sha256: str) -> LoggedModel:
    """The logged model with the files, which are hashed where they lie now."""
    client, run_id = models.client, run.info.run_id
    ready = (each for each in runs.logged_models(client, run) if str(each.status) == "READY")
    model = next((each for each in ready if each.tags.get(DIGEST) == sha256), None)
    is_new = model is None
    if model is None:
        experiment = run.info.experiment_id
        model = client.create_logged_model(experiment, name="model", source_run_id=run_id, tags={DIGEST: sha256})
        (folder / "registered_model_meta").unlink(missing_ok=True)  # MLflow's, about the version in the other registry
        described = yaml.safe_load((folder / "MLmodel").read_text()) or {}
        ids = {"model_id": model.model_id, "run_id": run_id, "artifact_path": str(model.artifact_location)}
        described |= {name: value for name, value in ids.items() if name in described}
        (folder / "MLmodel").write_text(yaml.safe_dump(described, sort_keys=False, allow_unicode=True))
        client.log_model_artifacts(model.model_id, str(folder))
    with tempfile.TemporaryDirectory(prefix="dagster-mlops-") as scratch:
        stored = stored_folder(model.artifact_location, scratch, models.resource.address)
        _verify(stored, sha256, f"of run {run_id}")
    return client.finalize_logged_model(model.model_id, "READY") if is_new else model


def _verify(folder: Path, sha256: str, name: str) -> None:
    if problem := changed(model_digest(folder), sha256):
        raise ModelVersionError(f"model {name}: {problem} Delete it in MLflow, then copy it again.")


def _keep(models: "MlflowModels", version: ModelVersion, files: Mapping[str, bytes]) -> None:
    for path, content in files.items():
        try:
            is_there = models.read_file(version, path) == content
        except ModelVersionError:
            is_there = False
        if not is_there:
            models.write_file(version, path, content)
