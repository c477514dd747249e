"""Bentos built from registered models, deployments that prove themselves, and a log of every prediction."""

from dagster_mlops.bentoml.assets import bento_asset
from dagster_mlops.bentoml.deployment import deployment_asset
from dagster_mlops.bentoml.resource import BentomlResource
from dagster_mlops.bentoml.serving import PredictionLog

__all__ = ["BentomlResource", "PredictionLog", "bento_asset", "deployment_asset"]
