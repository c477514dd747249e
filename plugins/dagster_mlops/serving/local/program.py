"""The start of a supervised program: it waits until no earlier copy runs.

A supervisor may be killed while its programs go on. The next one starts this module for each of them: it waits for the
lock that the program took over from it, and so lasts exactly as long as the program. Only then does it start a copy.
"""

import json
import os
import sys
from pathlib import Path

from dagster_mlops.core.child import become
from dagster_mlops.core.private_files import open_private, private_umask
from dagster_mlops.core.processes import identity
from dagster_mlops.core.waits import wait_while
from dagster_mlops.serving.local import processes


def main(file: Path) -> None:
    """Become the command of a program file, once no copy of it runs; see :mod:`.supervision`."""
    import fcntl  # only on POSIX, and the library should also load elsewhere

    lock = open_private(file.with_suffix(".lock"), os.O_RDWR | os.O_APPEND)
    fcntl.flock(lock, fcntl.LOCK_EX)
    # A server that ends before it was accepted is not started again: its rollout reports why.
    wait_while(
        lambda: os.fstat(lock).st_size and not _program(file)["restart"],
        timeout=float("inf"),
        error=RuntimeError,
        pause=0.1,
    )
    program = _program(file)
    environment = program["environment"]
    role, name = environment[processes.ROLE], environment[processes.PROGRAM]
    # Of a program that was killed, workers may be left, which hold its port. They end what they have begun.
    leftovers = processes.marked(Path(environment[processes.STATE_DIR])).get(role, [])
    processes.stop(
        (process for process in leftovers if processes.mark(process, processes.PROGRAM) == name),
        grace=program["grace"],
    )
    os.write(lock, f"{identity(os.getpid())}\n".encode())
    os.set_inheritable(lock, True)
    log = open_private(Path(program["log"]), os.O_WRONLY | os.O_APPEND)
    become(program["command"], env=environment, output=log, umask=private_umask(file.parent))


def _program(file: Path) -> dict:
    return json.loads(file.read_text())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
