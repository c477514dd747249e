"""Bentos built from registered models, deployments that prove themselves, and a log of every prediction."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.bentoml.assets import bento_asset
    from dagster_mlops.bentoml.component import BentoDeploymentComponent
    from dagster_mlops.bentoml.deployment import deployment_asset, deployment_health_check
    from dagster_mlops.bentoml.resource import BentomlResource
    from dagster_mlops.serving import PredictionLog, deployment_health_sensor

__all__ = [
    "BentoDeploymentComponent",
    "BentomlResource",
    "PredictionLog",
    "bento_asset",
    "deployment_asset",
    "deployment_health_check",
    "deployment_health_sensor",
]

__getattr__, __dir__ = lazy_door(__name__)
