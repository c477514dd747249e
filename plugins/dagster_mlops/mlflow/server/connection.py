"""Connecting to an MLflow server or database: it works, or an error says within seconds what is wrong."""

import importlib
import os
import random
import re
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from dagster_mlops.core.advice import advice
from dagster_mlops.core.environment import environment
from dagster_mlops.core.extras import extra
from dagster_mlops.core.files import STATE, own_folder
from dagster_mlops.core.private_files import open_private
from dagster_mlops.core.waits import retry
from dagster_mlops.errors import TrackingError
from dagster_mlops.mlflow import upstream
from dagster_mlops.mlflow.lazy import MlflowClient, mlflow
from dagster_mlops.mlflow.server.advice import REMEDIES
from dagster_mlops.mlflow.server.client import request_limits
from dagster_mlops.provenance import mask_credentials

_REGISTRY = "mlflow.tracking.request_header.registry"
# Feast registers as a provider of request headers, so MLflow imports it before the first request of each process, which
# takes seconds. Feast has headers only for its own requests to MLflow.
_SEEKS_HEADERS = "feast.infra.data_sources.mlflow.auth"
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
# Answers of a busy server, and of the proxy of one that is starting.
_LATER = r"\b429\b|too many 50[234] error"


def connect(
    uri: str,
    registry_uri: str | None = None,
    *,
    timeout: int = 5,
    probe: "Callable[[MlflowClient], object]" = lambda client: client.search_experiments(max_results=1),
) -> "MlflowClient":
    """A client of a server or database that has just answered the request of `probe`.

    MLflow itself would retry for minutes: 7 times over HTTP, and 15 times with doubling waits for a database.

    Raises:
        TrackingError: it does not answer within a few seconds, or refuses.
    """
    spare_imports()
    where = mask_credentials(uri)
    bare, login = without_login(uri)
    url = urlsplit(uri)
    dialect = url.scheme.partition("+")[0]
    try:
        if url.hostname and dialect in _DATABASE_PORTS:
            socket.create_connection((url.hostname, url.port or _DATABASE_PORTS[dialect]), timeout).close()
        if (file := sqlite_file(uri)) and not file.exists():
            _create_database(file)
        with environment(**request_limits(timeout=timeout, retries=1), **login):
            # Creating the client of a database already connects.
            client = mlflow.MlflowClient(tracking_uri=bare, registry_uri=registry_uri)
            _patiently(lambda: probe(client))
    except OSError as error:
        raise TrackingError(
            f"MLflow's database at {where} cannot be reached: {error}. Start it, or correct the URI."
        ) from error
    except mlflow.MlflowException as error:
        text = mask_credentials(str(error))[:500]
        raise TrackingError(f"MLflow at {where} cannot be used: {text}\n{advice(text, REMEDIES, uri=where)}") from error
    if registry_uri and registry_uri != uri:
        _ask_registry(bare, registry_uri, timeout)
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=registry_uri) if login else client


def without_login(uri: str) -> tuple[str, dict[str, str]]:
    """The URI of a server without user and password, and the variables in which MLflow expects both.

    MLflow's errors show the URI as it is, and Dagster stores the whole chain of a step's errors.

    >>> without_login("https://ml:p%40ss@mlflow.example.com/team")
    ('https://mlflow.example.com/team', {'MLFLOW_TRACKING_USERNAME': 'ml', 'MLFLOW_TRACKING_PASSWORD': 'p@ss'})
    >>> without_login("postgresql://ml:secret@db/mlflow")
    ('postgresql://ml:secret@db/mlflow', {})
    """
    url = urlsplit(uri)
    if url.scheme not in ("http", "https") or not (url.username and url.password):
        return uri, {}
    login = {
        "MLFLOW_TRACKING_USERNAME": unquote(url.username),
        "MLFLOW_TRACKING_PASSWORD": unquote(url.password),
    }
    return url._replace(netloc=url.netloc.rpartition("@")[2]).geturl(), login


def _patiently(ask: Callable[[], object]) -> None:
    """Retry a busy server for some 15 s, but not a dead one: MLflow has one number of retries for both."""
    retry(
        ask,
        is_transient=lambda error: isinstance(error, mlflow.MlflowException) and re.search(_LATER, str(error)),
        pauses=(seconds * random.uniform(0.5, 1.5) for seconds in (1, 2, 4, 8)),
    )


