"""Failures of a step that another attempt would only repeat."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg


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
        raise dg.Failure(str(error), allow_retries=False) from error
