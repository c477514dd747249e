"""What Dagster calls beta and this library has chosen: a user who loads definitions is not to be warned of it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg


@contextmanager
def chosen(what: str) -> Iterator[None]:
    """No warning that `what` is beta, such as "Function `multi_observable_source_asset`"; all others as ever."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", what, dg.BetaWarning)
        yield
