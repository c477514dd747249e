"""The verdict on a canary or a shadow deployment: never more false rollbacks than asked for, and faults found."""

import itertools
import math
from collections import Counter
from typing import Any

import dagster as dg
import numpy as np
import pytest
from scipy import stats

from dagster_mlops.serving import Answer, AnswerLog, Arm, Batch, Canary, Counters, Rollout, Shadow
from dagster_mlops.serving.rollout_verdict import e_values
from tests.support.simulated_traffic import Traffic, roll_out, shadow

ERRORS_ONLY = Canary(steps=(0.5,), slowdown=None, output_shift=None)


# Bets


@pytest.mark.parametrize("log_odds", [[0.0, 0.0, 5.0], [-2.0, 0.0, 2.0], [7.0, 0.0, -1.0]])
def test_no_bet_on_who_answered_wins_on_average(log_odds):
    pool, drawn = np.array([6, 4, 2]), 5
    mean, ways = 0.0, math.comb(12, drawn)
    for canary in itertools.product(*(range(count + 1) for count in pool)):
        if sum(canary) == drawn:
            chance = math.prod(map(math.comb, pool, canary)) / ways
            mean += chance * math.exp(e_values.exchangeable(pool, np.array(canary), np.array([log_odds]))[0])
    assert mean == pytest.approx(1)


@pytest.mark.parametrize("above", [True, False])
@pytest.mark.parametrize(("of_baseline", "margin"), [(0.0, 0.1), (0.05, 0.1), (0.4, 0.1), (0.4, 0.0)])
def test_no_bet_on_two_shares_wins_on_average(of_baseline, margin, above):
    of_canary, canary, baseline = of_baseline + margin, 6, 9
    chances = (of_baseline, of_baseline) if above else (0.9, of_baseline + 0.01)
    mean = sum(
        stats.binom.pmf(x, canary, of_canary)
        * stats.binom.pmf(y, baseline, of_baseline)
        * math.exp(e_values.shares((x, canary), (y, baseline), chances, margin=margin, above=above))
        for x in range(canary + 1)
        for y in range(baseline + 1)
    )
    assert mean <= 1 + 1e-9


def test_a_bet_that_is_right_wins():
    assert e_values.shares((0, 500), (0, 500), (0.001, 0.001), margin=0.01, above=True) > math.log(50)
    assert e_values.shares((400, 500), (0, 500), (0.8, 0.01), margin=0.2, above=False) > math.log(1e6)


# Simulated rollouts


def _ends(options, traffic, count, **looks):
    run: Any = shadow if isinstance(options, Shadow) else roll_out
    return [run(options, traffic, np.random.default_rng([3, number]), **looks) for number in range(count)]


def _backs(ends):
    return sum(ended.verdict.value == "back" for ended in ends)


def test_a_deployment_that_is_no_worse_goes_on():
    ends = _ends(ERRORS_ONLY, Traffic(errors=0.002), 10, looks=40)
    assert _backs(ends) == 0
    assert _backs(_ends(Canary(steps=(0.1, 0.5)), Traffic(wave=0.5), 2)) == 0


@pytest.mark.parametrize(
    ("options", "traffic", "within"),
    [
        (Canary(), Traffic(crash=0.05), 200),
        (ERRORS_ONLY, Traffic(crash=0.01), 1500),
        (Canary(steps=(0.1, 0.5), grace=0), Traffic(slowdown=0.2, spread=0.3), 500),
        (Canary(steps=(0.1, 0.5)), Traffic(wrong=1.0), 100),
        (Shadow(), Traffic(wrong=1.0), 50),
        (Shadow(), Traffic(wrong=0.2), 50),
    ],
)
def test_a_fault_is_found(options, traffic, within):
    ends = _ends(options, traffic, 2)
    assert _backs(ends) == 2
    assert max(ended.verdict.requests for ended in ends) <= within


