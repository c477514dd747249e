"""Rollouts of packaged models behind Envoy: state, processes, traffic and golden sets, whatever tool packages them."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.serving.asset import deployment_asset
    from dagster_mlops.serving.checks import deployment_health_check
    from dagster_mlops.serving.overview import status, stop
    from dagster_mlops.serving.packager import Packages, Server
    from dagster_mlops.serving.runtime import PredictionLog
    from dagster_mlops.serving.sensors import deployment_health_sensor

__all__ = [
    "Packages",
    "PredictionLog",
    "Server",
    "deployment_asset",
    "deployment_health_check",
    "deployment_health_sensor",
    "status",
    "stop",
]

__getattr__, __dir__ = lazy_door(__name__)
