"""Turns of promoters: MLflow cannot compare and set an alias, so that of two at once the worse could end as champion.

Lamport's bakery (Communications of the ACM 17, 1974) needs nothing but reads and writes. Each promoter has a tag of its
own on the registered model, with a ticket greater than all others; the lowest ticket is next. One whose process died
loses its turn when its lease ends.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import uuid4

from dagster_mlops.core.waits import wait_while
from dagster_mlops.errors import ModelVersionError
from dagster_mlops.mlflow import upstream
from dagster_mlops.mlflow.lazy import MlflowClient, mlflow
from dagster_mlops.mlflow.runs.lookup import owner
from dagster_mlops.provenance import NAMESPACE

TURN = f"{NAMESPACE}.turn."
"""Start of the names of these tags. They are there as long as a promotion lasts."""
_LEASE_S, _TIMEOUT_S, _PAUSE_S = 30.0, 180.0, 0.02
_CHOOSING = 0  # the ticket of one that is still looking for the greatest


@contextmanager
def turn(
    client: MlflowClient, name: str, *, lease_s: float = _LEASE_S, timeout_s: float = _TIMEOUT_S
) -> Iterator[None]:
    """Wait until no other promoter of the model `name` is at it, and keep others waiting inside the block.

    The clocks of two machines may differ by less than the lease, and a block takes a part of it.

    Raises:
        ModelVersionError: another one did not finish within `timeout_s`.
    """
    key = f"{TURN}{uuid4().hex}"
    ends = time.monotonic() + lease_s / 3

    def write(ticket: int) -> None:
        value = {"ticket": ticket, "until": time.time() + lease_s, "by": owner()}
        upstream.model_registry(client).set_registered_model_tag(name, key, json.dumps(value))

    def earlier() -> str:
        nonlocal ends
        if time.monotonic() > ends:  # while it waits, its own lease must not end
            write(ticket)
            ends = time.monotonic() + lease_s / 3
        tickets = _others(client, name, key, lease_s).items()
        return next((other["by"] for tag, other in tickets if (other["ticket"], tag) < (ticket, key)), "")

    try:
        write(_CHOOSING)
        ticket = 1 + max((other["ticket"] for other in _others(client, name, key, lease_s).values()), default=0)
        write(ticket)
        wait_while(earlier, timeout=timeout_s, pause=_PAUSE_S, error=lambda by: _busy(name, by))
        yield
    finally:
        with suppress(mlflow.MlflowException):  # its lease ends by itself
            upstream.model_registry(client).delete_registered_model_tag(name, key)


def _others(client: MlflowClient, name: str, key: str, lease_s: float) -> dict[str, dict[str, Any]]:
    """The tickets of others whose lease has not ended, by tag; tags of dead ones are removed."""
    tickets: dict[str, dict[str, Any]] = {}
    for tag, text in client.get_registered_model(name).tags.items():
        if not tag.startswith(TURN) or tag == key:
            continue
        with suppress(Exception):  # anyone may set a tag, which must stop nothing
            other = json.loads(text)
            # One that claims to live longer than any lease is not ours.
            if time.time() < float(other["until"]) < time.time() + 3 * lease_s:
                tickets[tag] = {"ticket": int(other["ticket"]), "by": str(other["by"])}
                continue
        with suppress(mlflow.MlflowException):
            upstream.model_registry(client).delete_registered_model_tag(name, tag)
    return tickets


def _busy(name: str, by: str) -> ModelVersionError:
    return ModelVersionError(
        f"{by} is promoting a version of {name!r} and does not finish. See what it waits for, then promote again."
    )
