"""The connection to an MLflow tracking server or database, and to its model registry."""

import os
import random
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import dagster as dg
from pydantic import Field

from dagster_mlops._extras import extra
from dagster_mlops.errors import TrackingError
from dagster_mlops.mlflow.request_headers import spare_imports
from dagster_mlops.mlflow.server_errors import what_to_do
from dagster_mlops.provenance import mask_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient

_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


class MlflowResource(dg.ConfigurableResource):
    """An MLflow server or database. Hands out MLflow's own client, and sets the fluent API where a run needs it.

        mlflow = MlflowResource(tracking_uri="sqlite:////srv/mlflow/mlflow.db", experiment="arrival_delay")
        mlflow.client().search_registered_models()

        with mlflow.activate() as client:          # mlflow.start_run() and friends go to this server in here
            ...

    A URI with a password belongs into the environment: ``tracking_uri=dg.EnvVar("MLFLOW_TRACKING_URI")``.
    """

    tracking_uri: str = Field(description="A server (http…) or a database (sqlite:////absolute/path, postgresql://…).")
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
    connect_timeout: int = Field(default=5, gt=0, description="Seconds until a silent server counts as dead.")
    request_timeout: int = Field(default=30, gt=0, description="Seconds for one HTTP request of a training run.")
    request_retries: int = Field(default=3, ge=0, le=10, description="Repeats of a failed HTTP request.")

    @property
    def uri(self) -> str:
        """The tracking URI, with the path of a sqlite file made absolute.

        Raises:
            TrackingError: it is a folder, which MLflow no longer serves.
        """
        if is_file_store(self.tracking_uri):
            raise TrackingError(
                f"tracking_uri={self.tracking_uri!r} is a folder; MLflow keeps runs in a database or behind a server. "
                f"Write tracking_uri='sqlite:///{Path('mlflow.db').absolute()}' (`mlflow migrate-filestore` moves old "
                "runs there)."
            )
        return absolute_uri(self.tracking_uri)

    @property
    def ui(self) -> str:
        """Where people look at runs, without a trailing slash; empty when unknown."""
        server = mask_credentials(self.uri) if self.uri.startswith("http") else ""
        return (self.ui_url or server).rstrip("/")

    def client(self) -> "MlflowClient":
        """MLflow's own client, once the server has answered.

        Raises:
            TrackingError: the server or database does not answer within a few seconds, or refuses.
        """
        return connect(self.uri, self.registry_uri, timeout=self.connect_timeout)

    @contextmanager
    def activate(self, experiment: str | None = None) -> Iterator["MlflowClient"]:
        """Point MLflow's fluent API at this server and experiment, and put everything back at the end.

        Raises:
            TrackingError: see :meth:`client`; or the experiment was deleted.
        """
        with self.activate_experiment(experiment) as (client, _):
            yield client

    @contextmanager
    def activate_experiment(self, experiment: str | None = None) -> Iterator[tuple["MlflowClient", str]]:
        """Like :meth:`activate`, and says the experiment's id: a server is asked for it, and for nothing else."""
        mlflow = extra("mlflow")
        # The active experiment can be set but not read or unset through the public API, which asks the server again.
        fluent: Any = extra("mlflow.tracking.fluent")
        asked: list[str] = []
        client = connect(
            self.uri,
            self.registry_uri,
            timeout=self.connect_timeout,
            probe=lambda client: asked.append(self.experiment_id(client, experiment)),
        )
        uri_before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
        registry_before = None if mlflow.get_registry_uri() == mlflow.get_tracking_uri() else mlflow.get_registry_uri()
        experiment_before = fluent._active_experiment_id
        # MLflow writes these names itself, so that subprocesses inherit them.
        inherited = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
        with environment(
            **{name: os.environ.get(name) for name in inherited},
            **request_limits(timeout=self.request_timeout, retries=self.request_retries),
            MLFLOW_EXPERIMENT_ID=asked[0],
            MLFLOW_EXPERIMENT_NAME=None,
            MLFLOW_RUN_ID=None,
            MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false",
            # Each end of a run would ask for the run once more, to print its address.
            MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true",
        ):
            try:
                mlflow.set_tracking_uri(self.uri)
                if self.registry_uri:
                    mlflow.set_registry_uri(self.registry_uri)
                fluent._active_experiment_id = asked[0]
                yield client, asked[0]
            finally:
                mlflow.set_tracking_uri(uri_before)
                if self.registry_uri:
                    mlflow.set_registry_uri(registry_before)
                fluent._active_experiment_id = experiment_before

    def experiment_id(self, client: "MlflowClient", name: str | None = None) -> str:
        """The id of an experiment, which is created when it is missing.

        Raises:
            TrackingError: the experiment was deleted.
        """
        name = name or self.experiment
        found = client.get_experiment_by_name(name)
        if found is None:
            file = sqlite_file(self.uri)
            location = self.artifact_location or (_artifacts_beside(file) if file else None)
            try:
                return client.create_experiment(name, artifact_location=location)
            except extra("mlflow.exceptions").MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = client.get_experiment_by_name(name)  # another process was faster
        if found is None or found.lifecycle_stage != "active":
            raise TrackingError(
                f"experiment {name!r} was deleted in {mask_credentials(self.uri)}. Restore it with `mlflow experiments "
                f"restore -x {found.experiment_id if found else '…'}`, or name another one."
            )
        return found.experiment_id

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


