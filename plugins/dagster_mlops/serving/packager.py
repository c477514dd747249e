"""The capability of a packaging tool: the server of a package, its golden set, the version of an alias."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from dagster_mlops.core.arrays import pd
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.errors import DeploymentError
from dagster_mlops.provenance import Package

if TYPE_CHECKING:
    from dagster_mlops.serving.golden.golden_set import Golden


@lazy_dataclass(frozen=True, kw_only=True)
class Server:
    """The process that serves a package on one loopback port, and how it is asked.

    It must answer `readiness` with 200 once its model is loaded, and `route` with ``{"predictions": [...]}`` for
    ``{rows_field: [{feature: value, …}, …]}``. Its environment gets ``DAGSTER_MLOPS_PROBE``: a request whose
    ``X-Probe`` header equals it is a golden row, not traffic to be logged; one whose ``X-Mirrored`` header does is a
    copy for a shadow deployment, logged by ``PredictionLog.from_environment(mirrored=True)``. `environment` comes on
    top of what any program needs to run, which the rollout adds: a server answers strangers, and gets few of the
    worker's variables.

    With `refuses_repeats`, Envoy sends a request again whose connection broke before its answer. The server finds by
    `dagster_mlops.serving.runtime.Attempts` whether a process of the deployment has begun it, and answers 503 then.

    With `preload`, one process imports these modules (or calls ``module:function``) and forks the replicas, so that one
    that was killed is back as soon as its model is loaded, and the memory of the imports is shared. `command` is then
    ``python … -m module arguments``. Name modules that start no thread.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    readiness: str = "/readyz"
    route: str = "/predict"
    rows_field: str = "rows"
    preload: Sequence[str] = ()
    refuses_repeats: bool = False


@lazy_dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Settings of a server; None leaves one to the package."""

    workers: int | None = None  # processes that share the port
    threads: int | None = None  # of each worker, for its predictions
    timeout: float | None = None  # seconds for a request
    request_bytes: int | None = None  # of a request's body


@runtime_checkable
class Packages(Protocol):
    """A resource of a packaging tool, as :func:`deployment_asset` calls it: BentoML, MLflow's scoring server, …"""

    def server(self, package: Package, port: int) -> Server:
        """The server of a package that listens on ``127.0.0.1:port``."""
        ...

    def golden(self, package: Package, frame: "pd.DataFrame", rows: int) -> "Golden":
        """Up to `rows` rows of `frame`, and what the registered model, not the package, predicts for them.

        Raises:
            DeploymentError: the model cannot be loaded or scored.
        """
        ...

    def alias_version(self, model_name: str, alias: str) -> str | None:
        """The version that an alias of the registered model is on now; None without that alias."""
        ...


@runtime_checkable
class TunesServers(Protocol):
    """A resource of a packaging tool that also takes settings of its servers."""

    def tuned_server(self, package: Package, port: int, settings: ServerSettings) -> Server:
        """The server of a package, as :meth:`Packages.server`, with these settings.

        Raises:
            DeploymentError: the tool has no such setting.
        """
        ...


def server_of(packager: Packages, package: Package, port: int, settings: ServerSettings) -> Server:
    """The server of a package, with settings where its tool takes them.

    Raises:
        DeploymentError: the tool does not take the settings. A timeout is left to Envoy then.
    """
    if isinstance(packager, TunesServers):
        return packager.tuned_server(package, port, settings)
    refuse(packager, workers=settings.workers, threads=settings.threads)
    return packager.server(package, port)


def refuse(packager: object, **settings: object) -> None:
    """Refuse settings that a packaging tool does not have, unless they are None.

    Raises:
        DeploymentError: one is set.
    """
    if names := [f"{name}=" for name, value in settings.items() if value is not None]:
        raise DeploymentError(
            f"{type(packager).__name__} does not take {' or '.join(names)} for the servers of this package. Set it in "
            "the package, or use replicas= for more processes."
        )
