"""The place that serves packages: server processes on this machine, behind one Envoy."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dagster_mlops.core.processes import identity
from dagster_mlops.core.waits import wait_while
from dagster_mlops.errors import DeploymentError
from dagster_mlops.serving import envoy, processes
from dagster_mlops.serving.packager import Server
from dagster_mlops.serving.state import DeploymentState


@dataclass(frozen=True)
class LocalTarget:
    """Starts servers for a state folder, and sends the traffic of one loopback port to one of them.

    Every process carries a mark in its environment, so that servers are found again without a record of them.
    """

    state_dir: Path
    port: int
    request_timeout: float = 30

    @property
    def url(self) -> str:
        """The public address, which stays the same whichever deployment answers."""
        return f"http://127.0.0.1:{self.port}"

    def start(self, state: DeploymentState, server: Server, environment: Mapping[str, str]) -> DeploymentState:
        """Start the server of a deployment, detached from this process."""
        pid = processes.spawn(
            server.command,
            state_dir=self.state_dir,
            role=state.role,
            environment={**server.environment, **environment},
            log=self.log_file(state),
        )
        return state.save(pid=pid, process=identity(pid))

    def shift(self, live: DeploymentState | None, standby: DeploymentState | None = None) -> None:
        """Send all traffic to `live`; it and `standby` can be reached through the public port by a header."""
        backends = {state.id: (state.port, state.readiness) for state in (live, standby) if state}
        envoy.route(self.state_dir, live.id if live else None, backends, request_timeout=self.request_timeout)

    def await_public(self, state: DeploymentState, *, selected: bool = False, timeout: float = 30) -> None:
        """Wait until the deployment answers through the public port; `selected` asks for it by header.

        Raises:
            DeploymentError: it does not within `timeout` seconds.
        """
        headers = {envoy.SELECT_HEADER: state.id} if selected else {}
        wait_while(
            lambda: probe(self.url, state, headers),
            timeout=timeout,
            error=lambda problem: DeploymentError(
                f"{state.id} is ready, but does not answer through port {self.port} after {timeout:g} s: "
                f"{problem}. The end of the Envoy log:\n"
                f"{processes.tail(self.state_dir / 'logs' / 'envoy.log')}"
            ),
        )

    def stop(self, state: DeploymentState) -> None:
        """Stop every process of the deployment."""
        processes.stop(processes.marked(self.state_dir).get(state.role, []))

    def log_file(self, state: DeploymentState) -> Path:
        """The file that the server's output goes to."""
        return self.state_dir / "logs" / f"{state.id}.log"


def probe(url: str, state: DeploymentState, headers: Mapping[str, str] | None = None) -> str:
    """The reason why the deployment does not answer at `url`, its own or the public one; empty when it does."""
    try:
        with processes.http_client(url, timeout=5) as client:
            response = client.get(state.readiness, headers=headers)
    except processes.httpx.HTTPError as error:
        return f"{url} does not answer ({type(error).__name__})"
    if response.status_code != 200:
        return f"{url}{state.readiness} answers {response.status_code}"
    responder = state.id if url == state.url else response.headers.get(envoy.DEPLOYMENT_HEADER)
    return "" if responder == state.id else f"{url} is answered by {responder}"
