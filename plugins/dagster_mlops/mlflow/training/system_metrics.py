"""A training's use of the machine: in MLflow's system metrics while it runs, in Dagster afterwards."""

import importlib.util
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dagster_mlops.core.extras import extra
from dagster_mlops.mlflow.lazy import MlflowClient, entities
from dagster_mlops.provenance import mask_credentials

_SAMPLE_S, _POINT_S, _SEND_S = 1.0, 10.0, 30.0  # seconds: between samples, points of a curve, requests


@contextmanager
def watched(client: MlflowClient, run_id: str) -> Iterator[Callable[[], dict[str, float]]]:
    """Watch the machine while the block runs. The function that is yielded returns, afterwards, what the block used.

    A sample is taken each second, a point of the curves is the mean of ten, and three points are sent at once: one
    request in 30 s, and none in a training of less than 10 s.
    """
    if importlib.util.find_spec("psutil") is None:
        yield dict
        return
    watch = _Watch(client, run_id)
    thread = threading.Thread(target=watch.run, name="dagster-mlops-system-metrics", daemon=True)
    thread.start()
    try:
        yield watch.summary
    finally:
        watch.ended.set()
        thread.join(_SEND_S)


class _Watch:
    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client, self.run_id, self.ended = client, run_id, threading.Event()
        self.process = extra("psutil", extra="mlflow").Process()
        self.began, self.cpu_before, self.peak_before = time.monotonic(), _cpu_seconds(), _peak_memory()
        self.peak_memory = self.process.memory_info().rss / 1e6
        self.gpu: dict[str, list[float]] = {}
        self.points: list[tuple[int, dict[str, float]]] = []

    def run(self) -> None:
        try:
            self._sample(_monitors())
        except Exception as error:  # noqa: BLE001 - whatever a driver or the system raises, the training continues
            reason = mask_credentials(f"{type(error).__name__}: {error}")
            logging.getLogger(__name__).warning("the machine is no longer watched: %s", reason)

    def _sample(self, monitors: list[Any]) -> None:
        point_at, send_at, step = self.began + _POINT_S, self.began + _SEND_S, 0
        while not self.ended.wait(_SAMPLE_S):
            for monitor in monitors:
                monitor.collect_metrics()
            self.peak_memory = max(self.peak_memory, self.process.memory_info().rss / 1e6)
            clock = time.monotonic()
            if clock >= point_at:
                self._point(monitors)
                point_at = clock + _POINT_S
            if clock >= send_at:
                step = self._send(step)
                send_at = clock + _SEND_S
        self._keep_gpu(monitors)  # the samples after the last point
        if self.points:
            self._send(step)

    def summary(self) -> dict[str, float]:
        """Peak memory of the process in MB; use of the cores and the GPUs in percent."""
        peak = _peak_memory()
        seconds = max(time.monotonic() - self.began, 1e-6)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # The system's own peak includes what lies between two samples, if it was reached in this block at all.
        usage = {
            "mlflow/peak_memory_mb": peak if peak > self.peak_before else self.peak_memory,
            "mlflow/cpu_percent": 100 * (_cpu_seconds() - self.cpu_before) / seconds / cores,
        }
        for name, values in self.gpu.items():
            if name.endswith("utilization_percentage"):
                usage[f"mlflow/{name.removesuffix('_utilization_percentage')}_percent"] = sum(values) / len(values)
            elif name.endswith("memory_usage_megabytes"):
                usage[f"mlflow/{name.removesuffix('_memory_usage_megabytes')}_peak_memory_mb"] = max(values)
        return {name: round(value, 1) for name, value in usage.items()}

    def _keep_gpu(self, monitors: list[Any]) -> None:
        for monitor in monitors:
            for name, values in monitor.metrics.items():
                if name.startswith("gpu_"):
                    self.gpu.setdefault(name, []).extend(values)

    def _point(self, monitors: list[Any]) -> None:
        self._keep_gpu(monitors)
        point: dict[str, float] = {}
        for monitor in monitors:
            point.update(monitor.aggregate_metrics())
            monitor.clear_metrics()
        self.points.append((int(time.time() * 1000), point))

    def _send(self, step: int) -> int:
        batch = [
            entities.Metric(f"system/{name}", value, at, step + number)
            for number, (at, point) in enumerate(self.points)
            for name, value in point.items()
        ]
        try:
            self.client.log_batch(self.run_id, metrics=batch)
        except Exception as error:  # noqa: BLE001 - whatever the server or the network does, the training continues
            logging.getLogger(__name__).warning("system metrics could not be logged: %s", type(error).__name__)
        sent, self.points = len(self.points), []
        return step + sent


def _monitors() -> list[Any]:
    """MLflow's monitors, for its names. Its own thread requests the run at every sample, so this module has another."""
    metrics = "mlflow.system_metrics.metrics"
    monitors = [
        extra(f"{metrics}.cpu_monitor").CPUMonitor(),
        extra(f"{metrics}.disk_monitor").DiskMonitor(),
        extra(f"{metrics}.network_monitor").NetworkMonitor(),
    ]
    try:
        monitors.append(extra(f"{metrics}.gpu_monitor").GPUMonitor())
    except Exception:  # no driver, no GPU, no nvidia-ml-py: each has its own error
        logging.getLogger(__name__).debug("no GPU is watched", exc_info=True)
    return monitors


def _cpu_seconds() -> float:
    """CPU time of this process and its ended children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _peak_memory() -> float:
    """Peak memory of this process since its start, in MB; 0 where the system has no such figure."""
    if sys.platform == "win32":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3
