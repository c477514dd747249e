"""Model versions in MLflow's registry, and their records."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping

from dagster_mlops.core.bounds import as_logged
from dagster_mlops.core.notes import read_note
from dagster_mlops.mlflow.lazy import LoggedModel, MlflowClient, MlflowModelVersion, Run
from dagster_mlops.mlflow.runs.lookup import RECORD
from dagster_mlops.mlflow.server.client import EXISTS, or_none, refused
from dagster_mlops.provenance import ModelVersion, Record, Ref, TrainingRun

_NUMBER = re.compile(r"[0-9]{1,9}")
# The version in a stored record, which is written before the registry assigns a number from 1. Readers fill it in.
_UNNUMBERED = "0"
# Facts of a version that are those of its training run.
_SHARED = ("tracking_uri", "dagster_run_id", "dagster_asset", "dagster_partition")
_VERSIONS = "mlflow.modelVersions"  # MLflow's tag of a logged model: a JSON list of its versions


def register(
    client: MlflowClient,
    name: str,
    model: LoggedModel,
    run: Run,
    record: TrainingRun,
    datasets: Mapping[str, str],
    *,
    sha256: str,
    is_retry: bool,
) -> ModelVersion:
    """Make the run's model, whose files have this hash, a version of the registered model `name`, unless it is one.

    The function may have made it one with ``log_model(…, registered_model_name=…)``, and so may an earlier attempt.
    """
    run_id = run.info.run_id
    new_record = ModelVersion(
        name=name,
        version=_UNNUMBERED,
        run_id=run_id,
        datasets=dict(datasets),
        metrics=finite_metrics(run),
        sha256=sha256,
        upstream=(record.ref,),
        **{fact: getattr(record, fact) for fact in _SHARED},
    )
    by_hand = name in _names_of_versions(model)
    versions = [
        version
        for version in (client.search_model_versions(f"run_id='{run_id}'") if is_retry or by_hand else ())
        if version.name == name and logged_model_id(version) == model.model_id
    ]
    version = versions[0] if versions else create_version(client, name, model, run_id, new_record)
    if versions and RECORD not in version.tags:
        client.set_model_version_tag(name, str(version.version), RECORD, new_record.to_json())
    return dataclasses.replace(new_record, version=str(version.version))  # an int from sqlite, a str from a server


def _names_of_versions(model: LoggedModel) -> list[str]:
    def names(text: str) -> list[str]:
        return [version["name"] for version in json.loads(text)]

    return read_note(model.tags.get(_VERSIONS), names, of=f"tag {_VERSIONS} of model {model.model_id}", default=[])


def logged_model_id(version: MlflowModelVersion) -> str:
    """The id of a version's logged model; empty when the version points to plain files."""
    # From a sqlite store, and in search results, it is only in the source.
    source = str(version.source)
    return version.model_id or (source.removeprefix("models:/") if source.startswith("models:/m-") else "")


def find(client: MlflowClient, name: str, which: str) -> "MlflowModelVersion | None":
    """A version by its number, its ``@alias``, or the newest one when `which` is empty."""
    if which.startswith("@"):
        return or_none(client.get_model_version_by_alias, name, which[1:])
    if which:  # a database refuses a number that is too large for its column, in words of its own
        return or_none(client.get_model_version, name, which) if _NUMBER.fullmatch(which) else None
    versions: list[MlflowModelVersion] = list(client.search_model_versions(f"name='{name}'"))
    return max(versions, key=lambda version: int(version.version), default=None)


def create_version(
    client: MlflowClient,
    name: str,
    model: LoggedModel,
    run_id: str,
    record: ModelVersion,
    tags: Mapping[str, str] | None = None,
) -> "MlflowModelVersion":
    """Create a version with its record and other tags. MLflow's own `register_model` takes six requests."""

    def create() -> "MlflowModelVersion":
        source, all_tags = f"models:/{model.model_id}", {RECORD: record.to_json(), **(tags or {})}
        return client.create_model_version(name, source, run_id, tags=all_tags, model_id=model.model_id)

    version = or_none(create)
    if version is None:
        refused(EXISTS, lambda: client.create_registered_model(name))  # another process may have created it
        version = create()
    # MLflow's UI links the model to its versions by this tag.
    link = json.dumps([{"name": version.name, "version": version.version}])
    client.set_logged_model_tags(model.model_id, {_VERSIONS: link})
    return version


def finite_metrics(run: Run) -> dict[str, float]:
    """A run's metrics as plain floats. JSON, and with it a record, has no NaN and no infinity."""
    metrics = {name: as_logged(float(value)) for name, value in sorted(run.data.metrics.items())}
    return {name: value for name, value in metrics.items() if math.isfinite(value) and not name.startswith("system/")}


def version_record(version: MlflowModelVersion, tracking_uri: str) -> ModelVersion:
    """The record of a version with its current aliases; a bare one for a version that was registered by other means.

    Its place, and that of its run, is where it was read: anyone may set the tag, and would name another server, which
    a trace then asks with the caller's token.

    Raises:
        ProvenanceError: the version's record cannot be read.
    """
    text = version.tags.get(RECORD)
    record = Record.from_json(text) if text else None
    if not isinstance(record, ModelVersion):
        return bare_record(version, tracking_uri)
    if record.version == _UNNUMBERED:
        record = dataclasses.replace(record, version=str(version.version))
    at = {"tracking_uri": tracking_uri} if tracking_uri else {}
    upstream = tuple(
        dataclasses.replace(ref, at=tracking_uri) if tracking_uri and ref.role == TrainingRun.role else ref
        for ref in record.upstream
    )
    return dataclasses.replace(record, of=None, upstream=upstream, aliases=tuple(sorted(version.aliases)), **at)


def bare_record(version: MlflowModelVersion, tracking_uri: str) -> ModelVersion:
    """The record of a version as the registry alone gives it."""
    return ModelVersion(
        name=version.name,
        version=str(version.version),
        run_id=version.run_id or "",
        tracking_uri=tracking_uri,
        aliases=tuple(sorted(version.aliases)),
        upstream=(Ref(TrainingRun.tool, TrainingRun.role, version.run_id, at=tracking_uri),) if version.run_id else (),
    )
