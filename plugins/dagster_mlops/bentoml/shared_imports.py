"""The imports of the generic service, which one process makes for all replicas of a deployment."""

import json
from pathlib import Path

import yaml

from dagster_mlops.bentoml import library_settings
from dagster_mlops.bentoml.tool import facts_file
from dagster_mlops.core.inside import inside
from dagster_mlops.errors import DeploymentError
from dagster_mlops.provenance import Package

# Starts no thread and opens no file or connection when it is imported. Not `prometheus_client`, which reads then where
# its files are: each replica has a folder of its own.
_SERVER = (
    "_bentoml_impl.worker.service",
    "_bentoml_impl.server.app",
    "opentelemetry.instrumentation.asgi",
    "uvicorn.loops.auto",
    "uvicorn.protocols.http.auto",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.protocols.websockets.auto",
    "uvicorn.lifespan.on",
    "uvloop",
    "msgspec",
    "orjson",
    "pandas",
    "mlflow.pyfunc",
)
# By MLflow's name of the library that loads a model. Others are imported with the model.
_LIBRARIES = {
    "mlflow.sklearn": ("mlflow.sklearn", "sklearn.ensemble", "sklearn.compose", "sklearn.linear_model"),
    "mlflow.xgboost": ("mlflow.xgboost", "xgboost"),
    "mlflow.lightgbm": ("mlflow.lightgbm", "lightgbm"),
    "mlflow.catboost": ("mlflow.catboost", "catboost"),
}


def shared_imports(package: Package) -> list[str]:
    """The modules that the replicas of a bento of the generic service share; none for a service of the user's own."""
    file = facts_file(package)
    facts = json.loads(file.read_text()) if file.exists() else {}
    if not facts.get("generic_service"):
        return []
    models = Path(package.home) / "models"
    model = inside(models, f"{facts['model'].replace(':', '/')}/mlflow_model/MLmodel", error=DeploymentError)
    flavors = (yaml.safe_load(model.read_text()) if model.exists() else {}).get("flavors", {})
    loader = flavors.get("python_function", {}).get("loader_module", "")
    return [
        f"{library_settings.__name__}:{library_settings.use_one_thread.__name__}",
        *_SERVER,
        *_LIBRARIES.get(loader, ()),
    ]
