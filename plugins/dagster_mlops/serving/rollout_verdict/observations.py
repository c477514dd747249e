"""Requests that two deployments answered since the last look, whatever counted or logged them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dagster_mlops.core.arrays import np


@dataclass(frozen=True)
class Arm:
    """Requests that one deployment answered since the last look.

    Args:
        requests: Number of requests.
        errors: Number of these that failed by the server's fault: a crash, a timeout, no connection.
        latencies: Times of answers that did not fail, in any unit. Those that are not a number, or below 0 because a
            clock was set, are left out; infinity is a timeout.
        outputs: Predictions: numbers or labels. One that is missing or not a number is a value like another.
    """

    requests: int = 0
    errors: int = 0
    latencies: "Sequence[float] | np.ndarray" = ()
    outputs: Sequence[Any] = ()

    def __post_init__(self) -> None:
        for name in ("requests", "errors"):
            count = getattr(self, name)
            if not math.isfinite(count) or count < 0 or count != int(count):
                raise ValueError(
                    f"{name}={count!r} is not a number of requests since the last look. Counters of a process go "
                    "through Counters, which knows their restarts."
                )

    def with_answers(self, more: "Arm") -> "Arm":
        """The same requests, with the latencies and outputs of `more` added."""
        return replace(self, latencies=[*self.latencies, *more.latencies], outputs=[*self.outputs, *more.outputs])


@dataclass(frozen=True)
class Batch:
    """Requests of both deployments since the last look.

    Args:
        canary: Those of the new deployment.
        baseline: Those of the other one, at the same time: earlier ones say nothing about the same traffic.
        seconds: Time since the last look, by a monotonic clock. A step backwards counts as none.
        pairs: Outputs of canary and baseline for the same input, of a shadow deployment.
    """

    canary: Arm = Arm()
    baseline: Arm = Arm()
    seconds: float = 0.0
    pairs: Sequence[tuple[Any, Any]] = ()


@dataclass
class Counters:
    """Growth of a process's counters from look to look; after a restart they count from zero.

    >>> counters = Counters()
    >>> counters.growth({"requests": 100, "errors": 1}), counters.growth({"requests": 130, "errors": 1})
    ({'requests': 0, 'errors': 0}, {'requests': 30, 'errors': 0})
    >>> counters.growth({"requests": 7, "errors": 2}), counters.restarts
    ({'requests': 7, 'errors': 2}, 1)
    """

    restarts: int = 0
    _last: dict[str, int] | None = None

    def growth(self, counters: Mapping[str, int]) -> dict[str, int]:
        """By how much each counter grew since the last call; the first call only takes note."""
        last = counters if self._last is None else self._last
        if any(value < last.get(name, 0) for name, value in counters.items()):
            self.restarts, last = self.restarts + 1, {}
        self._last = dict(counters)
        return {name: value - last.get(name, 0) for name, value in counters.items()}


@dataclass(frozen=True)
class Answer:
    """One request in a log: the deployment that answered it, and how.

    The copy that a shadow deployment got has the request's id, too.
    """

    request_id: str
    deployment: str
    failed: bool = False
    latency: float | None = None
    output: Any = None


@dataclass
class AnswerLog:
    """Batches from the rows of a log; a row that is read twice, or that a retry wrote again, counts once.

    >>> log = AnswerLog(canary="new", baseline="old")
    >>> rows = [Answer("a", "new", output=0.2), Answer("a", "old", output=0.3), Answer("a", "new", output=0.2)]
    >>> log.batch(rows).canary.requests, log.batch(rows).canary.requests
    (1, 0)
    >>> AnswerLog(canary="new", baseline="old").batch(rows).pairs
    [(0.2, 0.3)]
    """

    canary: str
    baseline: str
    _ids: set[tuple[str, str]] = field(default_factory=set)
    _halves: dict[str, Answer] = field(default_factory=dict)

    def batch(self, rows: Iterable[Answer], seconds: float = 0.0) -> Batch:
        """The rows that were not there before."""
        arms: dict[str, list[Answer]] = {self.canary: [], self.baseline: []}
        pairs: list[tuple[Any, Any]] = []
        for row in rows:
            key = (row.deployment, row.request_id)
            if row.deployment not in arms or key in self._ids:
                continue
            self._ids.add(key)
            arms[row.deployment].append(row)
            half = self._halves.pop(row.request_id, None)
            if half is None:
                self._halves[row.request_id] = row
            elif not (row.failed or half.failed):
                canary, baseline = (row, half) if row.deployment == self.canary else (half, row)
                pairs.append((canary.output, baseline.output))
        canary, baseline = (_arm(arms[name]) for name in (self.canary, self.baseline))
        return Batch(canary, baseline, seconds, pairs)


def _arm(rows: Sequence[Answer]) -> Arm:
    good = [row for row in rows if not row.failed]
    latencies = [math.nan if row.latency is None else row.latency for row in good]
    return Arm(len(rows), len(rows) - len(good), latencies, [row.output for row in good])
