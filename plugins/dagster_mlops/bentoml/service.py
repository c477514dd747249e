"""A BentoML service for any MLflow model with a signature, which logs every prediction."""

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

# In a bento these stand beside this file; `bento_asset` rewrites the import.
from dagster_mlops.core.model_digest import changed, model_digest
from dagster_mlops.serving.runtime import Attempts, PredictionLog
from dagster_mlops.serving.runtime.app import PredictionApp
from dagster_mlops.serving.runtime.examples import examples_of
from dagster_mlops.serving.runtime.limits import Limits
from dagster_mlops.serving.runtime.lookup import load_lookup
from dagster_mlops.serving.runtime.metrics import request_metrics
from dagster_mlops.serving.runtime.watchdog import watch

if TYPE_CHECKING:
    import bentoml

_logger = logging.getLogger("bentoml.dagster_mlops")


def mlflow_service(bento: str | Path, *, limits: Limits | None = None, **config: Any) -> "bentoml.Service[Any]":
    """The service that a bento exposes; `config` is BentoML's own service configuration.

    `bento` is the file ``dagster_mlops.json`` which :func:`dagster_mlops.bentoml.bento_asset` puts into the bento. The
    service file of a bento is three lines:

        from pathlib import Path
        from dagster_mlops_serving.service import mlflow_service

        service = mlflow_service(Path(__file__).with_name("dagster_mlops.json"))

    ``POST /predict`` takes ``{"rows": [{feature: value, …}, …], "ids": [optional id per row]}``, or a stream of Arrow
    record batches. Each row is logged under its own request id: from ``ids``, else the ``X-Request-ID`` header (or a
    new UUID) for a single row, and ``<request id>/<n>`` counted from 0 for several. The answer holds ``request_id``,
    ``ids``, ``predictions``, ``model`` and ``deployment``. Ids and rows that do not fit get 400, rows that the model
    refuses 422, and rows too large for the log 413, with the reason in ``error``; they are not logged. A prediction
    that cannot be logged is not answered. ``GET /openapi.json`` describes the features.

    A bento with a lookup also takes ``{"entities": [{key: value, …}, …]}``, and reads their features itself.

    `limits` say what a request may cost; ``DAGSTER_MLOPS_LIMITS``, a JSON object of the same names, overrides them.
    """
    import bentoml

    facts = json.loads(Path(bento).read_text())
    limits = (limits or Limits()).changed_by(os.environ.get("DAGSTER_MLOPS_LIMITS", ""))
    deployment = os.environ.get("DAGSTER_MLOPS_DEPLOYMENT", "")
    app: Any = PredictionApp(limits)  # an ASGI app, in other words than BentoML's types

    defaults = {
        "workers": 1,
        # The app has limits of its own, which come first. BentoML's would count clients that are still sending, and
        # leave the work of requests that timed out running: https://github.com/bentoml/BentoML/issues/5642
        "traffic": {"timeout": limits.timeout + limits.body_timeout + 60, "max_concurrency": None},
        "logging": {"access": {"enabled": False}},
        # The app counts requests by model version, with less work for each than BentoML's three layers.
        "metrics": {"enabled": False},
        "tracing": {"excluded_urls": "predict"},
    }

    @bentoml.asgi_app(app)
    @bentoml.service(**{"name": facts["name"], **defaults, **config})
    class MlflowService:
        front = staticmethod(app.before)  # for a server that lets the app come before BentoML's layers

        def __init__(self) -> None:
            # BentoML answers /readyz only after this returns: unchanged, loaded, and warm.
            folder = bentoml.models.get(facts["model"]).path_of("mlflow_model")
            if problem := changed(model_digest(Path(folder)), facts["sha256"]):
                raise RuntimeError(f"{facts['model']}: {problem} Nothing is served until the bento is built again.")
            sys.dont_write_bytecode = True  # of code that the model brings: it would be another file beside it
            os.environ.update(facts.get("environment", {}))  # with which it was judged that loading it runs no code
            # The order of an array's columns is that of the signature, which `Scorer` has compared.
            warnings.filterwarnings("ignore", "X does not have valid feature names")
            # For a row or a few, more threads of OpenMP wait for each other longer than one computes.
            os.environ.setdefault("OMP_NUM_THREADS", "1")
            import mlflow

            # A comparison of the installed packages with those that were logged takes a fifth of the start. The golden
            # rows have shown that the predictions are the same.
            model = mlflow.pyfunc.load_model(str(folder), suppress_warnings=True)
            version = {"model_name": facts["model_name"], "model_version": facts["model_version"]}
            log_facts = {"bento": facts["tag"], **version}
            app.observe = request_metrics(**version, deployment=deployment)
            scorer = app.serve(
                model,
                name=f"{facts['model_name']}/{facts['model_version']}",
                deployment=deployment,
                log=PredictionLog.from_environment(**log_facts),
                mirrored_log=lambda: PredictionLog.from_environment(mirrored=True, **log_facts),
                probe=os.environ.get("DAGSTER_MLOPS_PROBE", ""),
                examples=examples_of(model, Path(folder)),
                lookup=load_lookup(facts["lookup"]) if facts.get("lookup") else None,
                attempts=Attempts.from_environment(),
            )
            together = "rows of waiting requests together" if scorer.joins else "each request alone"
            _logger.info("%s is asked by its %s, %s", facts["model"], scorer.way, together)
            watch(app.longest_call, limits.timeout)

        async def __is_ready__(self) -> bool:
            return app.is_ready()

    return MlflowService
