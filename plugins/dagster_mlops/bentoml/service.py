"""A BentoML service for any MLflow model with a signature, which logs every prediction."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

# In a bento these stand beside this file; `bento_asset` rewrites the import.
from dagster_mlops.core.model_digest import changed, model_digest
from dagster_mlops.serving.runtime import (
    PredictionLog,
    RowTooLarge,
    checked_id,
    features_of,
    ids_of_rows,
    outputs_of,
    records_of,
    signature_inputs,
)

if TYPE_CHECKING:
    import bentoml

_logger = logging.getLogger("bentoml.dagster_mlops")


def mlflow_service(bento: str | Path, **config: Any) -> "bentoml.Service[Any]":
    """The service that a bento exposes; `config` is BentoML's own service configuration.

    `bento` is the file ``dagster_mlops.json`` which :func:`dagster_mlops.bentoml.bento_asset` puts into the bento. The
    service file of a bento is three lines:

        from pathlib import Path
        from dagster_mlops_serving.service import mlflow_service

        service = mlflow_service(Path(__file__).with_name("dagster_mlops.json"))

    ``POST /predict`` takes ``{"rows": [{feature: value, …}, …], "ids": [optional id per row]}``. Each row is logged
    under its own request id: from ``ids``, else the ``X-Request-ID`` header (or a new UUID) for a single row, and
    ``<request id>/<n>`` counted from 0 for several. The answer holds ``request_id``, ``ids``, ``predictions``,
    ``model`` and ``deployment``. Ids and rows that do not fit get 400, rows that the model refuses 422, and rows too
    large for the log 413, with the reason in ``error``; they are not logged. A prediction that cannot be logged is not
    answered.
    """
    import bentoml

    facts = json.loads(Path(bento).read_text())

    defaults = {
        "workers": 1,
        "threads": 4,  # BentoML runs synchronous APIs on one thread per worker by default
        "traffic": {"timeout": 30, "max_concurrency": 256},
        "logging": {"access": {"enabled": False}},
    }

    @bentoml.service(**{"name": facts["name"], **defaults, **config})
    class MlflowService:
        def __init__(self) -> None:
            # BentoML answers /readyz only after this returns: unchanged, loaded, and warm.
            folder = bentoml.models.get(facts["model"]).path_of("mlflow_model")
            if problem := changed(model_digest(Path(folder)), facts["sha256"]):
                raise RuntimeError(f"{facts['model']}: {problem} Nothing is served until the bento is built again.")
            sys.dont_write_bytecode = True  # of code that the model brings: it would be another file beside it
            os.environ.update(facts.get("environment", {}))  # with which it was judged that loading it runs no code
            self.model = bentoml.mlflow.load_model(facts["model"])
            signature_inputs(self.model)
            self.log = PredictionLog.from_environment(
                bento=facts["tag"], model_name=facts["model_name"], model_version=facts["model_version"]
            )
            self.deployment = os.environ.get("DAGSTER_MLOPS_DEPLOYMENT", "")
            self.probe = os.environ.get("DAGSTER_MLOPS_PROBE", "")
            example = self.model.metadata.load_input_example(folder)
            if example is None:
                _logger.warning("%s has no input example, so it is ready without a warm-up", facts["model"])
            else:
                outputs_of(self.model, example)

        @bentoml.api(route="/predict")
        def predict(
            self, ctx: bentoml.Context, rows: list[dict[str, Any]], ids: list[str] | None = None
        ) -> dict[str, Any]:
            ctx.response.headers["X-Deployment"] = self.deployment
            request_id = ""
            try:
                request_id = checked_id(ctx.request.headers.get("x-request-id"))
                ctx.response.headers["X-Request-ID"] = request_id
                row_ids = ids_of_rows(request_id, rows, ids)
                features = features_of(self.model, rows)
            except ValueError as error:
                ctx.response.status_code = 400
                return {"request_id": request_id, "error": str(error)}
            try:
                outputs = outputs_of(self.model, features)
            except ValueError as error:
                ctx.response.status_code = 422
                return {"request_id": request_id, "error": f"the model refuses these rows: {error}"}
            # Golden rows and probes of the deployer are no production traffic; they prove themselves by a secret.
            probing = self.probe and ctx.request.headers.get("x-probe") == self.probe
            if self.log and not probing:
                try:
                    self.log.write(inputs=records_of(features), outputs=outputs, request_ids=row_ids)
                except RowTooLarge as error:
                    ctx.response.status_code = 413
                    return {"request_id": request_id, "error": str(error)}
            return {
                "request_id": request_id,
                "ids": row_ids,
                "predictions": outputs,
                "model": f"{facts['model_name']}/{facts['model_version']}",
                "deployment": self.deployment,
            }

    return MlflowService
