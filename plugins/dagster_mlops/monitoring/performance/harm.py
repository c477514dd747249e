"""Harm of a change: whether predictions got worse by it, by labels where they decide, by a rehearsal before."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from dagster_mlops.core.arrays import np
from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring.performance.estimate import calibration, expected_metric
from dagster_mlops.monitoring.performance.labelled import clean
from dagster_mlops.monitoring.performance.metrics import Array, builtin
from dagster_mlops.monitoring.performance.rehearsal import KINDS, Drop, Predict, rehearse, relative_drop

Verdict = Literal["harmful", "benign", "undecided"]
Basis = Literal["labels", "rehearsal", "estimate", "requests"]
METRICS = ("roc_auc", "log_loss")
MAX_DROP = 0.05
_WORSE, _FINE = 1.96, 0.84  # quantiles of the normal distribution: 95 % of two metrics, and 80 % of one
_THRESHOLD = 0.5
_FEWEST_WINDOWS, _LEAST_LABELS, _KNOTS = 5, 200, 200


class Harm(NamedTuple):
    """The verdict, and its strength: the relative drop of the metric that suffers most."""

    verdict: Verdict
    drop: float
    basis: Basis
    text: str


class Level(NamedTuple):
    """A metric over windows of `rows` consecutive rows of a history, and what its estimate is off by."""

    rows: int
    mean: float
    spread: float  # standard deviation from window to window
    mean_estimate: float
    spread_estimate: float
    error: float  # root mean square difference of estimate and realized value


class HarmScale(NamedTuple):
    """The performance of a model in its history, its variation from window to window, and the faults that break it.

    Args:
        label: Column of the labels.
        prediction: Column of the probabilities of 1.
        max_drop: Smallest relative drop that is harm.
        scores: Predictions in ascending order …
        chances: … and the share of 1 among rows with such a prediction, by isotonic regression.
        levels: By metric.
        drops: Of the rehearsal, by column and kind of fault.
    """

    label: str
    prediction: str
    max_drop: float
    scores: Sequence[float]
    chances: Sequence[float]
    levels: Mapping[str, Sequence[Level]]
    drops: Mapping[str, Mapping[str, Drop]]

    @classmethod
    def learn(
        cls,
        history: Any,
        label: str,
        prediction: str,
        rows: int,
        *,
        columns: Sequence[str] = (),
        max_drop: float = MAX_DROP,
        predict: Predict | None = None,
    ) -> "HarmScale":
        """Learn from a pandas frame in order of time; rows without a label are left out.

        Args:
            rows: Rows of a window.
            columns: Inputs of the model, for the rehearsal.
            predict: The model, for the rehearsal; a stand-in that learns its predictions unless given.

        Raises:
            MonitoringError: a column is not there or not of a classification, or there are too few labels.
        """
        history = history[history[label].notna() & history[prediction].notna()].reset_index(drop=True)
        frame = clean(history, label, prediction, "classification", whose="the history")
        labels, scores = frame[label].to_numpy(float), frame[prediction].to_numpy(float)
        if len(frame) < _FEWEST_WINDOWS * rows or len(np.unique(labels)) < 2:
            raise MonitoringError(
                f"the history has {len(frame):,} rows with a label, and harm needs {_FEWEST_WINDOWS * rows:,} of both "
                f"classes. Take a longer one, or leave out label={label!r}."
            )
        knots = np.quantile(scores, np.linspace(0, 1, _KNOTS))
        half = len(frame) // 2
        # Each half is judged by the calibration of the other.
        first, second = calibration(labels[half:], scores[half:]), calibration(labels[:half], scores[:half])
        foreseen = np.concatenate([first(scores[:half]), second(scores[half:])])
        inputs = frame.assign(**{name: history[name] for name in columns})
        return cls(
            label,
            prediction,
            max_drop,
            knots.tolist(),
            calibration(labels, scores)(knots).tolist(),
            {name: _levels(name, labels, scores, foreseen, rows) for name in METRICS},
            rehearse(inputs, list(columns), label, prediction, METRICS, predict) if columns else {},
        )

    def rehearsed(self, findings: Sequence[tuple[str, str]]) -> Harm:
        """Harm by the rehearsal of faults in the columns that alarm.

        Values that are missing, new or far out of range are harmful in a column with which they were, and benign in one
        without which predictions stay as good. A change within the history's range is benign in such a column; in
        others it may be a fault or the weather, and is undecided.

        Args:
            findings: Column and ``what`` of each score that alarms.
        """
        inputs = [(name, what) for name, what in findings if name in self.drops]
        if not inputs:
            return Harm("undecided", 0.0, "rehearsal", "the columns that alarm are not inputs of the rehearsal")
        drops = [(self.drops[name][KINDS.get(what, "other")], name, what) for name, what in inputs]
        # A fault that hurts is one whatever else it changes: what is missing leaves another distribution, too.
        faults = [each for each in drops if each[2] in KINDS and each[0].drop >= self.max_drop]
        (drop, metric), name, _ = max(faults or drops)
        text = f"with {name} broken like this, {metric} was {100 * drop:.1f} % worse in a rehearsal"
        verdict: Verdict = "undecided"
        if faults:
            verdict = "harmful"
        elif drop <= self.max_drop / 2 and len(inputs) == len(findings):
            verdict = "benign"
        return Harm(verdict, drop, "rehearsal", text)

    def estimated(self, scores: Array) -> Harm:
        """Harm by the performance that predictions let expect: CBPE, see :func:`estimated_performance`.

        Args:
            scores: The predictions since the change.
        """
        scores = np.asarray(scores, float)
        scores = scores[np.isfinite(scores)]
        if not len(scores):
            return Harm("undecided", 0.0, "estimate", "there are no predictions to estimate from")
        chances, parts = np.interp(scores, self.scores, self.chances), []
        for name, levels in self.levels.items():
            level = _level(levels, len(scores))
            value = expected_metric(name, chances, scores, _THRESHOLD)
            error = math.hypot(level.spread_estimate, level.error)
            parts.append(self._part(name, value, level.mean_estimate, error))
        return _together(parts, "estimate", f"estimated from {len(scores):,} predictions without labels")

    def realized(self, labels: Array, scores: Array) -> Harm | None:
        """Harm by labels; None with fewer than 200, or those of one class."""
        labels, scores = np.asarray(labels, float), np.asarray(scores, float)
        if len(labels) < _LEAST_LABELS or len(np.unique(labels)) < 2:
            return None
        parts = []
        for name, levels in self.levels.items():
            level = _level(levels, len(labels))
            parts.append(self._part(name, builtin(name, _THRESHOLD)(labels, scores), level.mean, level.spread))
        return _together(parts, "labels", f"measured by {len(labels):,} labels")

    def _part(self, name: str, value: float, expected: float, error: float) -> tuple[Verdict, Drop, str]:
        """Harmful beyond chance and by enough; benign where chance hides no drop that matters."""
        drop, error = relative_drop(name, value, expected), error / abs(expected)
        text = f"{name} is {value:.3f}, {expected:.3f} ± {error * abs(expected):.3f} expected"
        verdict: Verdict = "undecided"
        if drop >= max(self.max_drop, _WORSE * error):
            verdict = "harmful"
        elif drop + _FINE * error <= self.max_drop:
            verdict = "benign"
        return verdict, Drop(drop, name), text

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        levels = {name: [list(level) for level in entries] for name, entries in self.levels.items()}
        drops = {name: {kind: list(drop) for kind, drop in entries.items()} for name, entries in self.drops.items()}
        return {**self._asdict(), "levels": levels, "drops": drops}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "HarmScale":
        """The scale of :meth:`to_dict`."""
        levels = {name: [Level(*level) for level in entries] for name, entries in stored["levels"].items()}
        drops = {
            name: {kind: Drop(*drop) for kind, drop in entries.items()} for name, entries in stored["drops"].items()
        }
        return cls(**{**stored, "levels": levels, "drops": drops})


def _together(parts: Sequence[tuple[Verdict, Drop, str]], basis: Basis, how: str) -> Harm:
    verdicts = {verdict for verdict, _, _ in parts}
    verdict: Verdict = "undecided"
    if "harmful" in verdicts:
        verdict = "harmful"
    elif verdicts == {"benign"}:
        verdict = "benign"
    _, (drop, _), text = max(parts, key=lambda part: part[1])
    return Harm(verdict, drop, basis, f"{text}, {how}")


def _levels(name: str, labels: Array, scores: Array, chances: Array, rows: int) -> list[Level]:
    """The metric in windows of `rows` rows, and of twice as many and so on while there are five of them."""
    levels, size = [], rows
    while len(labels) >= _FEWEST_WINDOWS * size:
        windows = [slice(a, b) for a, b in itertools.pairwise(range(0, len(labels) + 1, size))]
        realized = [builtin(name, _THRESHOLD)(labels[window], scores[window]) for window in windows]
        estimates = [expected_metric(name, chances[window], scores[window], _THRESHOLD) for window in windows]
        pairs = np.array([realized, estimates]).T
        pairs = pairs[np.isfinite(pairs).all(axis=1)]
        if len(pairs) >= 3 or not levels:
            (mean, estimate), spreads = pairs.mean(axis=0), pairs.std(axis=0, ddof=1)
            error = float(np.sqrt(((pairs[:, 1] - pairs[:, 0]) ** 2).mean()))
            levels.append(Level(size, float(mean), float(spreads[0]), float(estimate), float(spreads[1]), error))
        size *= 2
    return levels


def _level(levels: Sequence[Level], rows: int) -> Level:
    """The level of the largest windows that are no longer than `rows`; shorter ones than any vary more."""
    at_most = [level for level in levels if level.rows <= rows]
    if at_most:
        return at_most[-1]
    first = levels[0]
    more = math.sqrt(first.rows / max(rows, 1))
    return first._replace(
        spread=first.spread * more, spread_estimate=first.spread_estimate * more, error=first.error * more
    )
