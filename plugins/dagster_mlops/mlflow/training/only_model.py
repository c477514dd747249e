"""The one model of a training run: no second one, complete, and with the hash of its files."""

import tempfile
from collections.abc import Collection, Sequence

import dagster as dg

from dagster_mlops.core.model_digest import model_digest
from dagster_mlops.core.model_loading import DIGEST, REGISTERED_DIGEST
from dagster_mlops.errors import TrainingRunError
from dagster_mlops.mlflow.lazy import LoggedModel, MlflowClient, Run, mlflow
from dagster_mlops.mlflow.resource import Tracking
from dagster_mlops.mlflow.runs import lookup as runs
from dagster_mlops.mlflow.server.client import artifact_store, stored_folder

_ONE_MODEL = "a training run logs exactly one model"
_HOW = (
    'Call mlflow.<flavor>.log_model(model, name="model", signature=…, input_example=…) once, in the run that is open '
    "when the function begins; with autolog, set log_models=False; log the models of a search in nested runs. To log "
    "several and choose one, write training_asset(…, several_models=True) and return it."
)
# MLflow takes about 11 s to infer a model's requirements, and half a second to log the model itself.
_SLOW_LOG_MODEL_S = 8.0


def refuse_second(tracking: Tracking, run: Run, before: Collection[str], run_id: str | None) -> None:
    """Refuse a model in the run that has one, unless that was not stored completely.

    Raises:
        TrainingRunError: it has one.
    """
    if run_id != run.info.run_id:
        return
    ready = [
        m for m in runs.logged_models(tracking.client, run) if str(m.status) == "READY" and m.model_id not in before
    ]
    if ready:
        raise TrainingRunError(
            f"{_ONE_MODEL}, this one logged 2: {ready[0].name} ({ready[0].model_id}) and another. {_HOW}"
        )


def only_model(
    context: dg.AssetExecutionContext, logged: Sequence[LoggedModel], tracking_uri: str, choice: str
) -> LoggedModel:
    """The one model of the run, or the one with the id `choice`, with signature and input example.

    Raises:
        TrainingRunError: there is none, or several, or it is incomplete.
    """
    ready = [m for m in logged if str(m.status) == "READY" and choice in ("", m.model_id)]
    if len(ready) != 1:
        names = ", ".join(f"{model.name} ({model.model_id})" for model in ready) or "none"
        raise TrainingRunError(
            f"{_ONE_MODEL}, this one logged {len(ready)}: {names}. {_HOW}"
            + (f" The function returned {choice}, which this run has not logged." if choice else "")
        )
    [model] = ready
    # By its location: with its id, MLflow would request the location from the server once more.
    store = artifact_store(model.artifact_location, tracking_uri)
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


def seal(client: MlflowClient, model: LoggedModel) -> str:
    """The hash of a model's files, which becomes a tag of one that MLflow's own function has logged.

    The files of one in another store are downloaded for it, once.
    """
    if sha256 := model.tags.get(DIGEST) or model.tags.get(REGISTERED_DIGEST, ""):
        return sha256
    with tempfile.TemporaryDirectory(prefix="dagster-mlops-") as scratch:
        sha256 = model_digest(stored_folder(model.artifact_location, scratch, client.tracking_uri))
    client.set_logged_model_tags(model.model_id, {REGISTERED_DIGEST: sha256})
    return sha256