def test_a_cold_canary_goes_on_if_it_heals_within_its_grace_and_goes_back_if_it_does_not():
    options = Canary(steps=(0.5,))
    assert _backs(_ends(options, Traffic(cold=3), 2)) == 0
    assert _backs(_ends(options, Traffic(cold=3, cold_requests=1e9), 2)) == 2
    assert _backs(_ends(Canary(steps=(0.5,), grace=0), Traffic(cold=3, cold_requests=100), 2)) == 2


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("options", "traffic"),
    [
        (Canary(steps=(0.1,)), Traffic()),
        (Canary(steps=(0.1, 0.5)), Traffic(wave=0.5, errors=0.002, shared_memory=0.95)),
        (Canary(steps=(0.5,)), Traffic(memory=0.9)),
        (Canary(steps=(0.1,)), Traffic(heavy_tail=0.05, outages=0.01)),
        (Canary(steps=(0.5,)), Traffic(cold=3)),
    ],
)
def test_one_rollout_in_a_hundred_goes_back_without_reason_at_most(options, traffic):
    reasons = Counter(ended.verdict.reason for ended in _ends(options, traffic, 100) if ended.verdict.value == "back")
    assert reasons.total() <= 1, reasons


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("options", "traffic", "within"),
    [
        (Canary(), Traffic(crash=0.01), 1500),
        (Canary(), Traffic(crash=0.05), 200),
        (Canary(grace=0), Traffic(slowdown=0.2, spread=0.3), 500),
        (Shadow(), Traffic(wrong=0.2), 50),
    ],
)
def test_nineteen_faults_in_twenty_are_found_in_time(options, traffic, within):
    ends = _ends(options, traffic, 60)
    in_time = [ended for ended in ends if ended.verdict.value == "back" and ended.verdict.requests <= within]
    assert len(in_time) >= 57


# Data that is not as it should be


def _rollout(*batches, options=None):
    rollout = Rollout(options or Canary(steps=(0.5,), max_seconds=1000))
    return [rollout.look(batch) for batch in batches]


def _good(requests=100, **more):
    random = np.random.default_rng(5)
    values = {"latencies": random.lognormal(size=requests).tolist(), "outputs": random.random(requests).tolist()}
    return Arm(requests, **{**values, **more})


def test_a_baseline_without_errors_does_not_hide_those_of_the_canary():
    """https://github.com/spinnaker/kayenta/issues/377"""
    *_, verdict = _rollout(*[Batch(Arm(20, 5), Arm(180, 0))] * 3)
    assert (verdict.value, verdict.share, verdict.final) == ("back", 0.0, True)
    assert verdict.reason.startswith("the canary is worse by its errors: 0.25 against 0")


@pytest.mark.parametrize("options", [Canary(steps=(0.5,), max_seconds=1000), ERRORS_ONLY, Canary(steps=(0.001, 0.002))])
def test_a_canary_without_traffic_never_goes_on(options):
    verdicts = _rollout(*[Batch(baseline=_good(), seconds=10)] * 50, options=options)
    assert {verdict.value for verdict in verdicts} == {"not yet"}
    assert "the canary has no requests" in verdicts[-1].reason
    (verdict,) = _rollout(Batch(baseline=_good(), seconds=1e6), options=options)
    assert (verdict.value, verdict.final) == ("back", True)
    assert verdict.reason.startswith("undecided after 0 requests to the canary in 1000000 s: errors: the canary has no")


def test_what_is_undecided_names_the_kind_and_the_baselines_failures_that_hide_it():
    rollout = Rollout(Canary(steps=(0.5,), slowdown=None, max_requests=1000))
    while not (
        verdict := rollout.look(Batch(Arm(100, 20, outputs=[1.0] * 100), Arm(100, 20, outputs=[1.0] * 100)))
    ).final:
        pass
    assert verdict.value == "back" and verdict.reason.endswith(
        "neither harm nor its absence was shown by its errors; 20.0% of the baseline's requests fail, too, so raise "
        "more_errors or max_requests"
    )
    rollout = Rollout(Canary(steps=(0.2, 0.5), slowdown=None, output_shift=None, max_seconds=10))
    while rollout.look(Batch(Arm(3000), Arm(12_000), seconds=1)).share == 0.2:
        pass
    assert rollout.look(Batch(baseline=Arm(800), seconds=10)).reason.endswith("there was no request at this share")


def test_a_share_without_traffic_is_not_passed_on_what_earlier_shares_have_shown():
    rollout = Rollout(Canary(steps=(0.1, 0.5), slowdown=None, output_shift=None))
    assert rollout.look(Batch(Arm(2000), Arm(18_000))).share == 0.5
    assert rollout.look(Batch(baseline=Arm(1000))).value == "not yet"
    verdict = rollout.look(Batch(Arm(1), Arm(1)))
    assert (verdict.value, verdict.share, verdict.final) == ("go", 1.0, True)


def test_a_baseline_without_traffic_is_not_a_comparison():
    verdicts = _rollout(*[Batch(canary=_good(), seconds=1)] * 20)
    assert {verdict.value for verdict in verdicts} == {"not yet"}
    assert "the baseline has no requests" in verdicts[-1].reason


def test_a_canary_within_its_grace_says_how_much_of_it_is_left():
    [*_, verdict] = _rollout(*[Batch(_good(), _good(), seconds=1)] * 2, options=Canary(grace=5 * _good().requests))
    assert f"after the grace ({2 * _good().requests} of its {5 * _good().requests} requests so far)" in verdict.reason


