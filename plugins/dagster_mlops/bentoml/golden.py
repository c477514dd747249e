"""The golden set of a registered model: rows of a dataframe, and what the registry's model predicts for them."""

from typing import TYPE_CHECKING

from dagster_mlops.bentoml.resource import BentomlResource
from dagster_mlops.bentoml.serving.scoring import outputs_of, records_of, signature_inputs
from dagster_mlops.core.extras import extra
from dagster_mlops.errors import DeploymentError
from dagster_mlops.serving.golden_set import Golden

if TYPE_CHECKING:
    import pandas as pd


def golden_from(resource: BentomlResource, model_uri: str, frame: "pd.DataFrame", rows: int) -> Golden:
    """Score up to `rows` rows of `frame`, evenly spread, with the registry's model; other columns are left out.

    Raises:
        DeploymentError: the model cannot be loaded or scored, or the frame is empty or lacks a feature.
    """
    mlflow = extra("mlflow", extra="bentoml")
    if not hasattr(frame, "columns") or not len(frame):
        raise DeploymentError(
            f"the golden set is {type(frame).__name__} with {len(frame) if hasattr(frame, '__len__') else 'no'} rows; "
            "it must be a dataframe with at least one. A partitioned asset needs an unpartitioned golden set beside it."
        )
    try:
        with resource.registry():
            model = mlflow.pyfunc.load_model(model_uri)
        names = signature_inputs(model).input_names()
    except (OSError, ValueError, mlflow.exceptions.MlflowException) as error:
        raise DeploymentError(f"{model_uri} cannot be loaded from {resource.masked_uri}: {error}") from error
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise DeploymentError(
            f"the golden set lacks feature(s) {', '.join(missing)} of {model_uri}; it has {', '.join(map(str, frame))}."
        )
    step = max(1, len(frame) // rows)
    chosen = frame[names].iloc[::step].head(rows).reset_index(drop=True)
    try:
        expected = outputs_of(model, chosen)
    except mlflow.exceptions.MlflowException as error:
        raise DeploymentError(f"{model_uri} cannot score the golden set: {error}") from error
    return Golden(rows=records_of(chosen), expected=expected)
