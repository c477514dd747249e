"""Models in MLflow: how they are logged in safe formats, verified and loaded."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.core.model_loading import LoadedModel as LoadedModel
    from dagster_mlops.mlflow.models.log import FittedModel as FittedModel
    from dagster_mlops.mlflow.models.log import log_model as log_model
    from dagster_mlops.mlflow.registry.models import find_version as find_version
    from dagster_mlops.mlflow.registry.models import load_version as load_version

__getattr__, __dir__ = lazy_door(__name__)
