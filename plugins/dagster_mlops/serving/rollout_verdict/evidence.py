"""Evidence against a canary, and for it: failed requests and latency."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from dagster_mlops.core.arrays import np
from dagster_mlops.serving.rollout_verdict import e_values
from dagster_mlops.serving.rollout_verdict.observations import Batch


class Evidence(ABC):
    """Bets of one kind. A bet against the canary wins if it is worse, one for it if it does not do the harm."""

    name: str
    weight: float
    """Part of the error rate."""

    @abstractmethod
    def add(self, batch: Batch, canary_requests: int) -> None:
        """Place the bets on a batch; `canary_requests` counts the canary's before it."""

    @abstractmethod
    def against(self) -> float:
        """The logarithm of an e-value against: the canary is not worse than is tolerated."""

    @abstractmethod
    def in_favour(self, margin: float) -> float:
        """The logarithm of an e-value against: the canary does this multiple of the harm, or more."""

    @abstractmethod
    def drop(self, margin: float) -> None:
        """Bet no more on this multiple of the harm."""

    @abstractmethod
    def facts(self) -> Mapping[str, float]:
        """Numbers for a table: of both arms, and how many values there are."""

    def missing(self) -> str:
        """The reason why nothing could be compared; empty if something was."""
        return ""


class Errors(Evidence):
    """Failed requests, in blocks that have requests of both arms."""

    name, weight = "errors", 0.4
    # Most baselines have no errors at all, and then the last of these bets wins the most that any can.
    _ODDS, _WEIGHTS = (2.0, 4.0, 12.0, 1000.0), (0.1, 0.15, 0.15, 0.6)
    _PRIOR = (0.5, 100)  # events and requests, before there are any

    def __init__(self, harm: float, margins: Sequence[float]) -> None:
        self.harm = harm
        self._log_odds = np.log([[1.0, odds] for odds in self._ODDS])
        self._open = np.zeros((2, 2), dtype=int)  # errors and requests of canary and baseline
        self._sums = np.zeros((2, 2), dtype=int)
        self._against = np.zeros(len(self._ODDS))
        self._in_favour = dict.fromkeys(margins, 0.0)

    def add(self, batch: Batch, canary_requests: int) -> None:
        del canary_requests  # errors count from the first request on
        self._open += [[arm.errors, arm.requests] for arm in (batch.canary, batch.baseline)]
        block = self._open
        # Counters that are read one after the other may be ahead of each other: wait for the next batch.
        if not block[:, 1].all() or (block[:, 0] > block[:, 1]).any():
            return
        self._open = np.zeros((2, 2), dtype=int)
        passed, failed = block[:, 1] - block[:, 0], block[:, 0]
        pool, canary = np.array([passed.sum(), failed.sum()]), np.array([passed[0], failed[0]])
        self._against += e_values.exchangeable(pool, canary, self._log_odds)
        events, requests = self._sums.sum(0) + self._PRIOR
        chance = events / requests
        for margin in self._in_favour:
            self._in_favour[margin] += (
                e_values.shares(
                    tuple(block[0]), tuple(block[1]), (chance, chance), margin=margin * self.harm, above=True
                )
                if margin * self.harm < 1
                else 0.0
            )
        self._sums += block

    def against(self) -> float:
        return e_values.mixture(self._against, np.array(self._WEIGHTS))

    def drop(self, margin: float) -> None:
        self._in_favour.pop(margin)

    def in_favour(self, margin: float) -> float:
        return self._in_favour[margin] if margin * self.harm < 1 else math.inf

    def facts(self) -> Mapping[str, float]:
        (errors, requests), (of_baseline, of_others) = self._sums + self._open
        return {
            "canary": float(errors / requests) if requests else math.nan,
            "baseline": float(of_baseline / of_others) if of_others else math.nan,
            "values": float(requests),
        }

    def missing(self) -> str:
        requests = (self._sums + self._open)[:, 1]
        return "" if requests.all() else f"the {'canary' if not requests[0] else 'baseline'} has no requests"


