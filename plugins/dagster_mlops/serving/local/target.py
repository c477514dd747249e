"""The place that serves packages: server processes on this machine, behind one Envoy."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dagster_mlops.core.files import write_atomically
from dagster_mlops.core.waits import wait_while
from dagster_mlops.errors import DeploymentError
from dagster_mlops.serving.golden.golden_set import Golden
from dagster_mlops.serving.local import envoy, envoy_config, processes, supervision
from dagster_mlops.serving.local.access import LOOPBACK, Access
from dagster_mlops.serving.local.envoy_config import Trial
from dagster_mlops.serving.local.state import SERVER, DeploymentState
from dagster_mlops.serving.packager import Server


@dataclass(frozen=True)
class LocalTarget:
    """Starts servers for a state folder, and sends the traffic of one port to one deployment.

    Every process carries a mark in its environment, so that servers are found again without a record of them.
    """

    state_dir: Path
    port: int
    request_timeout: float = 30
    access: Access = LOOPBACK
    tokens: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def stored(cls, state_dir: Path) -> "LocalTarget | None":
        """The target that was last opened for a state folder; None without one."""
        file = state_dir / "envoy" / "target.json"
        if not file.exists():
            return None
        settings = json.loads(file.read_text())
        secrets = {"access": Access(**settings.pop("access", {})), "tokens": tuple(settings.pop("tokens", ()))}
        return cls(state_dir=state_dir, **settings, **secrets)

    @property
    def url(self) -> str:
        """The public address, which stays the same whichever deployment answers."""
        return self.access.url(self.port)

    def renewed(self, say: Callable[[str], object]) -> "LocalTarget":
        """The same with the tokens of today's file, after Envoy got a certificate that was renewed.

        What cannot be used is reported, and changes nothing.
        """
        tokens = self.tokens
        try:
            if self.access.certificate and envoy.certify(self.state_dir, self.access):
                say(f"Gave Envoy the certificate {self.access.certificate}.")
        except DeploymentError as error:
            say(f"Envoy keeps its certificate: {error}")
        try:
            if self.access.token_file and (tokens := self.access.read_tokens()) != self.tokens:
                say(f"Gave Envoy the tokens of {self.access.token_file}.")
        except DeploymentError as error:
            say(f"Envoy keeps its tokens: {error}")
        return dataclasses.replace(self, tokens=tokens)

    def open(self) -> bool:
        """Have Envoy listen on the public port; True if there was work to do."""
        if self.access.certificate and not envoy.is_certified(self.state_dir):
            envoy.certify(self.state_dir, self.access)
        is_changed = envoy.ensure(self.state_dir, self.port, self.access)
        if not self.access.certificate:
            envoy.uncertify(self.state_dir)
        settings = {name: value for name, value in dataclasses.asdict(self).items() if name != "state_dir"}
        place = self.state_dir / "envoy" / "target.json"
        write_atomically(place, json.dumps(settings), private=True, durable=True)
        return is_changed

    def close(self) -> None:
        """Stop listening, and remove what only served that."""
        envoy.stop(self.state_dir)
        for name in ("envoy", "run"):
            shutil.rmtree(self.state_dir / name, ignore_errors=True)
        for name in ("golden", "predictions"):
            with suppress(OSError):  # it has files, or is not there
                (self.state_dir / name).rmdir()

    def start(
        self, state: DeploymentState, servers: Sequence[Server], environment: Mapping[str, str]
    ) -> DeploymentState:
        """Start the replicas of a deployment, detached from this process."""
        programs = {
            f"replica-{number}": supervision.Program(
                server.command, {**server.environment, **environment}, self.log_file(state), server.preload
            )
            for number, server in enumerate(servers)
        }
        supervision.start(self.state_dir, state.role, programs, restart=False, grace=self.request_timeout)
        return state.save()

    def shift(
        self, live: DeploymentState | None, standby: DeploymentState | None = None, trial: Trial | None = None
    ) -> bool:
        """Send all traffic to `live`; `standby` gets what is on `trial`, and whoever knows its secret.

        True if it was not so before.
        """
        first, second = (_backend(state) if state else None for state in (live, standby))
        return envoy.route(
            self.state_dir,
            first,
            second,
            trial,
            request_timeout=self.request_timeout,
            request_bytes=self.access.request_bytes,
            tokens=self.tokens,
        )

    def await_public(self, state: DeploymentState, *, selected: bool = False, timeout: float = 30) -> None:
        """Wait until the deployment answers through the public port; `selected` asks for it by its secret.

        Raises:
            DeploymentError: it does not within `timeout` seconds.
        """
        headers = {envoy_config.SELECT_HEADER: state.probe} if selected else {}
        wait_while(
            lambda: probe(self.url, state, headers),
            timeout=timeout,
            error=lambda problem: DeploymentError(
                f"{state.id} is ready, but does not answer through port {self.port} after {timeout:g} s: "
                f"{problem}. The end of the Envoy log:\n"
                f"{processes.tail(self.state_dir / 'logs' / 'envoy.log')}"
            ),
        )

    def drain(self, state: DeploymentState, *, timeout: float) -> int:
        """Wait until a deployment that gets no more requests has answered those it has; the number still open."""
        looks = 0

        def unanswered() -> bool:
            nonlocal looks
            # A request between two tries is not counted.
            looks = 0 if envoy.open_requests(self.state_dir, state.id) else looks + 1
            return looks < 3

        with suppress(TimeoutError):
            wait_while(unanswered, timeout=timeout, error=lambda _: TimeoutError(), pause=0.1)
        return envoy.open_requests(self.state_dir, state.id)

    def withdraw(self, state: DeploymentState, current: DeploymentState | None) -> None:
        """Stop a deployment that failed on its way; `current` gets all traffic, as before."""
        self.shift(current, state)
        self.drain(state, timeout=self.request_timeout)
        self.shift(current)
        self.stop(state)
        supervision.remove(self.state_dir, state.role)

    def keep_up(self, states: Iterable[DeploymentState]) -> None:
        """Start the supervisors of Envoy and of the deployments again, where they have ended."""
        for state in states:
            if supervision.exists(self.state_dir, state.role):
                supervision.ensure(self.state_dir, state.role)
        if not any(supervision.is_supervised(self.state_dir, role) for role in envoy.roles(self.state_dir)):
            with suppress(DeploymentError):  # it may be ending just now, and hold its port
                self.open()

    def forget(self, ids: Collection[str]) -> None:
        """Remove what was kept to start deployments again, but for those with the `ids`."""
        supervision.keep(self.state_dir, {f"{SERVER}{deployment}" for deployment in ids} | envoy.roles(self.state_dir))

    def stop(self, state: DeploymentState) -> None:
        """Stop every process of the deployment."""
        supervision.stop(self.state_dir, state.role)

    def log_file(self, state: DeploymentState) -> Path:
        """The file that the servers' output goes to."""
        return self.state_dir / "logs" / f"{state.id}.log"


