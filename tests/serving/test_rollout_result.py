"""A rollout on whatever sends the requests, and its verdict as Dagster shows it."""

import logging
from collections.abc import Iterator

import dagster as dg
import numpy as np
import pytest

from dagster_mlops.serving import Arm, Batch, Canary, Rollout, Shadow, rollout_check_result, run_rollout
from dagster_mlops.serving.rollout_verdict import result
from tests.support.simulated_traffic import Traffic, canary_batches

LOG = logging.getLogger(__name__)
OPTIONS = Canary(steps=(0.1, 0.5), slowdown=None, output_shift=None)


class InMemory:
    """Traffic that is only simulated, and that remembers its shifts."""

    def __init__(self, traffic: Traffic) -> None:
        self.shares: list[float] = []
        self.mirrors: list[bool] = []
        self.batches: Iterator[Batch] = (batch for batch, *_ in canary_batches(self, traffic, np.random.default_rng(1)))

    @property
    def share(self) -> float:
        return self.shares[-1]

    def shift(self, share: float) -> None:
        self.shares.append(share)

    def mirror(self, mirrored: bool) -> None:
        self.mirrors.append(mirrored)

    def observations(self) -> Batch:
        return next(self.batches)


def test_traffic_follows_the_verdicts():
    good, faulty = InMemory(Traffic()), InMemory(Traffic(crash=0.2))
    assert run_rollout(rollout=Rollout(OPTIONS), traffic=good, log=LOG).value == "go"
    assert good.shares == [0.1, 0.5, 1.0]
    assert run_rollout(rollout=Rollout(OPTIONS), traffic=faulty, log=LOG).value == "back"
    assert faulty.shares == [0.1, 0.0]
    assert good.mirrors == [False]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_rollout_that_breaks_off_takes_the_canary_out(error):
    traffic = InMemory(Traffic())

    def no_observations() -> Iterator[Batch]:
        raise error
        yield

    traffic.batches = no_observations()
    with pytest.raises(error):
        run_rollout(rollout=Rollout(OPTIONS), traffic=traffic, log=LOG)
    assert traffic.shares == [0.1, 0.0]


def test_a_shadow_gets_copies_and_never_traffic():
    traffic = InMemory(Traffic())
    batch = Batch(Arm(20), Arm(20), pairs=[(1.0, 1.0)] * 20)
    traffic.batches = iter([batch] * 100)
    assert run_rollout(rollout=Rollout(Shadow(slowdown=None)), traffic=traffic, log=LOG).value == "go"
    assert (set(traffic.shares), traffic.mirrors) == ({0.0}, [True, False])


def _looked_at(*batches: Batch) -> Rollout:
    rollout = Rollout(Canary(steps=(0.1, 0.5)))
    for batch in batches:
        rollout.look(batch)
    return rollout


def _number(evaluation: dg.AssetCheckResult, key: str) -> object:
    return getattr(evaluation.metadata[key], "value", evaluation.metadata[key])


def test_a_verdict_is_a_check_with_numbers_a_table_and_a_picture():
    going = [Batch(Arm(20, 0, [1.0] * 20, [0.1, 0.2] * 10), Arm(180, 0, [1.0] * 180, [0.1, 0.2] * 90), 4.0)] * 3
    waiting = rollout_check_result(rollout=_looked_at(*going))
    assert (waiting.passed, waiting.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert (waiting.description or "").startswith("not yet: ")
    assert [_number(waiting, f"rollout/{name}") for name in ("share", "requests", "seconds")] == [0.1, 60.0, 12.0]
    back = rollout_check_result(rollout=_looked_at(*going, Batch(Arm(20, 20), Arm(180))))
    assert (back.passed, back.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert (_number(back, "rollout/errors/canary"), _number(back, "rollout/errors/baseline")) == (0.25, 0.0)
    evidence = back.metadata["rollout/evidence"]
    assert isinstance(evidence, dg.TableMetadataValue)
    assert [record.data["kind"] for record in evidence.records] == ["errors", "latency", "outputs"]
    assert "data:image/png;base64," in str(_number(back, "rollout/figure"))
    assert "rollout/latency/canary" not in back.metadata  # nothing was measured after the grace


def test_a_verdict_without_its_picture_is_still_one(monkeypatch):
    def broken(_: Rollout) -> None:
        raise RuntimeError("no fonts")

    monkeypatch.setattr(result, "_figure", broken)
    back = rollout_check_result(rollout=_looked_at(Batch(Arm(20, 20), Arm(180))))
    assert _number(back, "rollout/figure") == "Evidence is not drawn: `RuntimeError: no fonts`"
    assert not back.passed


def test_a_rollout_that_was_not_looked_at_has_no_result():
    with pytest.raises(ValueError, match=r"no verdict yet. Give it a batch first: rollout.look\(batch\)."):
        rollout_check_result(rollout=Rollout(OPTIONS))