def connect(
    uri: str,
    registry_uri: str | None = None,
    *,
    timeout: int = 5,
    probe: "Callable[[MlflowClient], object]" = lambda client: client.search_experiments(max_results=1),
) -> "MlflowClient":
    """A client of a server or database that has just answered, to the question that `probe` asks.

    MLflow itself would retry for minutes: 7 times over HTTP, and 15 times, doubling the wait, for a database.

    Raises:
        TrackingError: it does not answer within a few seconds, or refuses.
    """
    mlflow = extra("mlflow")
    spare_imports()
    where = mask_credentials(uri)
    url = urlsplit(uri)
    dialect = url.scheme.partition("+")[0]
    try:
        if url.hostname and dialect in _DATABASE_PORTS:
            socket.create_connection((url.hostname, url.port or _DATABASE_PORTS[dialect]), timeout).close()
        if (file := sqlite_file(uri)) and not file.exists():
            _create_database(file)
        with environment(**request_limits(timeout=timeout, retries=1)):
            # Making a client of a database connects already.
            client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=registry_uri)
            _patiently(lambda: probe(client))
    except OSError as error:
        raise TrackingError(
            f"MLflow's database at {where} cannot be reached: {error}. Start it, or mend the URI."
        ) from error
    except extra("mlflow.exceptions").MlflowException as error:
        text = mask_credentials(str(error))[:500]
        raise TrackingError(f"MLflow at {where} cannot be used: {text}\n{what_to_do(text, where)}") from error
    if registry_uri and registry_uri != uri:
        _ask_registry(client, mask_credentials(registry_uri), timeout)
    return client


def _patiently(ask: Callable[[], object]) -> None:
    """A server that is busy is asked again, unlike one that is dead: MLflow has one number of repeats for both."""
    for wait in (1, 2, 4, 8, 0):
        try:
            ask()
        except extra("mlflow.exceptions").MlflowException as error:
            if not wait or not re.search(r"\b429\b", str(error)):
                raise
            time.sleep(wait * random.uniform(0.5, 1.5))
        else:
            return


def _ask_registry(client: "MlflowClient", where: str, timeout: int) -> None:
    try:
        with environment(**request_limits(timeout=timeout, retries=1)):
            client.search_registered_models(max_results=1)
    except (OSError, extra("mlflow.exceptions").MlflowException) as error:
        text = mask_credentials(str(error))[:500]
        raise TrackingError(
            f"The model registry at {where} cannot be used: {text}\nMend registry_uri, or leave it out where the "
            "tracking server is the registry, too."
        ) from error


def _create_database(file: Path) -> None:
    """Create MLflow's tables aside, and put the finished file in place.

    MLflow itself would leave half a database behind when it is killed, and fails when two processes start at once. And
    it would keep the artifacts of its default experiment in whatever folder this process works in.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=file.parent, prefix=".mlflow-", ignore_cleanup_errors=True) as folder,
        environment(
            _MLFLOW_SERVER_ARTIFACT_ROOT=_artifacts_beside(file)
        ),  # what a server is told; there is no other way
    ):
        fresh = Path(folder, file.name)
        extra("mlflow").MlflowClient(tracking_uri=f"sqlite:///{fresh}").search_experiments(max_results=1)
        with suppress(FileExistsError):  # another process was faster
            os.link(fresh, file)


def _artifacts_beside(file: Path) -> str:
    return file.parent.joinpath("mlartifacts").as_uri()


def is_file_store(uri: str) -> bool:
    """Whether MLflow would take this for its folder of files.

    >>> is_file_store("./mlruns"), is_file_store("file:///mlruns"), is_file_store("sqlite:///mlflow.db")
    (True, True, False)
    """
    return urlsplit(uri).scheme in ("", "file") and not uri.startswith("databricks")


def sqlite_file(uri: str) -> Path | None:
    """The file of a sqlite URI.

    >>> sqlite_file("sqlite:////srv/mlflow.db")
    PosixPath('/srv/mlflow.db')
    """
    scheme, found, path = uri.partition(":///")
    return Path(path.partition("?")[0]).absolute() if found and scheme.partition("+")[0] == "sqlite" else None


def absolute_uri(uri: str) -> str:
    """A sqlite URI that means the same file from every working directory; other URIs as they are."""
    file = sqlite_file(uri)
    return f"sqlite:///{file}" if file else uri


def request_limits(*, timeout: int, retries: int) -> dict[str, str]:
    """What bounds MLflow's HTTP requests, as environment variables: the only way it offers."""
    return {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries),
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    }


@contextmanager
def environment(**values: str | None) -> Iterator[None]:
    """Set environment variables (None: unset), and restore them at the end, whatever happened to them meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    _set_environment(values)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
