"""Rollouts of packaged models behind Envoy: state, processes, traffic and golden sets, whatever tool packages them."""

from dagster_mlops.serving.overview import status, stop

__all__ = [
    "status",
    "stop",
]
