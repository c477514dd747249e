"""The capability of a packaging tool: the server of a package, its golden set, the version of an alias."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from dagster_mlops.core.arrays import pd
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.provenance import Package

if TYPE_CHECKING:
    from dagster_mlops.serving.golden_set import Golden


@lazy_dataclass(frozen=True, kw_only=True)
class Server:
    """The process that serves a package on one loopback port, and how it is asked.

    It must answer `readiness` with 200 once its model is loaded, and `route` with ``{"predictions": [...]}`` for
    ``{rows_field: [{feature: value, …}, …]}``. Its environment gets ``DAGSTER_MLOPS_PROBE``: a request whose
    ``X-Probe`` header equals it is a golden row, not traffic to be logged. `environment` comes on top of what any
    program needs to run, which the rollout adds: a server answers strangers, and gets few of the worker's variables.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    readiness: str = "/readyz"
    route: str = "/predict"
    rows_field: str = "rows"


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
