"""Evidently without its warnings."""

import contextlib
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what Evidently, and what it is built on, says about itself: deprecations at import, 0/0 in histograms."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
