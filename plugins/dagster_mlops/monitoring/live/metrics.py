"""The latest verdict as metrics of Prometheus, in a file that its node exporter reads.

A sensor has no server that could be scraped; the textfile collector is Prometheus' way for jobs that come and go:
https://github.com/prometheus/node_exporter#textfile-collector
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from dagster_mlops.core.extras import extra
from dagster_mlops.monitoring.live.watch import Step

PREFIX = "dagster_mlops_divergence_"


def write(path: Path, step: Step, *, asset: str, check: str, time: datetime, blind: Sequence[str]) -> None:
    """Replace the metrics of a check: how the last window was judged, and when the watch last looked.

    Raises:
        OSError: The file cannot be written.
        MissingExtraError: prometheus-client is not installed.
    """
    client: Any = extra("prometheus_client")
    metrics: list[Any] = []

    def gauge(name: str, text: str, value: float) -> None:
        # Not `Gauge`: where a library has asked for the numbers of several processes, as `import feast` does, that
        # keeps its value in a file which forks close: https://github.com/feast-dev/feast/blob/master/sdk/python/feast/metrics.py
        metric = client.Metric(f"{PREFIX}{name}", text, "gauge")
        metric.add_sample(metric.name, {"asset": asset, "check": check}, value)
        metrics.append(metric)

    progress = step.progress
    incident = progress.course.incident
    gauge("last_look_seconds", "Unix time of the last look at the prediction log", time.timestamp())
    gauge("blind", "1 while the verdicts do not cover what is served", float(bool(blind)))
    gauge("incident_open", "1 while an incident is open", float(bool(incident and not incident.recovered)))
    gauge("late_rows", "Rows that came after the verdict on their window", progress.late)
    if progress.closed:
        gauge("window_end_seconds", "Unix time of the end of the last window", progress.closed.timestamp())
    if progress.score is not None and progress.threshold is not None:
        gauge("score", "Largest score of the last window", progress.score)
        gauge("threshold", "Score from which a window is an alarm", progress.threshold)
    path.parent.mkdir(parents=True, exist_ok=True)
    registry = client.CollectorRegistry()
    registry.register(_Collector(metrics))
    client.write_to_textfile(str(path), registry)


class _Collector:
    def __init__(self, metrics: Sequence[Any]) -> None:
        self._metrics = metrics

    def collect(self) -> Sequence[Any]:
        return self._metrics
