"""MLflow's model registry for the verbs: versions, aliases, notes (tags), files (artifacts of the run), evaluations.

An evaluation is a child run of the training run, linked to the model and the rows.
"""

import dataclasses
import hashlib
import json
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import dagster as dg

from dagster_mlops.core import markdown
from dagster_mlops.core.bounds import as_logged
from dagster_mlops.core.model_loading import DIGEST, REGISTERED_DIGEST, LoadedModel, load_stored
from dagster_mlops.core.model_versions import parse_version
from dagster_mlops.core.notes import read_note
from dagster_mlops.core.run_files import CODE, LICENCES
from dagster_mlops.core.spreadsheet import csv_text
from dagster_mlops.errors import ModelVersionError
from dagster_mlops.evaluation.measure import Estimate, Evaluation
from dagster_mlops.evaluation.model_card import EVALUATION, Pngs, Training, shortened
from dagster_mlops.evaluation.ui_metadata import slice_facts
from dagster_mlops.mlflow import upstream
from dagster_mlops.mlflow.lazy import MlflowClient, MlflowModelVersion, Run, entities, mlflow
from dagster_mlops.mlflow.registry import copies, history
from dagster_mlops.mlflow.registry.turns import turn
from dagster_mlops.mlflow.registry.versions import bare_record, find, logged_model_id, version_record
from dagster_mlops.mlflow.runs import lookup as runs
from dagster_mlops.mlflow.runs.lookup import RECORD
from dagster_mlops.mlflow.server.client import artifact, or_none
from dagster_mlops.provenance import NAMESPACE, ModelVersion, Record, TrainingRun, mask_credentials
from dagster_mlops.tools import ModelCopy, StoredModel

if TYPE_CHECKING:
    from dagster_mlops.mlflow.resource import MlflowResource

EVALUATED = f"{NAMESPACE}.evaluated"
"""Tag of an evaluation's run: the evaluated version, as name/version."""
CARD = f"{NAMESPACE}.model_card"
"""Tag of a version: the hash of its model card."""
CARD_FILE, FOLDER = "model_card.md", "evaluation"
_DESCRIPTION_LIMIT = 5000  # characters of a version's description in MLflow's database
_LICENCES = f"{CODE}/{LICENCES}"


