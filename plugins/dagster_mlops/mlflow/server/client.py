"""Requests to MLflow that may be refused for an expected reason: the one place that reads error codes."""

from collections.abc import Callable, Collection
from typing import ParamSpec, TypeVar

from dagster_mlops.mlflow.lazy import mlflow

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
