"""The connection to an MLflow tracking server or database, and to its model registry."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dagster_mlops.core.environment import environment
from dagster_mlops.core.files import STATE
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.resources import LoadsModels
from dagster_mlops.errors import TrackingError
from dagster_mlops.mlflow import upstream
from dagster_mlops.mlflow.lazy import MlflowClient, mlflow
from dagster_mlops.mlflow.server import connection
from dagster_mlops.mlflow.server.client import EXISTS, refused, request_limits
from dagster_mlops.provenance import mask_credentials

_LOCAL_URI = f"sqlite:///{STATE}/mlflow/mlflow.db"

if TYPE_CHECKING:
    from dagster_mlops.mlflow.registry.models import MlflowModels


@lazy_dataclass(frozen=True)
class Tracking:
    """A server while MLflow is active: its client, and the experiment that runs belong to."""

    resource: "MlflowResource"
    client: MlflowClient
    experiment_id: str


class MlflowResource(LoadsModels):
    """An MLflow server or database: MLflow's own client, and the fluent API pointed at it.

        mlflow = MlflowResource(tracking_uri="sqlite:////srv/mlflow/mlflow.db", experiment="arrival_delay")
        mlflow.client().search_registered_models()

        with mlflow.activate() as client:          # mlflow.start_run() and friends go to this server in here
            ...

    Keep a URI with a password in the environment: ``tracking_uri=dg.EnvVar("MLFLOW_TRACKING_URI")``.
    """

    tracking_uri: str = Field(
        default="",
        description="A server (http…) or a database (sqlite:////absolute/path, postgresql://…). Default: the variable "
        f"MLFLOW_TRACKING_URI, else {_LOCAL_URI}, in a folder that git ignores.",
    )
    registry_uri: str | None = Field(default=None, description="The model registry, where it is not the tracking URI.")
    experiment: str = Field(default="Default", description="Experiment of training runs; created when missing.")
    artifact_location: str | None = Field(
        default=None,
        description="Where a newly created experiment keeps its artifacts, e.g. s3://bucket/mlflow. Default: what the "
        "server decides, and beside the database file for sqlite.",
    )
    ui_url: str | None = Field(default=None, description="Address of the MLflow UI for links; the server's by default.")
    dagster_url: str | None = Field(
        default=None,
        description="Address of Dagster's webserver, for links from MLflow back to Dagster; the environment variable "
        "DAGSTER_URL by default, and no links without both.",
    )
    connect_timeout: int = Field(default=5, gt=0, description="Seconds until a silent server counts as down.")
    request_timeout: int | None = Field(
        default=None,
        gt=0,
        description="Seconds for one HTTP request of a training run. Default: MLFLOW_HTTP_REQUEST_TIMEOUT, else 120.",
    )
    request_retries: int | None = Field(
        default=None,
        ge=0,
        le=10,
        description="Repeats of a failed HTTP request of a training run. Default: MLFLOW_HTTP_REQUEST_MAX_RETRIES, "
        "else 7, which takes four minutes.",
    )

    uncommitted_code: Literal["code", "all", "none"] = Field(
        default="code",
        description="The uncommitted changes that training runs keep, so that they can run again. By default, those of "
        "tracked files, and untracked files that are code by their suffix; with `all`, every small untracked file; "
        "with `none`, only their hash. What looks like a key is never kept.",
    )

    @property
    def uri(self) -> str:
        """The tracking URI, with the path of a sqlite file made absolute.

        Raises:
            TrackingError: it is a folder, which MLflow no longer serves.
        """
        uri = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or _LOCAL_URI
        if connection.is_file_store(uri):
            raise TrackingError(
                f"tracking_uri={uri!r} is a folder; MLflow keeps runs in a database or behind a server. "
                f"Write tracking_uri='sqlite:///{Path('mlflow.db').absolute()}' (`mlflow migrate-filestore` moves old "
                "runs there)."
            )
        return connection.absolute_uri(uri)

    @property
    def address(self) -> str:
        """The tracking URI without user and password, which are in the environment where this is active."""
        return connection.without_login(self.uri)[0]

    @property
    def ui(self) -> str:
        """Address of MLflow's UI without a trailing slash; empty when unknown."""
        server = mask_credentials(self.address) if self.address.startswith("http") else ""
        return (self.ui_url or server).rstrip("/")

    def client(self) -> "MlflowClient":
        """MLflow's own client, once the server has answered.

        Raises:
            TrackingError: the server or database does not answer within a few seconds, or refuses.
        """
        return connection.connect(self.uri, self.registry_uri, timeout=self.connect_timeout)

    @contextmanager
    def activate(self, experiment: str | None = None) -> Iterator[MlflowClient]:
        """Point MLflow's fluent API at this server and experiment, and restore everything at the end.

        Raises:
            TrackingError: see :meth:`client`; or the experiment was deleted.
        """
        with self.activate_experiment(experiment) as tracking:
            yield tracking.client

    @contextmanager
    def activate_experiment(self, experiment: str | None = None) -> Iterator[Tracking]:
        """Like :meth:`activate`, with the experiment's id, which is the only thing that the server is asked for."""
        experiment_ids: list[str] = []
        login = connection.without_login(self.uri)[1]
        with environment(**login):
            client = connection.connect(
                self.address,
                self.registry_uri,
                timeout=self.connect_timeout,
                probe=lambda client: experiment_ids.append(self.experiment_id(client, experiment)),
            )
        uri_before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
        registry_before = None if mlflow.get_registry_uri() == mlflow.get_tracking_uri() else mlflow.get_registry_uri()
        with environment(
            # MLflow sets these variables itself, for subprocesses.
            **{name: os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")},
            **login,
            **request_limits(timeout=self.request_timeout, retries=self.request_retries),
            MLFLOW_EXPERIMENT_ID=experiment_ids[0],
            MLFLOW_EXPERIMENT_NAME=None,
            MLFLOW_RUN_ID=None,
            MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false",
            # The end of each run would request the run once more, to print its address.
            MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true",
        ):
            try:
                mlflow.set_tracking_uri(self.address)
                if self.registry_uri:
                    mlflow.set_registry_uri(self.registry_uri)
                with upstream.active_experiment(experiment_ids[0]):
                    yield Tracking(self, client, experiment_ids[0])
            finally:
                mlflow.set_tracking_uri(uri_before)  # pyright: ignore[reportArgumentType]
                mlflow.set_registry_uri(registry_before)  # pyright: ignore[reportArgumentType]

    @contextmanager
    def models(self) -> Iterator["MlflowModels"]:
        """The model registry, as promotion and evaluation use it; MLflow is active inside.

        Raises:
            TrackingError: see :meth:`activate`.
        """
        from dagster_mlops.mlflow.registry.models import MlflowModels  # for steps, not for code locations

        with self.activate() as client:
            yield MlflowModels(self, client)

    def experiment_id(self, client: MlflowClient, name: str | None = None) -> str:
        """The id of an experiment, which is created when it is missing.

        Raises:
            TrackingError: the experiment was deleted.
        """
        name = name or self.experiment
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            file = connection.sqlite_file(self.uri)
            location = self.artifact_location or (connection.artifacts_beside(file) if file else None)
            # Another process may have created it meanwhile.
            refused(EXISTS, lambda: client.create_experiment(name, artifact_location=location))
            experiment = client.get_experiment_by_name(name)
        if experiment is None or experiment.lifecycle_stage != "active":
            raise TrackingError(
                f"experiment {name!r} was deleted in {mask_credentials(self.uri)}. Restore it with `mlflow experiments "
                f"restore -x {experiment.experiment_id if experiment else '…'}`, or name another one."
            )
        return experiment.experiment_id

    def run_url(self, experiment_id: str, run_id: str) -> str:
        """The run's page in MLflow's UI; empty when the UI's address is unknown."""
        return self.ui and f"{self.ui}/#/experiments/{experiment_id}/runs/{run_id}"

    def dagster_run_url(self, dagster_run_id: str) -> str:
        """The Dagster run's page in Dagster's UI; empty when the UI's address is unknown."""
        base = (self.dagster_url or os.environ.get("DAGSTER_URL", "")).rstrip("/")
        return base and f"{base}/runs/{dagster_run_id}"

    def version_url(self, name: str, version: str) -> str:
        """The model version's page in MLflow's UI; empty when the UI's address is unknown."""
        return self.ui and f"{self.ui}/#/models/{name}/versions/{version}"
