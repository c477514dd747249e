"""Finding and loading model versions of MLflow's registry."""

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
    """The model of a version: the logged object, or MLflow's wrapper with `pyfunc`.

        loaded = load_version(mlflow, find_version(mlflow, "arrival_delay@champion"))
        loaded.model.predict(rows)

    `trust` names your packages or types that a skops file may contain, as for :func:`log_model`.

    Raises:
        ModelVersionError: the version or its files are gone, the files were changed, or their format may run code while
            it is loaded and `allow_pickle` is not set.
    """
    with resource.models() as models:
        return load_stored(
            lambda folder: models.fetch(record, folder), pyfunc=pyfunc, allow_pickle=allow_pickle, trust=trust
        )


def find_version(resource: MlflowResource, name: str) -> ModelVersion:
    """The record of ``name@alias``, ``name/version``, or the newest version of ``name``.

    Raises:
        ModelVersionError: there is no such version.
    """
    return MlflowModels(resource, resource.client()).version(*parse_version(name))