def probe(url: str, state: DeploymentState, headers: Mapping[str, str] | None = None) -> str:
    """The reason why the deployment does not answer at `url`, a replica's or the public one; empty when it does."""
    try:
        with envoy.client(url, Path(state.record.state_dir), timeout=5) as client:
            response = client.get(state.readiness, headers=headers)
    except processes.httpx.HTTPError as error:
        return f"{url} does not answer ({type(error).__name__})"
    if response.status_code != 200:
        return f"{url}{state.readiness} answers {response.status_code}"
    responder = state.id if url in state.urls else response.headers.get(envoy_config.DEPLOYMENT_HEADER)
    return "" if responder == state.id else f"{url} is answered by {responder}"


def golden_difference(golden: Golden, url: str, state: DeploymentState, *, tolerance: float, timeout: float) -> float:
    """The largest difference between the predictions at `url`, a replica's or the public one, and the expected ones.

    Raises:
        DeploymentError: As of :meth:`Golden.compare`.
    """
    with envoy.client(url, Path(state.record.state_dir), timeout=timeout) as client:
        return golden.compare(client, state, tolerance=tolerance)


def _backend(state: DeploymentState) -> envoy_config.Backend:
    public = ("/*",) if state.public is None else (state.readiness, state.route, *state.public)
    return envoy_config.Backend(state.id, state.ports, state.readiness, state.probe, public, state.refuses_repeats)