class MlflowModels:
    """The registry of an MLflow server that a client is connected to."""

    tool = "mlflow"

    def __init__(self, resource: "MlflowResource", client: MlflowClient) -> None:
        self.resource, self.client = resource, client

    def version(self, name: str, which: str = "") -> ModelVersion:
        version = self._entity(name, which)
        place = mask_credentials(self.resource.uri)
        record = read_note(
            version.tags.get(RECORD),
            lambda _: version_record(version, place),
            of=f"tag {RECORD} of version {version.version} of {version.name!r}",
            default=bare_record(version, place),
        )
        # MLflow copies tags, and with them the record, when a version is copied to another model.
        return dataclasses.replace(record, name=version.name, version=str(version.version))

    def metrics(self, version: ModelVersion) -> Mapping[str, float]:
        run = or_none(self.client.get_run, version.run_id)
        metrics = run.data.metrics if run else version.metrics
        return {name: as_logged(value) for name, value in metrics.items()}

    def move(self, name: str, alias: str, to: str, *, expected: str) -> bool:
        # MLflow cannot compare and set. Promoters take turns; by hand, or with another tool, one has milliseconds.
        if self._holder(name, alias) != expected:
            return False
        upstream.model_registry(self.client).set_registered_model_alias(name, alias, to)
        return self._holder(name, alias) == to

    def set_alias(self, name: str, alias: str, to: str) -> None:
        if to:
            upstream.model_registry(self.client).set_registered_model_alias(name, alias, to)
        else:
            upstream.model_registry(self.client).delete_registered_model_alias(name, alias)

    def turn(self, name: str) -> AbstractContextManager[None]:
        return turn(self.client, name)

    def history(self, name: str) -> Mapping[int, str]:
        return history.entries(self.client, name)

    def append(self, name: str, number: int, entry: str) -> bool:
        return history.append(self.client, name, number, entry)

    def head(self, name: str) -> str:
        return history.head(self.client, name)

    def keep_head(self, name: str, head: str) -> None:
        history.keep_head(self.client, name, head)

    def renew_history(self, name: str) -> None:
        history.renew(self.client, name)

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
            return self.resource.stored(local, version, tags.get(DIGEST) or tags.get(REGISTERED_DIGEST, ""))
        except (mlflow.MlflowException, OSError) as error:
            raise ModelVersionError(
                f"model version {name} cannot be read from {mask_credentials(self.resource.uri)}: "
                f"{mask_credentials(str(error))[:500]}"
            ) from error

    def take(self, copy: ModelCopy) -> ModelVersion:
        return copies.take(self, copy)

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
            purged = markdown.formatted("MLflow run {} was purged.", markdown.code(version.run_id))
            origin = purged if version.run_id else markdown.Markdown("No run made it.")
            return Training(registered=registered, origin=origin)
        url = self.resource.run_url(run.info.experiment_id, run.info.run_id)
        link = markdown.link(run.info.run_id, url) if url else markdown.code(run.info.run_id)
        deleted = ", deleted" * (run.info.lifecycle_stage == "deleted")
        tag = f"tag {RECORD} of run {version.run_id}"
        record = read_note(run.data.tags.get(RECORD), Record.from_json, of=tag, default=None)
        return Training(
            registered=registered,
            origin=markdown.formatted("MLflow run: {}{}", link, deleted),
            record=record if isinstance(record, TrainingRun) else None,
            params=run.data.params,
            container=run.data.tags.get(f"{NAMESPACE}.container", ""),
            gpu=run.data.tags.get(f"{NAMESPACE}.gpu", ""),
            licences=self._licences(run),
        )

    def keep_evaluation(
        self, context: dg.AssetExecutionContext, version: ModelVersion, evaluation: Evaluation, pngs: Pngs, card: str
    ) -> tuple[str, str]:
        """Keep an evaluation as a child of the training run, and its card as the description of the version.

        It is written once: the same result again is the existing run, and one that was killed is completed. The
        training run stays as it finished, since `reproduce` compares its metrics. In a run of their own, with the
        logged model and the rows as inputs, the metrics show on the model's page beside those of other rows.
        """
        client, entity = self.client, self._entity(version.name, version.version)
        training = or_none(client.get_run, version.run_id)
        experiment = training.info.experiment_id if training else self.resource.experiment_id(client)
        identity = {EVALUATION: evaluation.digest, EVALUATED: f"{evaluation.model}/{evaluation.version}"}
        run = next(runs.search(client, [experiment], identity), None)
        if run is None or run.info.status != "FINISHED":
            # For the sensor: this Dagster run may leave an MLflow run behind.
            context.instance.add_run_tags(context.run.run_id, {runs.TRAINING_TAG: "true"})
            asset = {f"{NAMESPACE}.dagster_asset": context.asset_key.to_user_string()}
            parent = {runs.PARENT: training.info.run_id} if training else {}
            run = run or client.create_run(
                experiment,
                run_name=f"evaluation of {evaluation.model} {evaluation.version}",
                tags={**identity, runs.OWNER: runs.owner(), **asset, **parent},
            )
            client.set_tag(run.info.run_id, runs.DAGSTER_RUN, context.run.run_id)
            try:
                _write(client, run.info.run_id, evaluation, logged_model_id(entity), pngs)
            except BaseException as error:
                status = "FAILED" if isinstance(error, Exception) else "KILLED"
                runs.close_run(client, run, status, f"{type(error).__name__}: {error}")
                raise
            if runs.CLOSED in run.data.tags:  # by a failed attempt
                client.delete_tag(run.info.run_id, runs.CLOSED)
            client.set_terminated(run.info.run_id, "FINISHED")
        attach_card(client, entity, card, (training or run).info.run_id)
        return run.info.run_id, self.resource.run_url(run.info.experiment_id, run.info.run_id)

    def _licences(self, run: Run) -> dict[str, str]:
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


def attach_card(client: MlflowClient, version: MlflowModelVersion, card: str, run_id: str) -> None:
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
    runs.log_inputs(client, run_id, [rows], [entities.LoggedModelInput(model_id)] if model_id else [])
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
            Path(scratch, "slices.csv").write_text(csv_text(rows), newline="")
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


def load_version(
    resource: "MlflowResource",
    record: ModelVersion,
    *,
    pyfunc: bool = False,
    allow_pickle: bool = False,
    trust: Sequence[str] = (),
) -> LoadedModel:
    """The model of a version: the logged object, or MLflow's wrapper with `pyfunc`.

        loaded = load_version(mlflow, find_version(mlflow, "arrival_delay@champion"))
        loaded.model.predict(rows)

    `trust` names your packages or types that a skops file may contain, as for :func:`log_model`. What the resource
    allows is allowed here as well.

    Raises:
        ModelVersionError: the version or its files are gone, the files were changed, or their format may run code while
            it is loaded and `allow_pickle` is not set.
    """
    with resource.models() as models:
        return load_stored(
            lambda folder: models.fetch(record, folder), pyfunc=pyfunc, allow_pickle=allow_pickle, trust=trust
        )


def find_version(resource: "MlflowResource", name: str) -> ModelVersion:
    """The record of ``name@alias``, ``name/version``, or the newest version of ``name``.

    Raises:
        ModelVersionError: there is no such version.
    """
    return MlflowModels(resource, resource.client()).version(*parse_version(name))
