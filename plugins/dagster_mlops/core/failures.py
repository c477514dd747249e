"""Errors of a block as others: those that say what was being done, and failures that no policy retries."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from dagster_mlops.core.masked_errors import masked_error
from dagster_mlops.errors import DagsterMlopsError
from dagster_mlops.provenance import mask_credentials


@contextmanager
def raised_as(kind: type[DagsterMlopsError], what: str, *errors: type[Exception]) -> Iterator[None]:
    """Raise the `errors` of a block as a `kind`, which says `what` did not work, and then the reason.

    >>> with raised_as(DagsterMlopsError, "the port is not a number", ValueError):
    ...     int("many")
    Traceback (most recent call last):
    ...
    dagster_mlops.errors.DagsterMlopsError: the port is not a number: invalid literal for int() with base 10: 'many'
    """
    try:
        yield
    except errors as error:
        raise kind(f"{what}: {error}") from error


@contextmanager
def not_retried(*errors: type[Exception]) -> Iterator[None]:
    """Turn `errors` of a block, or of a decorated function, into a :class:`dagster.Failure` that no policy retries.

    >>> with not_retried(ValueError):
    ...     int("many")
    Traceback (most recent call last):
    ...
    dagster._core.definitions.events.Failure: invalid literal for int() with base 10: 'many'
    """
    try:
        yield
    except errors as error:
        raise dg.Failure(mask_credentials(str(error)), allow_retries=False) from masked_error(error)
