"""Evidence of predictions: their distribution, and outputs of both deployments for the same input."""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from dagster_mlops.core.arrays import np
from dagster_mlops.serving.golden.answers import largest_difference
from dagster_mlops.serving.rollout_verdict import e_values
from dagster_mlops.serving.rollout_verdict.evidence import Evidence
from dagster_mlops.serving.rollout_verdict.observations import Batch


class Outputs(Evidence):
    """The distribution of predictions, by the set of values that the canary gives more often than the baseline.

    The set is that of the blocks before, as in A. Podkopaev and A. Ramdas, Sequential predictive two-sample and
    independence testing (2023).
    """

    name, weight = "outputs", 0.2
    _BINS, _FEWEST, _REFERENCE = 10, 5, 50

    def __init__(self, tolerated: float) -> None:
        self.tolerated = tolerated
        self._open: list[list[Any]] = [[], []]
        self._edges: list[float] | None = None
        self._sums: list[Counter[Any]] = [Counter(), Counter()]
        self._return = 0.0

    def add(self, batch: Batch, canary_requests: int) -> None:
        del canary_requests
        for values, arm in zip(self._open, (batch.canary, batch.baseline), strict=True):
            values.extend(map(_plain, arm.outputs))
        canary, baseline = self._open
        if self._edges is None:
            if len(baseline) < self._REFERENCE:
                return
            numbers = [value for value in baseline if isinstance(value, float)]
            quantiles = np.quantile(numbers, np.arange(1, self._BINS) / self._BINS) if numbers else np.empty(0)
            self._edges = np.unique(quantiles).tolist()
        if min(len(canary), len(baseline)) < self._FEWEST:
            return
        self._open = [[], []]
        blocks = [Counter(map(self._bin, values)) for values in (canary, baseline)]
        self._return += self._bet(blocks)
        for total, block in zip(self._sums, blocks, strict=True):
            total.update(block)

    def _bin(self, value: Any) -> Any:
        return bisect_left(self._edges or [], value) if isinstance(value, float) else value

    def _more_often(self) -> set[Any]:
        canary, baseline = (_shares(total) for total in self._sums)
        return {value for value, chance in canary.items() if chance > baseline.get(value, 0.0)}

    def _bet(self, blocks: Sequence[Counter[Any]]) -> float:
        more_often = self._more_often()
        before = [_within(total, more_often) for total in self._sums]
        chances = [(events + 1) / (requests + 2) for events, requests in before]
        canary, baseline = (_within(block, more_often) for block in blocks)
        return e_values.shares(canary, baseline, (chances[0], chances[1]), margin=self.tolerated, above=False)

    def against(self) -> float:
        return self._return

    def drop(self, margin: float) -> None:
        """Nothing is dropped: differences never speak for a deployment."""

    def in_favour(self, margin: float) -> float:
        """Predictions only speak against: a new model is made to answer differently."""
        del margin
        return math.inf

    def facts(self) -> Mapping[str, float]:
        more_often = self._more_often()
        (events, requests), (of_baseline, of_others) = (_within(total, more_often) for total in self._sums)
        shift = events / requests - of_baseline / of_others if requests and of_others else math.nan
        return {"canary": shift, "baseline": 0.0, "values": float(requests)}


class Differences(Evidence):
    """Outputs of both deployments for the same input: the share of inputs on which they differ."""

    name, weight = "differences", 0.4

    def __init__(self, tolerance: float, tolerated: float, harm: float) -> None:
        self.tolerance, self.tolerated, self.harm = tolerance, tolerated, harm
        self._differ = self._pairs = 0
        self._worse = np.geomspace(2 * tolerated, 0.98, 12) if tolerated < 0.49 else np.array([0.5 + tolerated / 2])

    def add(self, batch: Batch, canary_requests: int) -> None:
        del canary_requests
        self._pairs += len(batch.pairs)
        self._differ += sum(_differ(*pair, self.tolerance) for pair in batch.pairs)

    def against(self) -> float:
        returns = e_values.share(self._differ, self._pairs, self.tolerated, self._worse)
        return e_values.mixture(returns, np.full(len(returns), 1 / len(returns)))

    def drop(self, margin: float) -> None:
        """There is one step."""

    def in_favour(self, margin: float) -> float:
        del margin  # a shadow has one step
        fewer = self.harm * np.array([0.002, 0.05, 0.25, 0.5])
        return e_values.mixture(e_values.share(self._differ, self._pairs, self.harm, fewer), np.full(4, 0.25))

    def facts(self) -> Mapping[str, float]:
        share = self._differ / self._pairs if self._pairs else math.nan
        return {"canary": share, "baseline": 0.0, "values": float(self._pairs)}

    def missing(self) -> str:
        return "" if self._pairs else "there are no outputs of both deployments for the same input"


def _differ(canary: Any, baseline: Any, tolerance: float) -> bool:
    difference = largest_difference(canary, baseline)
    if math.isnan(difference):  # two that are not a number are the same
        return repr(canary) != repr(baseline)
    return difference > tolerance


def _plain(value: Any) -> Any:
    """A number as float; anything that is not one, as text."""
    if type(value) is float and math.isfinite(value):
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        return repr(value)
    return float(value) if math.isfinite(value) else repr(float(value))


def _shares(counts: Counter[Any]) -> dict[Any, float]:
    total = counts.total()
    return {value: count / total for value, count in counts.items()}


def _within(counts: Counter[Any], values: set[Any]) -> tuple[int, int]:
    return sum(counts[value] for value in values), counts.total()
