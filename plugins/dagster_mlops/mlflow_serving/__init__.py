"""Registered models served by MLflow's own scoring server, behind the same rollout as a bento."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.mlflow_serving.assets import scoring_package_asset as scoring_package_asset
    from dagster_mlops.mlflow_serving.resource import MlflowServingResource as MlflowServingResource

__getattr__, __dir__ = lazy_door(__name__)