@pytest.mark.parametrize("bad", [math.nan, -3.0])
def test_latencies_that_are_none_are_no_evidence_and_are_named(bad):
    arm = _good(latencies=[bad] * 100)
    verdicts = _rollout(*[Batch(arm, _good(), seconds=10)] * 30)
    assert {verdict.value for verdict in verdicts} == {"not yet"}
    assert (
        "no latencies of both deployments after the grace (3000 are not a number, or negative)" in verdicts[-1].reason
    )


def test_a_timeout_is_a_latency_and_a_prediction_that_is_not_a_number_a_prediction():
    slow = _good(latencies=[math.inf, 1.0] * 50)
    *_, verdict = _rollout(*[Batch(slow, _good())] * 10)
    assert verdict.reason.startswith("the canary is worse by its latency")
    *_, verdict = _rollout(*[Batch(_good(outputs=[math.nan] * 100), _good())] * 3)
    assert verdict.reason.startswith("the canary is worse by its outputs")


def test_counters_that_go_backwards_are_those_of_a_new_process():
    counters = Counters()
    counters.growth({"requests": 1000, "errors": 3})
    assert counters.growth({"requests": 10, "errors": 1}) == {"requests": 10, "errors": 1}
    with pytest.raises(ValueError, match="errors=-2 is not a number of requests since the last look"):
        Arm(10, -2)


def test_errors_that_are_counted_before_their_requests_wait_for_these():
    *_, verdict = _rollout(Batch(Arm(10, 12), Arm(10)), Batch(Arm(10, 8), Arm(10)))
    assert verdict.value == "back"
    (errors, *_) = verdict.parts
    assert (errors.canary, errors.baseline) == (1.0, 0.0)


def test_a_clock_that_is_set_back_does_not_end_a_rollout_sooner_or_later():
    seconds = [400, -86_400, math.nan, 400, 400]
    verdicts = _rollout(*[Batch(_good(1), _good(), seconds=value) for value in seconds])
    assert [verdict.final for verdict in verdicts] == [False] * 4 + [True]


def test_rows_that_are_read_twice_count_once_and_pairs_meet_across_batches():
    log = AnswerLog(canary="new", baseline="old")
    first = log.batch([Answer("a", "old", output=1.0), Answer("a", "old", output=1.0), Answer("b", "other")])
    assert (first.baseline.requests, first.canary.requests, list(first.pairs)) == (1, 0, [])
    second = log.batch([Answer("a", "new", output=2.0), Answer("c", "new", failed=True), Answer("a", "new")])
    assert (second.canary.requests, second.canary.errors, list(second.pairs)) == (2, 1, [(2.0, 1.0)])


def test_the_same_batches_give_the_same_verdicts_and_a_final_one_stays():
    batches = [Batch(_good(50), _good(50))] * 4 + [Batch(Arm(50, 50), Arm(50))] * 2
    verdicts = _rollout(*batches)
    assert verdicts == _rollout(*batches)
    assert [verdict.value for verdict in verdicts[-2:]] == ["back", "back"]
    assert verdicts[-1] is verdicts[-2]


def test_an_estimate_of_the_requests_needed_falls_to_the_verdict():
    verdicts = _rollout(*[Batch(Arm(50), Arm(50))] * 12, options=ERRORS_ONLY)
    needed = [verdict.requests_needed for verdict in verdicts if verdict.value == "not yet"]
    assert needed == sorted(needed, reverse=True)
    assert 300 < needed[0] < 700
    assert verdicts[-1].value == "go"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (lambda: Canary(error_rate=1.5), "Canary: error_rate=1.5 is not between 0 and 1."),
        (lambda: Canary(error_rate="1%"), "Canary: error_rate='1%' is not a number."),  # type: ignore[arg-type]
        (lambda: Canary(steps=(0.5, 0.1)), r"steps=\(0.5, 0.1\) are not growing shares between 0 and 1"),
        (lambda: Canary(steps=(0.1, 1.0)), "are not growing shares between 0 and 1"),
        (lambda: Canary(steps=()), "are not growing shares"),
        (lambda: Canary(slowdown=0.05), "slowdown=0.05 is not above tolerated_slowdown=0.05"),
        (lambda: Canary(max_requests=50), "max_requests=50 is not above grace=100"),
        (lambda: Shadow(differences=0.001), "differences=0.001 is not between tolerated_differences=0.01"),
        (lambda: Shadow(tolerance=-1), "tolerance=-1 is below 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, error):
    with pytest.raises(dg.DagsterInvalidDefinitionError, match=error):
        options()
