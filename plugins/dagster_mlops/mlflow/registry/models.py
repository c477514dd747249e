"""MLflow's model registry for the verbs: versions, aliases, notes (tags), files (artifacts of the run)."""

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import dagster as dg

from dagster_mlops.core.model_loading import DIGEST, model_digest
from dagster_mlops.core.run_files import CODE, LICENCES
from dagster_mlops.errors import ModelVersionError
from dagster_mlops.evaluation.keeping import Pngs, Training
from dagster_mlops.evaluation.measure import Evaluation
from dagster_mlops.mlflow.lazy import MlflowClient, MlflowModelVersion, Run, mlflow
from dagster_mlops.mlflow.registry.evaluation_run import attach_card, log_evaluation
from dagster_mlops.mlflow.registry.versions import find, logged_model_id, version_record
from dagster_mlops.mlflow.runs.lookup import RECORD
from dagster_mlops.mlflow.server.client import artifact, or_none
from dagster_mlops.provenance import NAMESPACE, ModelVersion, Record, TrainingRun, mask_credentials
from dagster_mlops.tools import StoredModel

if TYPE_CHECKING:
    from dagster_mlops.mlflow.resource import MlflowResource

_LICENCES = f"{CODE}/{LICENCES}"


class MlflowModels:
    """The registry of an MLflow server that a client is connected to."""

    tool = "mlflow"

    def __init__(self, resource: "MlflowResource", client: "MlflowClient") -> None:
        self.resource, self.client = resource, client

    def version(self, name: str, which: str = "") -> ModelVersion:
        version = self._entity(name, which)
        record = version_record(version, mask_credentials(self.resource.uri))
        # MLflow copies tags, and with them the record, when a version is copied to another model.
        return dataclasses.replace(record, name=version.name, version=str(version.version))

    def metrics(self, version: ModelVersion) -> Mapping[str, float]:
        run = or_none(self.client.get_run, version.run_id)
        return run.data.metrics if run else version.metrics

    def move(self, name: str, alias: str, to: str, *, expected: str) -> bool:
        # MLflow cannot compare and set: check right before, so that a rival has milliseconds, and right after.
        if self._holder(name, alias) != expected:
            return False
        self.client.set_registered_model_alias(name, alias, to)
        return self._holder(name, alias) == to

    def notes(self, version: ModelVersion) -> Mapping[str, str]:
        return self._entity(version.name, version.version).tags

    def note(self, version: ModelVersion, key: str, text: str) -> None:
        self.client.set_model_version_tag(version.name, version.version, key, text)

    def fetch(self, version: ModelVersion, folder: Path) -> StoredModel:
        entity = self._entity(version.name, version.version)
        name, model_id = f"{version.name}/{version.version}", logged_model_id(entity)
        download = mlflow.artifacts.download_artifacts
        try:
            local = Path(download(artifact_uri=entity.source, dst_path=str(folder / "model")))
            tags = self.client.get_logged_model(model_id).tags if model_id else {}
            stored = StoredModel.read(local, version)
        except (mlflow.MlflowException, OSError) as error:
            raise ModelVersionError(
                f"model version {name} cannot be read from {mask_credentials(self.resource.uri)}: "
                f"{mask_credentials(str(error))[:500]}"
            ) from error
        digest = model_digest(local)
        if tags.get(DIGEST, digest) != digest:
            raise ModelVersionError(
                f"the files of model version {name} have the hash {digest[:16]}…, but {tags[DIGEST][:16]}… was "
                "stored: someone changed them. Nothing was loaded. Restore them, or train a new version."
            )
        return stored

    def url(self, version: ModelVersion) -> str:
        return self.resource.version_url(version.name, version.version)

    def write_file(self, version: ModelVersion, path: str, content: bytes) -> None:
        file = PurePosixPath(path)
        with tempfile.TemporaryDirectory(prefix="dagster-mlops-") as scratch:
            Path(scratch, file.name).write_bytes(content)
            self.client.log_artifact(version.run_id, str(Path(scratch, file.name)), str(file.parent))

    def read_file(self, version: ModelVersion, path: str) -> bytes:
        try:
            return artifact(self.client, version.run_id, path)
        except (OSError, mlflow.MlflowException) as error:
            raise ModelVersionError(
                f"artifact {path} of run {version.run_id}: {mask_credentials(str(error))[:300]}"
            ) from error

    def training(self, version: ModelVersion) -> Training:
        """The facts of a version and its training run, for its model card."""
        created = self._entity(version.name, version.version).creation_timestamp / 1000
        registered, run = datetime.fromtimestamp(created, tz=UTC), or_none(self.client.get_run, version.run_id)
        if run is None:
            origin = f"MLflow run `{version.run_id}` was purged." if version.run_id else "No run made it."
            return Training(registered=registered, origin=origin)
        url = self.resource.run_url(run.info.experiment_id, run.info.run_id)
        link = f"[{run.info.run_id}]({url})" if url else f"`{run.info.run_id}`"
        text = run.data.tags.get(RECORD)
        record = Record.from_json(text) if text else None
        return Training(
            registered=registered,
            origin=f"MLflow run: {link}{', deleted' * (run.info.lifecycle_stage == 'deleted')}",
            record=record if isinstance(record, TrainingRun) else None,
            params=run.data.params,
            container=run.data.tags.get(f"{NAMESPACE}.container", ""),
            gpu=run.data.tags.get(f"{NAMESPACE}.gpu", ""),
            licences=self._licences(run),
        )

    def keep_evaluation(
        self, context: dg.AssetExecutionContext, version: ModelVersion, evaluation: Evaluation, pngs: Pngs, card: str
    ) -> tuple[str, str]:
        """Keep an evaluation as a child of the training run, and its card as the description of the version."""
        entity, training = self._entity(version.name, version.version), or_none(self.client.get_run, version.run_id)
        experiment = training.info.experiment_id if training else self.resource.experiment_id(self.client)
        run = log_evaluation(self.client, context, evaluation, entity, training, experiment, pngs)
        attach_card(self.client, entity, card, (training or run).info.run_id)
        return run.info.run_id, self.resource.run_url(run.info.experiment_id, run.info.run_id)

    def _licences(self, run: "Run") -> dict[str, str]:
        if _LICENCES not in [file.path for file in self.client.list_artifacts(run.info.run_id, CODE)]:
            return {}
        return json.loads(artifact(self.client, run.info.run_id, _LICENCES))

    def _holder(self, name: str, alias: str) -> str:
        version = find(self.client, name, f"@{alias}")
        return str(version.version) if version else ""

    def _entity(self, name: str, which: str) -> "MlflowModelVersion":
        version = find(self.client, name, which)
        if version is None:
            missing = f"alias {which[1:]!r}" if which.startswith("@") else f"version {which}".strip()
            raise ModelVersionError(
                f"{name!r} has no {missing} in {mask_credentials(self.resource.uri)}: it was never there, or it was "
                "deleted after training. Train one, or name one as 'name@alias', 'name/version', or 'name' (newest)."
            )
        return version
