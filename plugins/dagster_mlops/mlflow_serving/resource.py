"""Packages for MLflow's scoring server: where they are kept, and how one is served."""

import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from dagster_mlops.core.environment import matching_variables
from dagster_mlops.core.extras import extra
from dagster_mlops.core.model_loading import load_stored
from dagster_mlops.core.resources import LoadsModels
from dagster_mlops.errors import DeploymentError, ModelVersionError
from dagster_mlops.provenance import Package, mask_credentials
from dagster_mlops.serving import Server, ServerSettings
from dagster_mlops.serving.golden.golden_set import Golden, score_golden
from dagster_mlops.serving.packager import refuse
from dagster_mlops.tools import StoredModel

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.pyfunc import PyFuncModel


# Settings of the server, but not MLFLOW_TRACKING_TOKEN and its like: it serves from a folder.
_SERVER = ("MLFLOW_SCORING_SERVER_*", "MLFLOW_LOGGING_*", "MLFLOW_CONFIGURE_LOGGING", "UVICORN_*")


class MlflowServingResource(LoadsModels):
    """MLflow's scoring server over models of an MLflow registry.

    resources = {
        "mlflow_serving": MlflowServingResource(home="state/packages", tracking_uri="sqlite:///state/mlflow.db")
    }
    """

    home: str = Field(description="Folder of the packages; made if it is not there.")
    tracking_uri: str = Field(description="The MLflow tracking URI whose registry the models come from.")
    server_environment: list[str] = Field(
        default=[],
        description="Names of the worker's variables that a served model gets, such as DATABASE_URL or AWS_*. Of the "
        "others it gets what any program needs to run, and the settings of MLflow's scoring server.",
    )

    @property
    def home_dir(self) -> Path:
        """`home` as an absolute path."""
        return Path(self.home).expanduser().resolve()

    def client(self) -> "MlflowClient":
        """MLflow's own client of `tracking_uri`."""
        return extra("mlflow", extra="mlflow_serving").MlflowClient(tracking_uri=self.tracking_uri)

    def download(self, name: str, version: str, folder: Path) -> Path:
        """Copy a registered version below `folder`: the folder of its MLmodel file.

        Raises:
            DeploymentError: the registry does not have it, or cannot be asked.
        """
        mlflow = extra("mlflow", extra="mlflow_serving")
        uri = f"models:/{name}/{version}"
        before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
        mlflow.set_tracking_uri(self.tracking_uri)  # `tracking_uri=` of the download does not reach the registry
        try:
            path = mlflow.artifacts.download_artifacts(uri, dst_path=str(folder))
        except (OSError, mlflow.exceptions.MlflowException) as error:
            place = mask_credentials(self.tracking_uri)
            raise DeploymentError(f"{uri} cannot be loaded from {place}: {mask_credentials(str(error))}") from error
        finally:
            mlflow.set_tracking_uri(before)
        return Path(path)

    def server(self, package: Package, port: int) -> Server:
        """MLflow's scoring server over a package; see :class:`dagster_mlops.serving.Packages`."""
        return self.tuned_server(package, port, ServerSettings())

    def tuned_server(self, package: Package, port: int, settings: ServerSettings) -> Server:
        """The same with settings; MLflow's server has none for threads."""
        refuse(self, threads=settings.threads)
        folder = Path(package.home) / package.tag.replace(":", "/")
        app = ["scoring_app:app", "--app-dir", str(folder), "--host", "127.0.0.1", "--port", str(port)]
        workers = ["--workers", str(settings.workers)] if settings.workers else []
        timeout = {"MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT": f"{settings.timeout:.0f}"} if settings.timeout else {}
        return Server(
            command=[sys.executable, "-m", "uvicorn", *app, *workers, "--no-access-log"],
            environment={**timeout, **matching_variables(*_SERVER, *self.server_environment)},
            readiness="/ping",
            route="/invocations",
            rows_field="dataframe_records",
        )

    def golden(self, package: Package, frame: "pd.DataFrame", rows: int) -> Golden:
        """Rows and what the registry's model predicts for them; see :class:`dagster_mlops.serving.Packages`."""
        name = f"{package.model_name}/{package.model_version}"

        def fetch(place: Path) -> StoredModel:
            folder = self.download(package.model_name, package.model_version, place / "model")
            return self.stored(folder, package.model(self.tracking_uri))

        try:
            model = load_stored(fetch, pyfunc=True).model
        except ModelVersionError as error:
            raise DeploymentError(f"{name} cannot be loaded: {error}") from error
        return score_golden(model, name, frame, rows, outputs=_as_served)

    def alias_version(self, model_name: str, alias: str) -> str | None:
        """The version that the registry's alias is on; see :class:`dagster_mlops.serving.Packages`."""
        missing = extra("mlflow.exceptions", extra="mlflow_serving").MlflowException
        try:
            return str(self.client().get_model_version_by_alias(model_name, alias).version)
        except missing:
            return None


def _as_served(model: "PyFuncModel", features: "pd.DataFrame") -> list[Any]:
    """Predictions in the JSON that MLflow's scoring server makes of them."""
    answer = io.StringIO()
    extra("mlflow.pyfunc.scoring_server", extra="mlflow_serving").predictions_to_json(model.predict(features), answer)
    return json.loads(answer.getvalue())["predictions"]
