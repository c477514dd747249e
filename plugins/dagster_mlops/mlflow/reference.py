"""The reference distribution of a version in MLflow's registry."""

from dagster_mlops.core.arrays import pd
from dagster_mlops.evaluation import reference
from dagster_mlops.mlflow.resource import MlflowResource


def load_reference(model: str, *, mlflow: MlflowResource) -> "pd.DataFrame":
    """The reference distribution that belongs to a version, ``name/version`` or ``name@alias``.

        champion = load_reference("arrival_delay@champion", mlflow=MlflowResource(tracking_uri="http://mlflow:5000"))

    Raises:
        ModelVersionError: there is no such version, it has no reference, or the artifact is gone or was changed.
        TrackingError: MLflow cannot be asked.
    """
    return reference.load_reference(model, registry=mlflow)
