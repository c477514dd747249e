"""No beta warnings for what this library, not its user, takes from Dagster."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg


@contextmanager
def without_beta_warning(subject: str) -> Iterator[None]:
    """Hide the warning that `subject` is beta, such as "Function `multi_observable_source_asset`", and no other."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", subject, dg.BetaWarning)
        yield
