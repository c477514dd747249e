"""Lineage's read-only access to training runs and model versions in MLflow."""

import dataclasses
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dagster_mlops.core.environment import environment
from dagster_mlops.core.extras import extra
from dagster_mlops.core.model_digest import changed, model_digest
from dagster_mlops.core.model_loading import DIGEST, REGISTERED_DIGEST
from dagster_mlops.core.model_versions import parse_version
from dagster_mlops.core.run_files import LATER_METRICS
from dagster_mlops.core.terminal import error_line
from dagster_mlops.errors import DagsterMlopsError, ProvenanceError, TrackingError
from dagster_mlops.mlflow.lazy import LoggedModel, MlflowClient, Run, mlflow
from dagster_mlops.mlflow.registry.versions import find, finite_metrics, logged_model_id, version_record
from dagster_mlops.mlflow.runs.lookup import RECORD, TRAINED, UNTIL, logged_models
from dagster_mlops.mlflow.server.client import artifact, or_none, request_limits
from dagster_mlops.mlflow.server.connection import connect, is_file_store, sqlite_file
from dagster_mlops.provenance import Record, Ref, TrainingRun, mask_credentials
from dagster_mlops.provenance.answers import Accessible, Answer, Deleted, Faulty, Inaccessible, Unknown
from dagster_mlops.tools import answer_within, time_limit

if TYPE_CHECKING:
    from dagster_mlops.mlflow.registry.models import MlflowModels

