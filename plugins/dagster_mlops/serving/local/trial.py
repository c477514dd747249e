"""A trial on this machine: a share of the requests or a copy of each, by Envoy, until there is a verdict."""

import dataclasses
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster_mlops.core.waits import wait_while
from dagster_mlops.errors import DeploymentError
from dagster_mlops.serving.local import envoy
from dagster_mlops.serving.local.envoy_config import TRIAL, Trial
from dagster_mlops.serving.local.state import DeploymentState
from dagster_mlops.serving.local.target import LocalTarget
from dagster_mlops.serving.rollout_verdict.observations import Answer, AnswerLog, Arm, Batch, Counters
from dagster_mlops.serving.rollout_verdict.options import Canary, Shadow
from dagster_mlops.serving.rollout_verdict.rollout import Rollout, Verdict
from dagster_mlops.serving.rollout_verdict.traffic import run_rollout
from dagster_mlops.serving.runtime import PredictionLog
from dagster_mlops.serving.runtime.log.predictions import SHADOW

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = ("request_id", "timestamp", "deployment", "seconds", "output")
_COUNTERS = {
    "answers": "upstream_rq_completed",
    "refused": "upstream_rq_4xx",
    "failed": "upstream_rq_5xx",
    # Envoy closes the connection, or gives it up, of a request that times out, or whose client has hung up. The latter
    # is in none of the counters of answers.
    "closed": "upstream_cx_destroy_local_with_active_rq",
    "unsent": "upstream_rq_cancelled",
    "timeouts": "upstream_rq_timeout",
}


def run_trial(
    new: DeploymentState, current: DeploymentState, target: LocalTarget, options: Canary | Shadow, log: Logger
) -> Rollout:
    """Try a verified deployment beside the live one; its verdict is the last of the rollout that is returned.

    Each look is written to the state file of `new`. Supervisors that end meanwhile are started again.

    Raises:
        DeploymentError: Envoy sees no healthy replica of one of the two.
    """
    rollout = Rollout(options)

    def write_down(verdict: Verdict) -> None:
        facts = {"kind": options.kind, "verdict": verdict.value, "reason": verdict.reason, "share": verdict.share}
        record = dataclasses.replace(new.record, traffic=verdict.share)
        new.save(phase="trial", record=record, trial={**facts, "requests": verdict.requests})

    traffic = EnvoyTraffic(target, new, current, options.look_seconds)
    run_rollout(rollout=rollout, traffic=traffic, log=log, look=write_down)
    return rollout


class EnvoyTraffic:
    """Requests for predictions: as Envoy shares them out and counts them, and as the prediction log has the answers.

    A failed request is one that was answered with 400 or more, or whose client hung up before the answer: whatever
    clients do wrong, both deployments get alike. A mirrored one has no client, so there only answers count.
    Of the rows of one request the first counts, because the others are where they are by no chance of their own.
    """

    def __init__(self, target: LocalTarget, new: DeploymentState, current: DeploymentState, pause: float) -> None:
        self._target, self._states, self._pause = target, (new, current), pause
        self._trial = Trial(new.route)
        self._counters = Counters(), Counters()
        self._pairs = AnswerLog(_name(new), _name(current))
        self._start, self._last = datetime.now(UTC), time.monotonic()
        logs = {state.record.prediction_log for state in self._states}
        self._cursors = {folder: "" for log in logs for folder in (Path(log), Path(log, SHADOW))}
        target.shift(current, new)
        wait_while(
            self._unhealthy,
            timeout=30,
            pause=0.2,
            error=lambda ids: DeploymentError(
                f"Envoy has no healthy replica of {' and '.join(ids)}; see {target.state_dir / 'logs' / 'envoy.log'}."
            ),
        )
        self._count()

    def shift(self, share: float) -> None:
        """See :class:`~dagster_mlops.serving.rollout_verdict.traffic.Traffic`."""
        self._route(Trial(self._trial.path, share, self._trial.mirrored))

    def mirror(self, mirrored: bool) -> None:
        """See :class:`~dagster_mlops.serving.rollout_verdict.traffic.Traffic`."""
        self._route(Trial(self._trial.path, self._trial.share, mirrored))

    def observations(self) -> Batch:
        """See :class:`~dagster_mlops.serving.rollout_verdict.traffic.Traffic`."""
        time.sleep(self._pause)
        self._target.keep_up(self._states)
        before, self._last = self._last, time.monotonic()
        answers, pairs = [Arm(), Arm()], []
        for rows in self._rows():
            for number, state in enumerate(self._states):
                of_arm: Any = rows[rows["deployment"] == _name(state)]
                more = Arm(latencies=of_arm["seconds"].to_numpy(float), outputs=of_arm["output"].tolist())
                answers[number] = answers[number].with_answers(more)
            if self._trial.mirrored:
                logged = zip(rows["request_id"], rows["deployment"], rows["output"], strict=True)
                pairs += self._pairs.batch(Answer(key, by, output=output) for key, by, output in logged).pairs
        # After the log: before it, a look had fewer requests than answers, by those that came in between.
        arms = [Arm(*count).with_answers(more) for count, more in zip(self._count(), answers, strict=True)]
        return Batch(arms[0], arms[1], self._last - before, pairs)

    def _route(self, trial: Trial) -> None:
        self._trial = trial
        new, current = self._states
        self._target.shift(current, new, trial)

    def _unhealthy(self) -> list[str]:
        """The deployments of which Envoy has no healthy replica."""
        self._target.keep_up(self._states)
        folder = self._target.state_dir
        healthy = {s.id: envoy.counters(folder, f"{s.id}{TRIAL}", "membership_healthy") for s in self._states}
        return [name for name, counts in healthy.items() if not sum(counts.values())]

    def _count(self) -> list[tuple[int, int]]:
        """Requests and errors of both deployments since the last call, by Envoy's counters."""
        arms = []
        for counters, state in zip(self._counters, self._states, strict=True):
            cluster = f"cluster.{state.id}{TRIAL}"
            by_stat = envoy.counters(self._target.state_dir, f"{state.id}{TRIAL}", "|".join(_COUNTERS.values()))
            values = {name: by_stat.get(f"{cluster}.{stat}", 0) for name, stat in _COUNTERS.items()}
            growth = counters.growth(values) if by_stat else dict.fromkeys(_COUNTERS, 0)
            left = 0 if self._trial.mirrored else max(0, growth["closed"] + growth["unsent"] - growth["timeouts"])
            arms.append((growth["answers"] + left, growth["refused"] + growth["failed"] + left))
        return arms

    def _rows(self) -> "Iterator[pd.DataFrame]":
        """The first logged row of each request that was not there before."""
        for folder in self._cursors:
            before = None
            while before != (before := self._cursors[folder]):
                frame, self._cursors[folder] = PredictionLog.read_after(
                    folder, before, start=self._start, columns=_COLUMNS
                )
                # They share both: the time when they were written, and the seconds since their request came.
                yield frame.drop_duplicates(["deployment", "timestamp", "seconds"])


def _name(state: DeploymentState) -> str:
    """As the prediction log names it."""
    return f"{state.record.name}/{state.id}"
