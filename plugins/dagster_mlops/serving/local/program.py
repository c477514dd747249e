"""The start of a supervised program: it waits until no earlier copy runs.

A supervisor may be killed while its programs go on. The next one starts this module for each of them: it waits for the
lock that the program took over from it, and so lasts exactly as long as the program. Only then does it start a copy.
"""

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from dagster_mlops.core.child import become
from dagster_mlops.core.private_files import open_private, private_umask
from dagster_mlops.core.processes import identity
from dagster_mlops.core.waits import wait_while
from dagster_mlops.serving.local import processes

NEVER = -1
PARENT = "parent"  # the program that forks others, which outlive it
_EVER = float("inf")


def main(file: Path) -> None:
    """Become the command of a program file, once no copy of it runs; see :mod:`.supervision`."""
    os.set_inheritable(take_place(file), True)
    program = program_of(file)
    log = open_private(Path(program["log"]), os.O_WRONLY | os.O_APPEND)
    become(program["command"], env=program["environment"], output=log, umask=private_umask(file.parent))


def take_place(file: Path, is_forked_orphan: Callable[[], bool] | None = None) -> int:
    """Wait until no other copy of a program runs, end what it has left, and hold its lock, which is returned.

    Args:
        is_forked_orphan: Of a fork, True when the process is gone that has forked it. Then it waits no more, and
            returns :data:`NEVER`.
    """
    import fcntl  # only on POSIX, and the library should also load elsewhere

    lock = open_private(file.with_suffix(".lock"), os.O_RDWR | os.O_APPEND)
    is_orphan = is_forked_orphan or (lambda: False)

    def is_taken() -> bool:
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | (fcntl.LOCK_NB if is_forked_orphan else 0))
            return False
        if is_forked_orphan and not _last_start(lock)[1]:  # forks of the last one have the lock, too
            _end_leftovers(file, lock, is_forked=True)
        return not is_orphan()

    def is_refused() -> bool:  # a server that ends before it was accepted: its rollout reports why
        return bool(os.fstat(lock).st_size) and not program_of(file)["restart"] and not is_orphan()

    wait_while(is_taken, timeout=_EVER, error=RuntimeError, pause=0.02)
    wait_while(is_refused, timeout=_EVER, error=RuntimeError, pause=0.1)
    if is_orphan():
        return NEVER
    _end_leftovers(file, lock, is_forked=is_forked_orphan is not None)
    os.write(lock, f"{identity(os.getpid())}\n".encode())
    return lock


def program_of(file: Path) -> dict[str, Any]:
    """A program file."""
    return json.loads(file.read_text())


def _last_start(lock: int) -> tuple[int, bool]:
    """The process that the lock was last taken by, and whether it runs."""
    starts = os.pread(lock, os.fstat(lock).st_size, 0).decode().split()
    pid = int(starts[-1].split(":")[-2]) if starts else 0
    return pid, bool(starts) and identity(pid) == starts[-1]


def _end_leftovers(file: Path, lock: int, *, is_forked: bool) -> None:
    """End the workers of a program that was killed, which hold its port, when they have ended what they have begun."""
    program = program_of(file)
    if file.stem == PARENT:
        return
    environment = program["environment"]
    former, is_alive = _last_start(lock) if is_forked else (0, True)  # its process group has the same number

    def is_leftover(process: "processes.psutil.Process") -> bool:
        if processes.mark(process, processes.PROGRAM) == environment[processes.PROGRAM]:
            return True
        with suppress(ProcessLookupError):
            return not is_alive and os.getpgid(process.pid) == former
        return False

    group = processes.marked(Path(environment[processes.STATE_DIR])).get(environment[processes.ROLE], [])
    processes.stop(filter(is_leftover, group), grace=program["grace"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
