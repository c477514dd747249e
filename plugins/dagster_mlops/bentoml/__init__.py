"""Bentos built from registered models, deployments that prove themselves, and a log of every prediction."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.bentoml.assets import bento_asset as bento_asset
    from dagster_mlops.bentoml.component import BentoDeploymentComponent as BentoDeploymentComponent
    from dagster_mlops.bentoml.deployment import deployment_asset as deployment_asset
    from dagster_mlops.bentoml.deployment import deployment_health_check as deployment_health_check
    from dagster_mlops.bentoml.resource import BentomlResource as BentomlResource
    from dagster_mlops.serving import Access as Access
    from dagster_mlops.serving import BatchPredictionsComponent as BatchPredictionsComponent
    from dagster_mlops.serving import FeedbackComponent as FeedbackComponent
    from dagster_mlops.serving import LogRules as LogRules
    from dagster_mlops.serving import PredictionLog as PredictionLog
    from dagster_mlops.serving import batch_predictions_asset as batch_predictions_asset
    from dagster_mlops.serving import deployment_health_sensor as deployment_health_sensor
    from dagster_mlops.serving import feedback_asset as feedback_asset

__getattr__, __dir__ = lazy_door(__name__)
