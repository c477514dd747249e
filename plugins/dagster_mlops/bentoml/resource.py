"""The bento and model stores of one BENTOML_HOME, and the MLflow registry that its models come from."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from dagster_mlops.bentoml import upstream
from dagster_mlops.bentoml.shared_imports import shared_imports
from dagster_mlops.bentoml.tool import facts_file, is_one_process
from dagster_mlops.core.arrays import pd
from dagster_mlops.core.environment import STORES, child_environment, matching_variables
from dagster_mlops.core.extras import LazyModule
from dagster_mlops.core.files import STATE, own_folder
from dagster_mlops.core.resources import LoadsModels
from dagster_mlops.errors import DeploymentError, ModelVersionError
from dagster_mlops.provenance import Package, mask_credentials

if TYPE_CHECKING:
    import mlflow.artifacts

    from dagster_mlops.bentoml.upstream import BentoStore, ModelStore
    from dagster_mlops.serving.golden.golden_set import Golden
    from dagster_mlops.serving.packager import Server, ServerSettings
    from dagster_mlops.tools import StoredModel
else:
    mlflow = LazyModule("mlflow", extra="bentoml")


# Of the worker's environment: by these MLflow's registry and artifacts are reached.
_REGISTRY = ("MLFLOW_*", "DATABRICKS_*", "PG*", "MYSQL_*", *STORES)


class BentomlResource(LoadsModels):
    """Hands out BentoML's own stores, and the environment in which a BentoML process sees them.

    BentoML reads ``BENTOML_HOME`` once per process. A Dagster process may serve several homes and should not have its
    environment changed, so stores are opened by path, and whatever BentoML does on its own (build, serve) happens in a
    child process. A build gets the credentials of the registry and its artifacts, a server none unless you name them.

        resources = {"bentoml": BentomlResource(home="state/bentoml", tracking_uri="sqlite:///state/mlflow.db")}
        resources["bentoml"].bentos().list()
    """

    home: str = Field(
        default=f"{STATE}/bentoml",
        description="The BENTOML_HOME that holds bentos and models; made if it is not there.",
    )
    tracking_uri: str = Field(description="The MLflow tracking URI whose registry the models come from.")
    build_timeout: float = Field(default=600, description="Seconds a model import and bento build may take.")
    server_environment: list[str] = Field(
        default=[],
        description="Names of the worker's variables that a served model and its build get, such as DATABASE_URL or "
        "AWS_*. Of the others they get what any program needs to run, and BENTOML_*.",
    )

    @property
    def home_dir(self) -> Path:
        """`home` as an absolute path."""
        return Path(self.home).expanduser().resolve()

    def bentos(self) -> "BentoStore":
        """BentoML's bento store of `home`."""
        return upstream.bento_store(self._store("bentos"))

    def models(self) -> "ModelStore":
        """BentoML's model store of `home`."""
        return upstream.model_store(self._store("models"))

    def build_environment(self) -> dict[str, str]:
        """The environment of a process that builds a bento: it reaches `tracking_uri`, and works in `home`."""
        registry = {"MLFLOW_TRACKING_URI": self.tracking_uri}
        return {**child_environment(*_REGISTRY), **self._server_environment(self.home_dir), **registry}

    def _server_environment(self, home: Path | str) -> dict[str, str]:
        variables = matching_variables("BENTOML_*", *self.server_environment)
        return {**variables, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}

    def mlflow_client(self) -> "mlflow.MlflowClient":
        """MLflow's own client of `tracking_uri`."""
        return mlflow.MlflowClient(tracking_uri=self.tracking_uri)

    @contextlib.contextmanager
    def registry(self) -> Iterator[None]:
        """Within it, ``models:/name/version`` is a model of `tracking_uri`; MLflow's own setting is put back after."""
        before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
        mlflow.set_tracking_uri(self.tracking_uri)
        try:
            yield
        finally:
            mlflow.set_tracking_uri(before)  # pyright: ignore[reportArgumentType]

    def server(self, package: Package, port: int) -> "Server":
        """BentoML's own server of a bento; see :class:`dagster_mlops.serving.Packages`."""
        from dagster_mlops.serving.packager import ServerSettings  # for steps, not for code locations

        return self.tuned_server(package, port, ServerSettings())

    def tuned_server(self, package: Package, port: int, settings: "ServerSettings") -> "Server":
        """The same with settings, which take the place of those of the bento's service.

        BentoML has none for workers: a bento of one service is one process, and ``replicas=`` are more of them.
        """
        from dagster_mlops.serving.copies import PACKAGE  # for steps, not for code locations
        from dagster_mlops.serving.packager import Server, refuse

        refuse(self, workers=settings.workers)
        preload: list[str] = []
        threads = {"threads": settings.threads} if settings.threads else {}
        bento = Path(package.home) / "bentos" / package.tag.replace(":", "/")
        if is_one_process(bento):
            traffic = {"timeout": settings.timeout} if settings.timeout else {}
            config = json.dumps({**threads, "traffic": traffic})
            command = [sys.executable, "-P", "-m", upstream.__name__, package.tag, str(port), config]
            preload = shared_imports(package)
        else:
            refuse(self, threads=settings.threads)
            serve = ["serve", package.tag, "--host", "127.0.0.1", "--port", str(port)]
            command = [sys.executable, "-m", "bentoml", *serve]
        # The generic service gives up before Envoy does, so that what was not answered is not logged.
        limits = {**({"timeout": 0.9 * settings.timeout} if settings.timeout else {}), **threads}
        if settings.request_bytes:
            limits["body_bytes"] = settings.request_bytes
        environment = {**self._server_environment(package.home), "DAGSTER_MLOPS_LIMITS": json.dumps(limits)}
        # Only the generic service, of a bento that was built by a version with this file.
        knows_attempts = bool(preload) and (bento / "src" / PACKAGE / "attempts.py").exists()
        return Server(command=command, environment=environment, preload=preload, refuses_repeats=knows_attempts)

    def golden(self, package: Package, frame: "pd.DataFrame", rows: int) -> "Golden":
        """Rows of `frame` and what the registry's model predicts for them; see :class:`dagster_mlops.serving.Packages`.

        Raises:
            DeploymentError: the model cannot be loaded or scored, or the frame is empty or lacks a feature.
        """
        from dagster_mlops.core.model_loading import load_stored  # for steps, not for code locations
        from dagster_mlops.serving.golden.entities import with_entities
        from dagster_mlops.serving.golden.golden_set import score_golden

        model_uri = f"models:/{package.model_name}/{package.model_version}"

        def fetch(place: Path) -> "StoredModel":
            with self.registry():
                folder = mlflow.artifacts.download_artifacts(artifact_uri=model_uri, dst_path=str(place))
            return self.stored(Path(folder), package.model(self.tracking_uri))

        try:
            model = load_stored(fetch, pyfunc=True).model
        except (OSError, ValueError, ModelVersionError, mlflow.MlflowException) as error:
            place = mask_credentials(self.tracking_uri)
            raise DeploymentError(f"{model_uri} cannot be loaded from {place}: {error}") from error
        golden = score_golden(model, model_uri, frame, rows)
        file = facts_file(package)
        lookup = json.loads(file.read_text()).get("lookup") if file.exists() else None
        return with_entities(golden, lookup, model, frame) if lookup else golden

    def alias_version(self, model_name: str, alias: str) -> str | None:
        """The version that the registry's alias is on; see :class:`dagster_mlops.serving.Packages`."""
        try:
            return str(self.mlflow_client().get_model_version_by_alias(model_name, alias).version)
        except mlflow.MlflowException:
            return None

    def _store(self, name: str) -> Path:
        path = own_folder(self.home_dir) / name
        path.mkdir(exist_ok=True)
        return path
