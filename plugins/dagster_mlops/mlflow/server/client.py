"""Requests to MLflow that may be refused for a reason that the caller expects: the one place that reads error codes."""

from collections.abc import Callable, Collection
from typing import ParamSpec, TypeVar

from dagster_mlops.core.extras import extra

_P = ParamSpec("_P")
_T = TypeVar("_T")

# A missing alias and a malformed run id are INVALID_PARAMETER_VALUE, other missing things RESOURCE_DOES_NOT_EXIST.
GONE = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"})
EXISTS = frozenset({"RESOURCE_ALREADY_EXISTS"})
INVALID = frozenset({"INVALID_PARAMETER_VALUE"})


def or_none(request: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T | None:
    """The answer to a request, or None for what is not there."""
    answers: list[_T] = []
    refused(GONE, lambda: answers.append(request(*args, **kwargs)))
    return answers[0] if answers else None


def refused(codes: Collection[str], request: Callable[[], object]) -> bool:
    """Whether MLflow refuses a request with one of these error codes; any other error is raised."""
    try:
        request()
    except extra("mlflow.exceptions").MlflowException as error:
        if error.error_code not in codes:
            raise
        return True
    return False
