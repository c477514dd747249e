"""The state of a rollout between looks, and its verdict after each of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from dagster_mlops.core.metadata import about
from dagster_mlops.serving.rollout_verdict.evidence import Errors, Evidence, Latency
from dagster_mlops.serving.rollout_verdict.observations import Batch
from dagster_mlops.serving.rollout_verdict.options import Canary, Shadow
from dagster_mlops.serving.rollout_verdict.output_evidence import Differences, Outputs

GO, BACK, NOT_YET = "go", "back", "not yet"
_TREND = 200  # requests after the grace before which evidence has no trend


@dataclass(frozen=True)
class Part:
    """Evidence of one kind."""

    kind: str = about("Kind of evidence.")
    canary: float = about("Share of failed requests, median latency, shift of the outputs, or share that differs.")
    baseline: float = about("The same of the baseline.")
    values: int = about("Requests to the canary with such a value.")
    against: float = about("Evidence that the canary is worse, as e-value. The mean of all kinds decides.")
    in_favour: float | None = about(
        "The same that it does less than the harm. Each kind decides that can speak for it."
    )
    note: str = about("The reason why nothing could be compared.")


@dataclass(frozen=True)
class Verdict:
    """The verdict after a look.

    Args:
        value: ``go`` to the next share of the traffic, ``back``, or ``not yet``.
        share: Share of the traffic that the canary is to get now; 0 for a shadow deployment, whatever the verdict.
        final: True if the rollout has ended.
        reason: A sentence.
        requests_needed: Estimate of the requests to the canary that are missing for ``go``; none after it.
        requests: Requests to the canary so far.
        against: Evidence against the canary, as e-value: a mean of all kinds.
        parts: Evidence of each kind.
    """

    value: Literal["go", "back", "not yet"]
    share: float
    final: bool
    reason: str
    requests_needed: int
    requests: int
    against: float
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Look:
    """The evidence after one look, for a picture."""

    requests: int
    share: float
    against: float
    in_favour: float


@dataclass
class Rollout:
    """A canary or shadow deployment under test: batches in, verdicts out.

    The same batches give the same verdicts, so that a rollout that was killed goes on from its log.

    >>> rollout = Rollout(Canary(steps=(0.5,)))
    >>> from dagster_mlops.serving.rollout_verdict.observations import Arm
    >>> rollout.look(Batch(canary=Arm(requests=50, errors=50), baseline=Arm(requests=50))).value
    'back'
    """

    options: Canary | Shadow
    history: list[Look] = field(default_factory=list, init=False)
    step: int = field(default=0, init=False)
    requests: int = field(default=0, init=False)
    seconds: float = field(default=0.0, init=False)
    verdict: Verdict | None = field(default=None, init=False)
    _before_step: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        options = self.options
        if isinstance(options, Canary):
            self._shares = (*options.steps, 1.0)
            # The harm to all users is the harm to the canary's, times their share.
            self._margins = tuple(1 / share for share in self._shares[1:])
        else:
            self._shares, self._margins = (0.0, 0.0), (1.0,)
        kinds: list[Evidence] = [Errors(options.more_errors, self._margins)]
        if options.slowdown is not None:
            kinds.append(Latency(options.slowdown, options.tolerated_slowdown, options.grace, self._margins))
        if isinstance(options, Shadow):
            kinds.append(Differences(options.tolerance, options.tolerated_differences, options.differences))
        elif options.output_shift is not None:
            kinds.append(Outputs(options.output_shift))
        self._kinds = kinds

    @property
    def share(self) -> float:
        """Share of the traffic that the canary is to get."""
        return self.verdict.share if self.verdict else self._shares[0]

    def look(self, batch: Batch) -> Verdict:
        """The verdict after one more batch. A final one stays."""
        if self.verdict and self.verdict.final:
            return self.verdict
        for kind in self._kinds:
            kind.add(batch, self.requests)
        self.requests += batch.canary.requests
        self.seconds += batch.seconds if batch.seconds > 0 else 0.0  # unless the clock was set back
        margin = self._margins[self.step]
        parts = self._parts(margin)
        weights = [kind.weight for kind in self._kinds]
        against = sum(w * part.against for w, part in zip(weights, parts, strict=True)) / sum(weights)
        in_favour = min(math.inf if part.in_favour is None else part.in_favour for part in parts)
        self.history.append(Look(self.requests, self.share, against, in_favour))
        self.verdict = self._verdict(against, in_favour, parts)
        return self.verdict

    def _verdict(self, against: float, in_favour: float, parts: tuple[Part, ...]) -> Verdict:
        options, last_step = self.options, self.step == len(self._margins) - 1
        missing = [f"{part.kind}: {part.note}" for part in parts if part.note]
        needed = 0

        def verdict(value: Literal["go", "back", "not yet"], share: float, final: bool, reason: str) -> Verdict:
            return Verdict(value, share, final, reason, needed, self.requests, against, parts)

        if against >= 1 / options.error_rate:
            worst = max(parts, key=lambda part: part.against)
            return verdict(
                BACK, 0.0, True,
                f"the {options.kind} is worse by its {worst.kind}: {worst.canary:.4g} against {worst.baseline:.4g} "
                f"(e-value {against:.3g}, {1 / options.error_rate:g} or more shows it)",
            )  # fmt: skip
        # Whatever earlier shares have shown, one without any traffic shows nothing.
        if in_favour >= 1 / options.miss_rate and self.requests > self._before_step and not missing:
            if not last_step:
                for kind in self._kinds:
                    kind.drop(self._margins[self.step])
            self.step, self._before_step = self.step + 1, self.requests
            size = "the stated size" if last_step else f"{self._margins[self.step - 1]:g} times the stated size"
            reason = f"harm of {size} is excluded"
            return verdict(GO, self._shares[self.step], last_step, reason)
        if self.requests >= options.max_requests or self.seconds >= options.max_seconds:
            why = "; ".join(missing) or self._undecided(parts)
            return verdict(
                BACK, 0.0, True,
                f"undecided after {self.requests} requests to the canary in {self.seconds:.0f} s: {why}",
            )  # fmt: skip
        needed = self._needed(parts)
        reason = "; ".join(missing) or f"about {needed} more requests to the canary are needed"
        return verdict(NOT_YET, self.share, False, reason)

    def _undecided(self, parts: Sequence[Part]) -> str:
        """The kinds of harm that may be there or not, with advice where the baseline's own failures hide one."""
        left = [part for part in parts if part.in_favour is not None and part.in_favour < 1 / self.options.miss_rate]
        if not left:
            return "there was no request at this share"
        reason = f"neither harm nor its absence was shown by its {' and '.join(part.kind for part in left)}"
        failures = next((part.baseline for part in left if part.kind == Errors.name), 0.0)
        advice = f"; {failures:.1%} of the baseline's requests fail, too, so raise more_errors or max_requests"
        return reason + (advice if failures > 0 else "")

    def _parts(self, margin: float) -> tuple[Part, ...]:
        parts = []
        for kind in self._kinds:
            facts, in_favour = kind.facts(), kind.in_favour(margin)
            values = (_number(kind.against()), None if in_favour == math.inf else _number(in_favour))
            parts.append(
                Part(kind.name, facts["canary"], facts["baseline"], int(facts["values"]), *values, kind.missing())
            )
        return tuple(parts)

    def _needed(self, parts: Sequence[Part]) -> int:
        """Requests until the slowest kind has its evidence, if that grows as it did."""
        target, left = math.log(1 / self.options.miss_rate), self.options.max_requests - self.requests
        needed = [1.0]
        for part in parts:
            reached = target if part.in_favour is None else math.log(max(part.in_favour, 1e-300))
            if reached >= target:
                continue
            if part.kind == Errors.name and reached <= 0 and not part.canary > part.baseline:
                needed.append(target / (self._margins[self.step] * self.options.more_errors))
            elif reached > 0:
                needed.append((target - reached) / reached * part.values)
            elif (until_trend := self.options.grace + _TREND - self.requests) > 0:
                needed.append(until_trend)
            else:
                return max(left, 1)
        return max(1, min(left, math.ceil(max(needed))))


def _number(log_value: float) -> float:
    return math.exp(min(log_value, 690.0))
