"""Requests that are not answered with predictions, and why."""

import logging

from .log.predictions import RowTooLarge
from .outputs import OutputError

_logger = logging.getLogger("bentoml.dagster_mlops")


class Refusal(Exception):
    """A request that is not answered with predictions."""

    def __init__(self, status: int, error: object) -> None:
        super().__init__(str(error))
        self.status = status


class Gone(Exception):
    """The client has closed the connection."""


def refusal_of(error: Exception, first: str) -> Refusal:
    """The answer to a request whose prediction has failed, as `first` of its ids names it in the server's log."""
    if isinstance(error, RowTooLarge):
        return Refusal(413, error)
    if isinstance(error, OSError):
        _logger.error("the prediction of %s cannot be logged: %s", first, error)
        return Refusal(503, "the prediction cannot be logged, and so is not answered")
    if isinstance(error, OutputError):
        _logger.error("%s: %s", first, error)
        return Refusal(500, "the model's output is not one value for each row")
    # Its text may hold a customer's values or the model's internals: for the server's log, not for the client.
    _logger.warning("the model refuses %s", first, exc_info=error)
    return Refusal(422, "the model refuses these rows")
