"""Loads a model version after saying what it is: which files, in which format, and whether loading may run code."""

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster_mlops.core.extras import extra
from dagster_mlops.errors import ModelVersionError
from dagster_mlops.mlflow.models.formats import StoredFormat, stored_format
from dagster_mlops.mlflow.models.log import DIGEST, model_digest
from dagster_mlops.mlflow.registry.versions import version_record
from dagster_mlops.mlflow.resource import MlflowResource
from dagster_mlops.mlflow.server.settings import environment
from dagster_mlops.provenance import ModelVersion, mask_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion as MlflowModelVersion

# In this order: a model of the first has the second as well, because it follows its interface.
_NATIVE = ("lightgbm", "xgboost", "catboost", "keras", "pytorch", "statsmodels", "sklearn")


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, and what it was loaded from."""

    model: Any
    record: ModelVersion
    format: StoredFormat
    sha256: str

    def to_metadata(self) -> dict[str, str]:
        """What was loaded, for people: version, format and hash."""
        return {
            "mlflow/loaded": f"{self.record.name}/{self.record.version}",
            "mlflow/format": str(self.format),
            "mlflow/sha256": self.sha256,
        }


def load_version(
    resource: MlflowResource,
    record: ModelVersion,
    *,
    pyfunc: bool = False,
    allow_pickle: bool = False,
    trust: Sequence[str] = (),
) -> LoadedModel:
    """The model of a version: the object that was logged, or MLflow's own wrapper with `pyfunc`.

        loaded = load_version(mlflow, find_version(mlflow, "arrival_delay@champion"))
        loaded.model.predict(rows)

    `trust` names packages or types of your own that a skops file may name, as for :func:`log_model`.

    Raises:
        ModelVersionError: the version or its files are gone, were changed since they were stored, or are a format that
            may run code while it is loaded and `allow_pickle` is not set.
    """
    name = f"{record.name}/{record.version}"
    gone = extra("mlflow.exceptions").MlflowException
    folder = Path(tempfile.mkdtemp(prefix="dagster-mlops-model-"))
    try:
        with resource.activate() as client:
            try:
                version = client.get_model_version(record.name, record.version)
                model_id = logged_model_id(version)
                local = Path(
                    extra("mlflow.artifacts").download_artifacts(
                        artifact_uri=version.source, dst_path=str(folder / "model")
                    )
                )
                tags = client.get_logged_model(model_id).tags if model_id else {}
            except (gone, OSError) as error:
                raise ModelVersionError(
                    f"model version {name} cannot be read from {mask_credentials(resource.uri)}: "
                    f"{mask_credentials(str(error))[:500]}"
                ) from error
            digest = model_digest(local)
            if tags.get(DIGEST, digest) != digest:
                raise ModelVersionError(
                    f"the files of model version {name} have the hash {digest[:16]}…, but {tags[DIGEST][:16]}… was "
                    "stored: somebody changed them. Nothing was loaded. Restore them, or train again."
                )
            flavors = extra("mlflow.models").Model.load(str(local)).flavors
            files = {file.relative_to(local).as_posix() for file in local.rglob("*") if file.is_file()}
            found = stored_format(flavors, files=files, trust=trust)
            if found.runs_code and not allow_pickle:
                raise ModelVersionError(
                    f"model version {name} is stored as {found}: {found.runs_code}. Loading it may run code of whoever "
                    "could write to the artifact store. If you trust them, set allow_pickle. To be free of the "
                    "question, log the model with dagster_mlops.mlflow.models.log_model."
                )
            flavor = "pyfunc" if pyfunc else next((flavor for flavor in _NATIVE if flavor in flavors), "pyfunc")
            # An exported graph may hold pickles, which MLflow looks for when it is told to. Of skops it would refuse
            # all, since the file says what it trusts; that was judged above.
            strict = {} if allow_pickle or found.name == "skops" else {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
            try:
                with environment(**strict):
                    model = extra(f"mlflow.{flavor}", extra="mlflow").load_model(str(local))
            except gone as error:
                if not strict or "PICKLE" not in str(error):
                    raise
                raise ModelVersionError(
                    f"model version {name} is stored as {found}, but MLflow cannot tell that it is only data: "
                    f"{str(error)[:500]}\nIf you trust whoever could write to the artifact store, set allow_pickle."
                ) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    # A pyfunc may go on reading files beside it.
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    return LoadedModel(model, record, found, digest)


def find_version(resource: MlflowResource, name: str) -> ModelVersion:
    """The record of ``name@alias``, ``name/version``, or of the newest version of ``name``.

    Raises:
        ModelVersionError: there is none.
    """
    client = resource.client()
    base, by, which = _parts(name)
    gone = extra("mlflow.exceptions").MlflowException
    try:
        if by == "@":
            version = client.get_model_version_by_alias(base, which)
        else:
            version = client.get_model_version(base, which or _newest(client, base))
    except gone as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise ModelVersionError(
            f"{mask_credentials(resource.uri)} has no model version {name!r}: {error}. Write 'name@alias', "
            "'name/version', or 'name' for the newest."
        ) from error
    return version_record(version, mask_credentials(resource.uri))


def logged_model_id(version: "MlflowModelVersion") -> str:
    """The id of the logged model behind a version; empty where a version points to plain files."""
    # A sqlite store says it in the source only.
    source = str(version.source)
    return version.model_id or (source.removeprefix("models:/") if source.startswith("models:/m-") else "")


def _newest(client: "MlflowClient", name: str) -> str:
    return max((str(v.version) for v in client.search_model_versions(f"name='{name}'")), key=int, default="0")


def _parts(name: str) -> tuple[str, str, str]:
    """Name, ``@`` or ``/``, and alias or number.

    >>> _parts("models:/delay@champion"), _parts("delay/3"), _parts("delay")
    (('delay', '@', 'champion'), ('delay', '/', '3'), ('delay', '', ''))
    """
    base, by, which = name.removeprefix("models:/").partition("@")
    return (base, by, which) if by else base.partition("/")
