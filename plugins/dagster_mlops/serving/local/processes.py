"""Server processes that outlive the Dagster worker which started them, and can be found again without a record."""

import errno
import os
import socket
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING

from dagster_mlops.core.child import start
from dagster_mlops.core.environment import child_environment
from dagster_mlops.core.extras import LazyModule
from dagster_mlops.core.private_files import open_private, private_folder, private_umask

if TYPE_CHECKING:
    import ssl

    import httpx as httpx
    import psutil as psutil
else:
    httpx, psutil = LazyModule("httpx"), LazyModule("psutil")

# In the environment of every process started here and so of its children: a worker killed between starting a process
# and writing that down leaves nothing that cannot be found.
STATE_DIR = "DAGSTER_MLOPS_STATE_DIR"
ROLE = "DAGSTER_MLOPS_ROLE"
GROUP = "DAGSTER_MLOPS_GROUP_DIR"  # folder of the programs of a role
# Below those that systems give to outgoing connections, one of which would have a port before its server starts:
# https://docs.kernel.org/networking/ip-sysctl.html (ip_local_port_range)
_PORTS = range(20_000, 32_768)
PROGRAM = "DAGSTER_MLOPS_PROGRAM"  # which of the role's programs it is


def spawn(command: Sequence[str], *, state_dir: Path, role: str, environment: Mapping[str, str], log: Path) -> int:
    """Start a detached process of its own session that writes to `log` only, and return its pid.

    Of this process's environment it gets what any program needs to run, and beside that `environment`. Its files are
    private.
    """
    private_folder(log.parent)
    marks = {STATE_DIR: str(state_dir), ROLE: role}
    with open(open_private(log, os.O_WRONLY | os.O_APPEND), "ab") as output:
        process = start(
            command,
            cwd=state_dir,
            env={**child_environment(), **environment, **marks},
            stdout=output,
            umask=private_umask(state_dir),
        )
    # Reaped if it ends first: a zombie looks alive.
    threading.Thread(target=process.wait, name=f"reap-{process.pid}", daemon=True).start()
    return process.pid


def marked(state_dir: Path) -> dict[str, list["psutil.Process"]]:
    """Every living process that was started for `state_dir`, by role, children included."""
    processes: dict[str, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except (psutil.Error, OSError):  # another user's, or gone
            continue
        if environment.get(STATE_DIR) == str(state_dir) and ROLE in environment and process.pid != os.getpid():
            processes.setdefault(environment[ROLE], []).append(process)
    return processes


def mark(process: "psutil.Process", name: str) -> str:
    """The value of one of the marks of a process; empty where it has none, or has ended."""
    try:
        return process.environ().get(name, "")
    except (psutil.Error, OSError):
        return ""


def stop(processes: Iterable["psutil.Process"], *, grace: float = 10) -> int:
    """End the processes: politely to those at the top, who end their children; after `grace` seconds by force."""
    processes = list(processes)
    pids = {process.pid for process in processes}
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.ppid() not in pids:
                process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=grace)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=grace)
    return len(processes)


def free_port() -> int:
    """A loopback port that no process listens on."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Different loopback ports that no process listens on."""
    ports: list[int] = []
    for port in SystemRandom().sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise OSError(errno.EADDRINUSE, f"there are no {count} free ports between {_PORTS.start} and {_PORTS.stop}")


def http_client(url: str, *, timeout: float, verify: "ssl.SSLContext | bool" = True) -> "httpx.Client":
    """A client for a server on this machine: a proxy from the environment has no business here."""
    return httpx.Client(base_url=url, timeout=timeout, trust_env=False, verify=verify)


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log, to be put into an error."""
    from dagster_mlops.provenance import mask_credentials  # for steps, not for code locations

    text = log.read_text(errors="replace") if log.exists() else "(no log)"
    return mask_credentials("\n".join(text.splitlines()[-lines:]))