def _ask_registry(tracking_uri: str, uri: str, timeout: int) -> None:
    bare, login = without_login(uri)
    try:
        with environment(**request_limits(timeout=timeout, retries=1), **login):
            client = mlflow.MlflowClient(tracking_uri=tracking_uri, registry_uri=bare)
            _patiently(lambda: client.search_registered_models(max_results=1))
    except (OSError, mlflow.MlflowException) as error:
        text = mask_credentials(str(error))[:500]
        raise TrackingError(
            f"The model registry at {mask_credentials(uri)} cannot be used: {text}\nCorrect registry_uri, or omit it "
            "where the tracking server is also the registry."
        ) from error


def _create_database(file: Path) -> None:
    """Create MLflow's tables in a temporary file, and link it into place when it is finished.

    MLflow itself leaves half a database behind when it is killed, and fails when two processes start at once. It would
    also keep the artifacts of its default experiment in the working directory of this process.
    """
    own_folder(file.parent if STATE in file.parts else file.parent / "mlartifacts")
    with (
        tempfile.TemporaryDirectory(dir=file.parent, prefix=".mlflow-", ignore_cleanup_errors=True) as folder,
        # The setting of a server; there is no other way.
        environment(_MLFLOW_SERVER_ARTIFACT_ROOT=artifacts_beside(file)),
    ):
        fresh = Path(folder, file.name)
        os.close(open_private(fresh, os.O_RDONLY, like=file.parent))  # as SQLite would create it, everyone may read it
        mlflow.MlflowClient(tracking_uri=f"sqlite:///{fresh}").search_experiments(max_results=1)
        with suppress(FileExistsError):  # another process was faster
            os.link(fresh, file)


def artifacts_beside(file: Path) -> str:
    """The folder for the artifacts of a database file, as a URI."""
    return file.parent.joinpath("mlartifacts").as_uri()


def is_file_store(uri: str) -> bool:
    """True for a URI that MLflow takes as a folder of files.

    >>> is_file_store("./mlruns"), is_file_store("file:///mlruns"), is_file_store("sqlite:///mlflow.db")
    (True, True, False)
    """
    return urlsplit(uri).scheme in ("", "file") and not uri.startswith("databricks")


def sqlite_file(uri: str) -> Path | None:
    """The file of a sqlite URI.

    >>> sqlite_file("sqlite:////srv/mlflow.db")
    PosixPath('/srv/mlflow.db')
    """
    scheme, separator, path = uri.partition(":///")
    return Path(path.partition("?")[0]).absolute() if separator and scheme.partition("+")[0] == "sqlite" else None


def absolute_uri(uri: str) -> str:
    """A sqlite URI that means the same file from every working directory; other URIs as they are."""
    file = sqlite_file(uri)
    return f"sqlite:///{file}" if file else uri


def spare_imports() -> None:
    """Let MLflow's first request not import Feast. Feast's headers are sent once Feast is imported."""
    if _REGISTRY in sys.modules or _SEEKS_HEADERS in sys.modules:
        return
    plugins: Any = extra("mlflow.utils.plugins")
    entry_points = plugins.get_entry_points
    late: list[Any] = []

    def immediate(group: str) -> list[Any]:
        entries = list(entry_points(group))
        late.extend(entry for entry in entries if entry.value.startswith(_SEEKS_HEADERS))
        return [entry for entry in entries if entry not in late]

    plugins.get_entry_points = immediate
    try:
        registry: Any = importlib.import_module(_REGISTRY)
    finally:
        plugins.get_entry_points = entry_points
    for entry in late:
        upstream.register_header_provider(registry, lambda entry=entry: _Late(entry))


class _Late:
    """A provider of headers that is loaded once something else has imported its module."""

    def __init__(self, entry: Any) -> None:
        self.entry, self.provider = entry, None

    def in_context(self) -> bool:
        if self.provider is None and _SEEKS_HEADERS in sys.modules:
            self.provider = self.entry.load()()
        return self.provider is not None and self.provider.in_context()

    def request_headers(self) -> dict[str, str]:
        return self.provider.request_headers() if self.provider else {}
