"""Names of processes that are never reused, unlike their pids."""

from functools import cache
from pathlib import Path

from dagster_mlops.core.extras import extra

_PROC = Path("/proc")


def identity(pid: int) -> str:
    """A name of the living process `pid` that no later process with the same pid has; empty when there is none.

    Two looks at one process agree, also when the system's clock was set in between: on Linux the name holds the ticks
    from boot to the start of the process (``man 5 proc_pid_stat``, field 22) and the boot itself.
    ``psutil.Process.create_time`` adds the ticks to the time of boot, which moves with the clock.
    """
    if not (_PROC / "self" / "stat").exists():
        return _identity_elsewhere(pid)
    try:
        # The second field is the command in parentheses, which may hold spaces and parentheses itself.
        state, *fields = (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].decode().split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if state in ("Z", "X") else f"{_boot()}:{pid}:{fields[18]}"


@cache
def _boot() -> str:
    return (_PROC / "sys" / "kernel" / "random" / "boot_id").read_text().strip()


def _identity_elsewhere(pid: int) -> str:
    """The same where there is no /proc: macOS and Windows record the time of the start once and for all."""
    psutil = extra("psutil")
    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"{pid}:{process.create_time()}"
    except psutil.NoSuchProcess:
        return ""
