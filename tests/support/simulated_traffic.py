"""Requests to two deployments behind a proxy that sends each to one of them at random: simulated, with faults."""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.signal import lfilter

from dagster_mlops.serving.rollout_verdict.observations import Arm, Batch
from dagster_mlops.serving.rollout_verdict.options import Canary, Shadow
from dagster_mlops.serving.rollout_verdict.rollout import Rollout, Verdict

DAY = 86_400.0


@dataclass(frozen=True)
class Traffic:
    """A world for rollouts: what both deployments do, and the fault of the canary.

    Args:
        rate: Requests a second, of both deployments.
        wave: Part by which rate, errors, latency and outputs go up and down in a day, all with the hour.
        errors: Share of requests that fail in both deployments.
        outages: Share of the seconds in which half of the requests fail in both deployments.
        spread: Standard deviation of the logarithm of latencies.
        heavy_tail: Share of requests whose latency is that of Pareto's law with exponent 1.1: no mean worth the name.
        shared_memory: Autocorrelation of latencies from request to request, of both deployments together (load).
        memory: The same of each deployment alone (garbage collection, a neighbour), at `memory_size` of the spread.
        cold: Times by which the canary is slower at first; falls by half in each `cold_requests` of its requests.
        crash: Share of inputs on which the canary fails.
        slowdown: Part by which the canary is slower.
        wrong: Share of inputs on which the canary's output is a constant.
    """

    rate: float = 50.0
    wave: float = 0.0
    errors: float = 0.0
    outages: float = 0.0
    spread: float = 0.5
    heavy_tail: float = 0.0
    shared_memory: float = 0.0
    memory: float = 0.0
    memory_size: float = 0.5
    cold: float = 0.0
    cold_requests: float = 25.0
    crash: float = 0.0
    slowdown: float = 0.0
    wrong: float = 0.0
    output_noise: float = 0.0

    def outcomes(self, random: np.random.Generator, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Failures, latencies and outputs that both deployments would give at these times."""
        size, hour = len(seconds), np.sin(2 * math.pi * seconds / DAY)
        chance = self.errors * (1 + self.wave * hour)
        if self.outages:
            out = np.sin(seconds * 12.9898 // 1) * 43758.5453 % 1 < self.outages
            chance = np.where(out, 0.5, chance)
        noise = random.normal(size=size) * self.spread
        latencies = 20 * np.exp(noise + self.wave * hour)
        tail = random.random(size) < self.heavy_tail
        latencies[tail] *= 1 + random.pareto(1.1, tail.sum())
        outputs = random.beta(2, 5, size) + 0.2 * self.wave * hour
        return random.random(size) < chance, latencies, outputs


@dataclass
class Ended:
    """The end of a simulated rollout: the verdict, all requests, and the users that a fault hit."""

    verdict: Verdict
    requests: int
    hit: int
    seconds: float


class HasShare(Protocol):
    """A rollout, or whatever else knows the canary's share of the traffic."""

    @property
    def share(self) -> float: ...


class Process:
    """First-order autocorrelation with standard deviation 1, which goes on from call to call."""

    def __init__(self, random: np.random.Generator, memory: float) -> None:
        self.random, self.memory, self.state = random, memory, random.normal()

    def values(self, size: int) -> np.ndarray:
        steps = self.random.normal(size=size) * math.sqrt(1 - self.memory**2)
        result, _ = lfilter([1.0], [1.0, -self.memory], steps, zi=[self.memory * self.state])
        self.state = float(result[-1]) if size else self.state
        return result


def canary_batches(rollout: HasShare, traffic: Traffic, random: np.random.Generator, *, looks: float = 20.0):
    """Batches in which the canary gets about `looks` requests at the rollout's share, their size, and users hit."""
    clock, served = random.uniform(0, DAY), 0
    load, noises = Process(random, traffic.shared_memory), [Process(random, traffic.memory) for _ in range(2)]
    while True:
        share = rollout.share
        seconds = max(1.0, looks / share / traffic.rate)
        size = random.poisson(traffic.rate * seconds * (1 + traffic.wave * math.sin(2 * math.pi * clock / DAY)))
        times = clock + np.sort(random.uniform(0, seconds, size))
        failures, latencies, outputs = traffic.outcomes(random, times)
        if traffic.shared_memory:
            latencies *= np.exp(0.5 * traffic.spread * load.values(size))
        to_canary = random.random(size) < share
        arms, hit = [], 0
        for of_canary, mask, noise in zip((True, False), (to_canary, ~to_canary), noises, strict=True):
            failed, times_taken, given = failures[mask], latencies[mask], outputs[mask].copy()
            count = len(failed)
            if traffic.memory:
                times_taken = times_taken * np.exp(traffic.memory_size * traffic.spread * noise.values(count))
            if of_canary:
                crash, wrong = random.random(count) < traffic.crash, random.random(count) < traffic.wrong
                age = served + np.arange(count)
                times_taken = (
                    times_taken * (1 + traffic.slowdown) * (1 + traffic.cold * 0.5 ** (age / traffic.cold_requests))
                )
                given[wrong] = 0.5
                failed = failed | crash
                hit = int((crash | wrong).sum()) if not traffic.slowdown + traffic.cold else count
                served += count
            arms.append(Arm(count, int(failed.sum()), times_taken[~failed], given[~failed].tolist()))
        clock += seconds
        yield Batch(arms[0], arms[1], seconds), size, hit


def roll_out(options: Canary, traffic: Traffic, random: np.random.Generator, *, looks: float = 20.0) -> Ended:
    """A canary rollout to its end."""
    rollout, requests, hits, seconds = Rollout(options), 0, 0, 0.0
    for batch, size, hit in canary_batches(rollout, traffic, random, looks=looks):
        verdict = rollout.look(batch)
        requests, hits, seconds = requests + size, hits + hit, seconds + batch.seconds
        if verdict.final:
            return Ended(verdict, requests, hits, seconds)
    raise AssertionError


def shadow(options: Shadow, traffic: Traffic, random: np.random.Generator, *, looks: int = 5) -> Ended:
    """A shadow deployment to its end."""
    rollout, clock, requests = Rollout(options), random.uniform(0, DAY), 0
    while True:
        times = clock + np.arange(looks) / traffic.rate
        failures, latencies, outputs = traffic.outcomes(random, times)
        others = latencies * np.exp(0.3 * traffic.spread * random.normal(size=looks)) * (1 + traffic.slowdown)
        crash, wrong = random.random(looks) < traffic.crash, random.random(looks) < traffic.wrong
        answers = np.where(wrong, 0.5, outputs + traffic.output_noise * random.normal(size=looks))
        failed = failures | crash
        pairs = [(float(a), float(b)) for a, b in zip(answers[~failed], outputs[~failed], strict=True)]
        batch = Batch(
            Arm(looks, int(failed.sum()), others[~failed]),
            Arm(looks, int(failures.sum()), latencies[~failures]),
            looks / traffic.rate,
            pairs,
        )
        verdict = rollout.look(batch)
        requests, clock = requests + looks, clock + looks / traffic.rate
        if verdict.final:
            return Ended(verdict, requests, 0, requests / traffic.rate)
