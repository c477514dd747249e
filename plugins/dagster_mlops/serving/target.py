"""The place that serves packages: server processes on this machine, behind one Envoy."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dagster_mlops.core.extras import extra
from dagster_mlops.core.processes import identity
from dagster_mlops.core.waits import wait_while
from dagster_mlops.errors import DeploymentError
from dagster_mlops.serving import envoy, processes
from dagster_mlops.serving.packager import Server
from dagster_mlops.serving.state import SERVER, DeploymentState


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

    def prepare(self) -> None:
        """Have something answer on the public port.

        Raises:
            DeploymentError: the port belongs to another process, or Envoy does not come up.
        """
        envoy.ensure(self.state_dir, self.port)

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

    def ready(self, state: DeploymentState) -> str:
        """The reason why the server is not ready; empty when it is."""
        if not state.alive():
            return "ended before it was ready"
        httpx = extra("httpx", extra="bentoml")
        try:
            with processes.http_client(state.url, timeout=5) as client:
                code = client.get(state.readiness).status_code
        except httpx.HTTPError as error:
            return f"does not answer ({type(error).__name__})"
        return "" if code == 200 else f"answers {state.readiness} with {code}"

    def shift(self, live: DeploymentState | None, standby: DeploymentState | None = None) -> None:
        """Send all traffic to `live`; it and `standby` can be reached through the public port by a header."""
        states = [state for state in (live, standby) if state]
        backends = {state.id: (state.port, state.readiness) for state in states}
        envoy.route(self.state_dir, live.id if live else None, backends, request_timeout=self.request_timeout)

    def routed(self) -> str | None:
        """The id of the deployment that traffic goes to."""
        return envoy.routed(self.state_dir)

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

    def stop_all_but(self, state: DeploymentState | None) -> list[str]:
        """Stop the servers of every other deployment, and return their ids."""
        strays = {
            role: group
            for role, group in processes.marked(self.state_dir).items()
            if role.startswith(SERVER) and (state is None or role != state.role)
        }
        for group in strays.values():
            processes.stop(group)
        return [role.removeprefix(SERVER) for role in strays]

    def log_file(self, state: DeploymentState) -> Path:
        """The file that the server's output goes to."""
        return self.state_dir / "logs" / f"{state.id}.log"


def server_pids(state_dir: Path) -> dict[str, list[int]]:
    """The pids of the running servers by deployment id, and of the proxy under ``""``."""
    pids: dict[str, list[int]] = {}
    for role, group in processes.marked(state_dir).items():
        kind, _, deployment_id = role.partition(":")
        pids.setdefault(deployment_id if kind == "server" else "", []).extend(process.pid for process in group)
    return {deployment_id: sorted(group) for deployment_id, group in pids.items()}


def probe(url: str, state: DeploymentState, headers: Mapping[str, str] | None = None) -> str:
    """The reason why the deployment does not answer at `url`; empty when it does."""
    httpx = extra("httpx", extra="bentoml")
    try:
        with processes.http_client(url, timeout=5) as client:
            response = client.get(state.readiness, headers=headers)
    except httpx.HTTPError as error:
        return f"{url} does not answer ({type(error).__name__})"
    if response.status_code != 200:
        return f"{url}{state.readiness} answers {response.status_code}"
    responder = response.headers.get(envoy.DEPLOYMENT_HEADER)
    return "" if responder == state.id else f"{url} is answered by {responder}"