_TIMEOUT = 9.0  # seconds
_QUIET = {**request_limits(timeout=10, retries=1), "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}


class MlflowTool:
    """Looks up a training run (``run id``) or model version (``name/version``, ``name@alias``) where the ref says.

    A tracking URI with a password is masked in a ref; then ``MLFLOW_TRACKING_URI`` must hold the full URI.
    """

    rerun = Path(__file__).parent / "training" / "_rerun_script.py"

    def resolve(self, ref: Ref) -> Answer:
        """The answer, within ten seconds or the limit of the trace, from the record on the run or version."""
        if ref.role not in ("training_run", "model_version"):
            return Faulty(f"MLflow keeps training runs and model versions, not {ref.role}")
        # The import takes seconds on a cold machine, which must not count as the server's.
        uri = _uri(ref)
        if isinstance(uri, Inaccessible):
            return uri
        extra("mlflow")
        try:
            with environment(**request_limits(timeout=_per_request(), retries=1)):
                answer = answer_within(timeout := time_limit(_TIMEOUT), lambda: _answer(ref, uri))
        except ProvenanceError as error:
            return Faulty(str(error))
        except (DagsterMlopsError, OSError, mlflow.MlflowException) as error:
            return Inaccessible(mask_credentials(str(error)))
        return answer or Inaccessible(f"{ref.at} did not answer within {timeout:g} s")

    def files(self, ref: Ref, folder: str) -> dict[str, bytes]:
        """The artifacts directly in `folder` of a training run, by name; none when the run has no such folder.

        Raises:
            TrackingError: MLflow cannot be reached, or an artifact that it lists is missing.
        """
        with _connected(ref, f"the files in {folder!r}") as (client, _):
            paths = [file.path for file in client.list_artifacts(ref.id, folder) if not file.is_dir]
            return {Path(path).name: artifact(client, ref.id, path) for path in paths}

    def find_model(self, ref: Ref) -> Inaccessible | Deleted | Faulty | None:
        """The reason why a training run's one model cannot be used; None when its files are there, and unchanged."""
        try:
            with _connected(ref, "the model") as (client, uri), tempfile.TemporaryDirectory() as scratch:
                model = _model_of(client, ref)
                if isinstance(model, Faulty):
                    return model
                source = str(model.artifact_location)
                if elsewhere := _on_another_server(source, uri):
                    return elsewhere
                if not mlflow.artifacts.list_artifacts(artifact_uri=source, tracking_uri=uri):
                    return Deleted(f"the model's files are gone from {mask_credentials(source)}")
                if not {DIGEST, REGISTERED_DIGEST} & model.tags.keys():
                    return None
                # Without a place for a copy, MLflow returns the folder of a local store itself.
                place = None if urlsplit(source).scheme in ("", "file") else scratch
                download = mlflow.artifacts.download_artifacts
                folder = Path(download(artifact_uri=source, dst_path=place, tracking_uri=uri))  # pyright: ignore[reportArgumentType]
                return _written_over(model, folder)
        except TrackingError as error:
            return Inaccessible(str(error))

    def fetch_model(self, ref: Ref, folder: Path) -> Path:
        """Copy the model that a training run has logged into `folder`, and return its path.

        Raises:
            TrackingError: MLflow cannot be reached, the run has logged none or several, or its files are gone or were
                changed.
        """
        with _connected(ref, "the model") as (client, uri):
            model = _model_of(client, ref)
            if isinstance(model, Faulty):
                raise TrackingError(model.reason)
            download, source = mlflow.artifacts.download_artifacts, str(model.artifact_location)
            if elsewhere := _on_another_server(source, uri):
                raise TrackingError(elsewhere.reason)
            local = Path(download(artifact_uri=source, dst_path=str(folder), tracking_uri=uri))
            if problem := _written_over(model, local):
                raise TrackingError(problem.reason)
            return local

    def has_registry(self, at: str) -> bool:
        """True for a URI, of a server or a database."""
        return "://" in at

    @contextmanager
    def models_at(self, at: str) -> "Iterator[MlflowModels]":
        """The registry of a server or database that is there.

        Raises:
            TrackingError: it is not, cannot be reached, or refuses.
        """
        from dagster_mlops.mlflow.resource import MlflowResource

        uri = at if mask_credentials(at) != at else _uri(Ref("mlflow", "model_version", "", at=at))
        if isinstance(uri, Inaccessible):
            raise TrackingError(uri.reason)
        try:
            with MlflowResource(tracking_uri=uri, request_timeout=30, request_retries=1).models() as models:
                yield models
        except mlflow.MlflowException as error:
            raise TrackingError(f"MLflow at {mask_credentials(at)} refuses: {error_line(error)}") from error


@contextmanager
def _connected(ref: Ref, subject: str) -> "Iterator[tuple[MlflowClient, str]]":
    """A client and its URI, to read the `subject` of a run.

    Raises:
        TrackingError: MLflow cannot be reached, or cannot give the subject.
    """
    uri = _uri(ref)
    if isinstance(uri, Inaccessible):
        raise TrackingError(uri.reason)
    with environment(**_QUIET):
        try:
            yield connect(uri, timeout=3), uri
        except (OSError, mlflow.MlflowException) as error:
            raise TrackingError(f"{subject} of run {ref.id} cannot be read: {mask_credentials(str(error))}") from error


def _on_another_server(source: str, uri: str) -> Inaccessible | None:
    """The finding that a model's files are on another server, to which MLflow would send the token for this one."""
    place, server = urlsplit(source), urlsplit(uri)
    hosts = (place.hostname, place.port), (server.hostname, server.port)
    if place.scheme not in ("http", "https", "mlflow-artifacts") or not place.netloc or hosts[0] == hosts[1]:
        return None
    return Inaccessible(
        f"the model's files are at {mask_credentials(source)}, another server than {mask_credentials(uri)}: it is not "
        "asked, because MLflow would send it the credentials for the tracking server."
    )


def _written_over(model: LoggedModel, folder: Path) -> Faulty | None:
    """The finding that the files of a model are not those that were stored."""
    stored = model.tags.get(DIGEST) or model.tags.get(REGISTERED_DIGEST, "")
    problem = changed(model_digest(folder), stored)
    return Faulty(f"{mask_credentials(str(model.artifact_location))}: {problem}") if problem else None


def _model_of(client: MlflowClient, ref: Ref) -> LoggedModel | Faulty:
    """A run's one model."""
    run = client.get_run(ref.id)
    model_id = run.data.tags.get(TRAINED)
    models = [client.get_logged_model(model_id)] if model_id else logged_models(client, run)
    ready = [model for model in models if str(model.status) == "READY"]
    if len(ready) != 1:
        return Faulty(f"run {ref.id} has logged {len(ready)} models; one is expected.")
    return ready[0]


def _uri(ref: Ref) -> str | Inaccessible:
    """The tracking URI with its credentials, of a place where MLflow will not create anything."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "") if "***@" in ref.at else ref.at
    if mask_credentials(uri) != ref.at:
        return Inaccessible(
            f"the password of {ref.at} is not recorded. Set MLFLOW_TRACKING_URI to this address with its password."
        )
    if is_file_store(uri):
        return Inaccessible(f"{uri!r} is a folder, which MLflow no longer serves")
    file = sqlite_file(uri)
    if file and not file.is_file():
        return Inaccessible(f"the database file {file} is not on this machine")
    if file and not _is_mlflow_database(file):
        return Inaccessible(f"{file} is not an MLflow database")
    return uri


def _is_mlflow_database(file: Path) -> bool:
    # MLflow would create its tables in an empty or foreign database.
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=2)) as database:
            tables = {name for (name,) in database.execute("select name from sqlite_master where type = 'table'")}
    except sqlite3.Error:
        return False
    return {"runs", "model_versions", "alembic_version"} <= tables


def _per_request() -> int:
    """Seconds: an answer takes a few requests, one after the other."""
    return max(1, int(time_limit(_TIMEOUT) / 3))


def _answer(ref: Ref, uri: str) -> Answer:
    client = connect(uri, timeout=_per_request())
    if ref.role == "training_run":
        return _training_run(client, ref)
    return _model_version(client, ref, uri)


def _training_run(client: MlflowClient, ref: Ref) -> Answer:
    run = or_none(client.get_run, ref.id)
    if run is None:
        return Deleted(f"MLflow at {ref.at} has no run {ref.id}: it was purged")
    text = run.data.tags.get(RECORD)
    deleted = run.info.lifecycle_stage == "deleted"
    if text is None:
        reason = f"run {ref.id} has no record (tag {RECORD}): it was not made by a training_asset"
        return Deleted(f"run {ref.id} was deleted in MLflow") if deleted else Unknown(reason)
    record = Record.from_json(text)
    if not isinstance(record, TrainingRun) or record.run_id != ref.id:
        return Faulty(f"run {ref.id} has the record of something else: {record.ref}", record)
    facts: dict[str, Any] = {"metrics": finite_metrics(run), "params": dict(sorted(run.data.params.items()))}
    if later := _later_metrics(client, run):
        facts["tool_facts"] = {**record.tool_facts, LATER_METRICS: later}
    record = dataclasses.replace(record, of=None, tracking_uri=ref.at or record.tracking_uri, **facts)
    if deleted:
        return Deleted(
            f"run {ref.id} was deleted in MLflow; `mlflow runs restore` restores it until it is purged", record
        )
    if run.info.status == "FINISHED" and not client.list_artifacts(ref.id):
        return Faulty(
            f"the artifacts of run {ref.id} are gone from {mask_credentials(str(run.info.artifact_uri))}", record
        )
    return Accessible(record)


def _later_metrics(client: MlflowClient, run: Run) -> list[str]:
    """The metrics that were logged only after the training."""
    tag = run.data.tags.get(UNTIL, "")
    if not tag.isdecimal():
        return []
    until = int(tag)
    late = [metric.key for metric in run.to_proto().data.metrics if metric.timestamp > until]
    return [name for name in late if all(m.timestamp > until for m in client.get_metric_history(run.info.run_id, name))]


def _model_version(client: MlflowClient, ref: Ref, uri: str) -> Answer:
    name, which = parse_version(ref.id)
    if not name:
        return Faulty(f"{ref.id!r} does not name a model version: 'name/version', 'name@alias' or 'name' is expected")
    version = find(client, name, which)
    if version is None:
        missing = f"version {which} of {name!r}" if which else f"model {name!r}"
        missing = f"model {name!r} with an alias {which[1:]!r}" if which.startswith("@") else missing
        return Deleted(f"MLflow at {ref.at} has no {missing}: it was deleted")
    number = str(version.version)
    record = version_record(version, ref.at)
    if RECORD not in version.tags:
        return Unknown(
            f"version {number} of {name!r} has no record (tag {RECORD}): it was not made by a training_asset", record
        )
    if record.ref.id != f"{name}/{number}":
        return Faulty(f"version {number} of {name!r} has the record of something else: {record.ref}", record)
    source, model_id = str(version.source), logged_model_id(version)
    if model_id:
        model = or_none(client.get_logged_model, model_id)
        if model is None:
            return Faulty(f"version {number} of {name!r} points to {source}, which was deleted in MLflow", record)
        source = str(model.artifact_location)
    if elsewhere := _on_another_server(source, uri):
        return dataclasses.replace(elsewhere, record=record)
    if not mlflow.artifacts.list_artifacts(artifact_uri=source, tracking_uri=uri):
        return Faulty(
            f"the model files of version {number} of {name!r} are gone from {mask_credentials(source)}", record
        )
    return Accessible(record)