class Latency(Evidence):
    """Ranks of latencies, in blocks of at least five of both arms.

    A process that is slow for a while, and not because of its code, gives blocks that differ by more than the chance
    that shares requests out. All returns are then those of smaller bets: divided, as logarithms, by how much more the
    scores of short stretches differ. That never makes an e-value greater, so no care is needed for when
    the divisor is chosen.
    """

    name, weight = "latency", 0.4
    _SIZES = (0.15, 0.3, 0.6, 1.2)  # of shifts, in standard deviations
    _FEWEST, _FEWEST_SCORES = 5, 8
    _SLOW = 800  # requests; what a process does in fewer may be an accident

    def __init__(self, harm: float, tolerated: float, grace: int, margins: Sequence[float]) -> None:
        self.harm, self.tolerated, self.grace = harm, tolerated, grace
        self._open: list[list[float]] = [[], []]
        self._medians: tuple[float, float] = (math.nan, math.nan)
        self._blocks: list[tuple[float, float]] = []
        self._canary = self._used = 0
        self._unreadable = [0, 0]
        self._scores: list[float] = []
        self._returns: dict[float, Any] = {margin: np.zeros(len(self._SIZES)) for margin in (0.0, *margins)}

    def add(self, batch: Batch, canary_requests: int) -> None:
        skipped = max(0, self.grace - canary_requests)
        for number, arm in enumerate((batch.canary, batch.baseline)):
            values = np.asarray(arm.latencies, dtype=float)
            readable = values[values >= 0]  # not NaN either
            self._unreadable[number] += len(values) - len(readable)
            if number == 0:
                self._canary += len(readable)
                readable = readable[skipped:]
            if canary_requests + batch.canary.requests > self.grace:
                self._open[number].extend(readable)
        if min(map(len, self._open)) < self._FEWEST:
            return
        canary, baseline = map(np.array, self._open)
        self._open = [[], []]
        self._medians = float(np.median(canary)), float(np.median(baseline))
        self._blocks.append(self._medians)
        sizes = np.array(self._SIZES)[:, None]
        for margin, returns in self._returns.items():
            growth, sign = (1 + self.harm * margin, -1) if margin else (1 + self.tolerated, 1)
            pool, of_canary, scores = e_values.normal_scores(canary / growth, baseline)
            returns += e_values.exchangeable(pool, of_canary, sign * sizes * scores)
        self._used += len(canary)
        parts = min(len(canary), len(baseline)) // self._FEWEST
        for part in zip(*(np.array_split(values, parts) for values in (canary, baseline)), strict=True):
            self._scores.append(e_values.standardised(*e_values.normal_scores(*part)))

    def dispersion(self) -> float:
        """The variance of scores over time, in multiples of that of chance; at least 1.

        It is that of sums of 1, 2, 4, … scores that follow each other, whichever is the most; few say little.
        """
        scores, largest = np.array(self._scores), self._SLOW / max(self._used, 1)
        while len(scores) >= self._FEWEST_SCORES:
            largest = max(largest, float(scores.var(ddof=1)))
            scores = scores[: len(scores) // 2 * 2].reshape(-1, 2).sum(1) / math.sqrt(2)
        return max(1.0, largest)

    def _value(self, margin: float) -> float:
        plain = e_values.mixture(self._returns[margin], np.full(len(self._SIZES), 1 / len(self._SIZES)))
        returns = self._returns[margin] / self.dispersion()
        return min(plain, e_values.mixture(returns, np.full(len(self._SIZES), 1 / len(self._SIZES))))

    def against(self) -> float:
        return self._value(0.0)

    def drop(self, margin: float) -> None:
        self._returns.pop(margin)

    def in_favour(self, margin: float) -> float:
        return self._value(margin)

    def facts(self) -> Mapping[str, float]:
        canary, baseline = np.median(self._blocks, axis=0) if self._blocks else (math.nan, math.nan)
        return {"canary": float(canary), "baseline": float(baseline), "values": float(self._canary)}

    def missing(self) -> str:
        if self._scores:
            return ""
        note = ""
        if any(self._unreadable):
            note = f" ({sum(self._unreadable)} are not a number, or negative)"
        elif self._canary < self.grace:
            note = f" ({self._canary} of its {self.grace} requests so far)"
        return f"there are no latencies of both deployments after the grace{note}"
