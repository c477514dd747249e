"""Counts and latencies of requests for Prometheus, by model version."""

import os
from collections.abc import Callable
from functools import cache

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


def request_metrics(*, model_name: str, model_version: str, deployment: str) -> Callable[[int, float, int], None]:
    """A function that counts a request of a status, its seconds and its rows."""
    # Now, and not before: BentoML tells prometheus_client where its workers share their numbers when a worker starts.
    from prometheus_client import Counter, Histogram

    labels = {"model_name": model_name, "model_version": model_version, "deployment": deployment}
    requests = Counter("dagster_mlops_requests", "Requests for predictions", [*labels, "status"])
    rows = Counter("dagster_mlops_rows", "Rows that were predicted", list(labels)).labels(**labels)
    seconds = Histogram("dagster_mlops_request_seconds", "Seconds of a request", list(labels), buckets=_SECONDS)
    duration = seconds.labels(**labels)
    of_status = cache(lambda status: requests.labels(**labels, status=str(status)))

    def observe(status: int, elapsed: float, count: int) -> None:
        of_status(status).inc()
        duration.observe(elapsed)
        if count and status == 200:
            rows.inc(count)

    return observe


def metrics_text() -> bytes:
    """The text that Prometheus reads, of all workers of this server."""
    from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return generate_latest(registry)
