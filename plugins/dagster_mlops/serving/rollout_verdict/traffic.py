"""A rollout carried out on whatever sends requests to two deployments."""

import time
from collections.abc import Callable
from logging import Logger
from typing import Protocol

from dagster_mlops.serving.rollout_verdict.observations import Batch
from dagster_mlops.serving.rollout_verdict.options import Shadow
from dagster_mlops.serving.rollout_verdict.rollout import Rollout, Verdict


class Traffic(Protocol):
    """Sends requests to a canary and its baseline, and says what became of them."""

    def shift(self, share: float) -> None:
        """Send this share of the requests to the canary, each at random: 0 takes it out, 1 the baseline."""
        ...

    def mirror(self, mirrored: bool) -> None:
        """Send the canary a copy of each request, whose answer goes to no one, or stop it."""
        ...

    def observations(self) -> Batch:
        """Wait for a while, and return the requests since the last call, also if there were none."""
        ...


_NEWS = 30  # seconds between lines of the log while nothing changes


def run_rollout(
    *, rollout: Rollout, traffic: Traffic, log: Logger, look: Callable[[Verdict], object] = lambda _: None
) -> Verdict:
    """Shift traffic by the verdict after each look, until a final one. `look` is called with each.

    Whatever ends it before, an error or an interrupt, takes the canary out. A process that is killed cannot: whoever
    starts next shifts to 0 first, and begins a new rollout.
    """
    mirrored = isinstance(rollout.options, Shadow)
    share, last_line = rollout.share, time.monotonic()
    try:
        traffic.mirror(mirrored)
        traffic.shift(share)
        while True:
            verdict = rollout.look(traffic.observations())
            look(verdict)
            if verdict.share != share or verdict.final or time.monotonic() - last_line >= _NEWS:
                last_line = time.monotonic()
                gets = "" if mirrored else f"; the canary gets {verdict.share:.1%} of the traffic"
                log.info(f"{verdict.value} after {verdict.requests} requests: {verdict.reason}{gets}.")
            if verdict.share != share:
                traffic.shift(share := verdict.share)
            if verdict.final:
                return verdict
    except BaseException:
        traffic.shift(0.0)
        raise
    finally:
        if mirrored:
            traffic.mirror(False)
