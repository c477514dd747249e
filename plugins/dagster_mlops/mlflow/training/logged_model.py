"""The model that a training function has logged: exactly one, with signature and input example."""

import tempfile
from collections.abc import Sequence

import dagster as dg

from dagster_mlops.errors import TrainingRunError
from dagster_mlops.mlflow.lazy import LoggedModel, mlflow

# MLflow takes about 11 s to infer a model's requirements, and half a second to log the model itself.
_SLOW_LOG_MODEL_S = 8.0


def the_model(context: dg.AssetExecutionContext, logged: "Sequence[LoggedModel]", tracking_uri: str) -> "LoggedModel":
    """The one model of the run, with signature and input example.

    Raises:
        TrainingRunError: there is none, or several, or it is incomplete.
    """
    ready = [model for model in logged if str(model.status) == "READY"]
    if len(ready) != 1:
        names = ", ".join(f"{model.name} ({model.model_id})" for model in ready) or "none"
        raise TrainingRunError(
            f"a training run logs exactly one model, this one logged {len(ready)}: {names}. Call mlflow.<flavor>."
            'log_model(model, name="model", signature=…, input_example=…) once, in the run that is open when the '
            "function begins; with autolog, set log_models=False; log the models of a search in nested runs."
        )
    [model] = ready
    # By its location: with its id, MLflow would request the location from the server once more.
    store = mlflow.store.artifact.artifact_repository_registry.get_artifact_repository(
        model.artifact_location, tracking_uri
    )
    with tempfile.TemporaryDirectory(prefix="dagster-mlops-") as scratch:
        info = mlflow.models.Model.load(store.download_artifacts("MLmodel", scratch))
    missing = [
        *([] if info.signature else ["signature=infer_signature(X, predictions)"]),
        *([] if info.saved_input_example_info else ["input_example=X.head(3)"]),
    ]
    if missing:
        raise TrainingRunError(
            f"model {model.name} ({model.model_id}) cannot be served safely: it does not say how its input looks. "
            f"Add {' and '.join(missing)} to log_model."
        )
    seconds = (model.last_updated_timestamp - model.creation_timestamp) / 1000
    if seconds > _SLOW_LOG_MODEL_S:
        context.log.warning(
            f"log_model took {seconds:.1f} s. Without pip_requirements=[…], MLflow needs 11 s to infer them; "
            "dagster_mlops.mlflow.models.log_model finds them at once."
        )
    return model
