"""Requests to MLflow: their limits, what they download, and refusals: the one place that reads error codes."""

import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import ParamSpec, TypeVar

from dagster_mlops.core.extras import extra
from dagster_mlops.mlflow.lazy import ArtifactRepository, MlflowClient, mlflow

_P = ParamSpec("_P")
_T = TypeVar("_T")

# A missing alias and a malformed run id are INVALID_PARAMETER_VALUE, other missing things RESOURCE_DOES_NOT_EXIST.
GONE = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"})
EXISTS = frozenset({"RESOURCE_ALREADY_EXISTS"})
INVALID = frozenset({"INVALID_PARAMETER_VALUE"})


def or_none(request: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T | None:
    """The response to a request, or None when the thing it asks for does not exist."""
    responses: list[_T] = []
    refused(GONE, lambda: responses.append(request(*args, **kwargs)))
    return responses[0] if responses else None


def refused(codes: Collection[str], request: Callable[[], object]) -> bool:
    """True when MLflow refuses a request with one of these error codes; any other error is raised."""
    try:
        request()
    except mlflow.MlflowException as error:
        if error.error_code not in codes:
            raise
        return True
    return False


def artifact(client: MlflowClient, run_id: str, path: str) -> bytes:
    """The content of a file among the artifacts of a run."""
    with tempfile.TemporaryDirectory(prefix="dagster-mlops-") as scratch:
        return Path(client.download_artifacts(run_id, path, scratch)).read_bytes()


def artifact_store(uri: object, tracking_uri: str | None = None) -> ArtifactRepository:
    """The artifact store at a URI, without a request for the URI of a run or a model."""
    return mlflow.store.artifact.artifact_repository_registry.get_artifact_repository(str(uri), tracking_uri)


def stored_folder(location: object, scratch: str, tracking_uri: str | None = None) -> Path:
    """The folder of a model: where it lies, or a copy in `scratch` of what another machine has."""
    store = artifact_store(location, tracking_uri)
    is_here = isinstance(
        store, extra("mlflow.store.artifact.local_artifact_repo", extra="mlflow").LocalArtifactRepository
    )
    return Path(store.download_artifacts("", None if is_here else scratch))


def request_limits(*, timeout: int | None = None, retries: int | None = None) -> dict[str, str]:
    """The variables that bound MLflow's HTTP requests, for :func:`environment`. None leaves a bound as it is.

    By default MLflow waits 120 seconds for a response, and retries 7 times, at once and then after 4, 8, 16, 32, 64
    and 120 seconds, when there is none or its status is 408, 429, 500, 502, 503 or 504.

    >>> request_limits(timeout=5, retries=1)
    {'MLFLOW_HTTP_REQUEST_TIMEOUT': '5', 'MLFLOW_HTTP_REQUEST_MAX_RETRIES': '1'}
    """
    bounds = {"MLFLOW_HTTP_REQUEST_TIMEOUT": timeout, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": retries}
    return {name: str(value) for name, value in bounds.items() if value is not None}
