"""Model versions of MLflow's registry, found by name and loaded."""

from collections.abc import Sequence

from dagster_mlops.core.model_loading import LoadedModel, load_stored
from dagster_mlops.core.model_versions import parse_version
from dagster_mlops.mlflow.registry.models import MlflowModels
from dagster_mlops.mlflow.resource import MlflowResource
from dagster_mlops.provenance import ModelVersion


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
    with resource.models() as models:
        return load_stored(
            lambda folder: models.fetch(record, folder), pyfunc=pyfunc, allow_pickle=allow_pickle, trust=trust
        )


def find_version(resource: MlflowResource, name: str) -> ModelVersion:
    """The record of ``name@alias``, ``name/version``, or of the newest version of ``name``.

    Raises:
        ModelVersionError: there is none.
    """
    return MlflowModels(resource, resource.client()).version(*parse_version(name))
