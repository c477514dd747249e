"""A process that imports once what all replicas of a deployment need, and forks each of them, again when it ends.

A fork serves within the time that its model takes to load, and shares the memory of the imports. Replicas outlive this
process: the next one forks copies that wait for their locks, as :mod:`.program` does.
"""

import gc
import importlib
import logging
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dagster_mlops.core.child import become
from dagster_mlops.core.private_files import open_private, private_umask
from dagster_mlops.core.waits import wait_while
from dagster_mlops.serving.local import processes
from dagster_mlops.serving.local.program import NEVER, program_of, take_place

_logger = logging.getLogger(__name__)
_QUICK = 5.0  # seconds; a replica that ends sooner again and again is started after a pause, which grows
_LONGEST_PAUSE = 30.0


@dataclass
class _Replica:
    file: Path
    start: float = 0
    quick: int = 0  # ends in a row that came soon after the start

    def pause(self) -> float:
        """Seconds until the next start; 0 after the first end."""
        self.quick = self.quick + 1 if time.monotonic() - self.start < _QUICK else 0
        return min(max(0.0, self.quick - 1.0), _LONGEST_PAUSE)


def main(files: Sequence[Path]) -> None:
    """Fork a replica for each program file, and again when it ends; with SIGTERM, end them and return."""
    own_lock = _inherited(files[0].with_name(f"{os.environ[processes.PROGRAM]}.lock"))
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
    # Before the imports: threads of libraries inherit the mask, so that a signal waits for `sigwait` below.
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # by default, some systems drop it although it is blocked
    gc.disable()
    _import(program_of(files[0])["preload"])
    gc.freeze()  # or each collection would write to the pages that are shared
    # A fork has one thread, and maybe a lock that another held.
    is_safe = threading.active_count() == 1
    if not is_safe:
        _logger.warning("an import has started a thread, so that each replica imports for itself")
    parent, replicas = os.getpid(), {}
    starts = [(_Replica(file), 0.0) for file in files]
    while True:
        for replica, pause in starts:
            replica.start = time.monotonic() + pause
            if not (pid := os.fork()):
                os.close(own_lock)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
                return _serve(replica, parent, in_fork=is_safe)
            replicas[pid] = replica
        if signal.sigwait(signals) != signal.SIGCHLD:
            return _end(replicas)
        starts = [(replica, replica.pause()) for replica in _ended(replicas)]


def _import(names: Sequence[str]) -> None:
    for name in names:
        module, _, function = name.partition(":")
        try:
            imported = importlib.import_module(module)
            if function:
                getattr(imported, function)()
        except Exception as error:  # noqa: BLE001 - whoever needs it says so, or does without
            _logger.warning("%s is not imported for all replicas: %s", name, error)


def _inherited(lock: Path) -> int:
    """The descriptor of this process's own lock, which no replica must hold."""
    descriptors = [int(name) for name in os.listdir("/dev/fd")]
    for descriptor in descriptors:
        with suppress(OSError):  # that of the folder itself
            if os.path.samestat(os.fstat(descriptor), lock.stat()):
                return descriptor
    raise RuntimeError(f"{lock} is not open: this process was not started by its supervisor.")


def _ended(replicas: dict[int, _Replica]) -> list[_Replica]:
    ended = []
    with suppress(ChildProcessError):  # there are no more
        while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
            ended += [replicas.pop(pid)] if pid in replicas else []
    return ended


def _end(replicas: dict[int, _Replica]) -> None:
    for pid in replicas:
        os.kill(pid, signal.SIGTERM)
    for pid in replicas:
        os.waitpid(pid, 0)


def _serve(replica: _Replica, parent: int, *, in_fork: bool) -> None:
    """Wait until no other copy of the replica runs, and run its command: in this fork, or in its place."""
    os.setpgid(0, 0)  # by which what it leaves behind is known
    is_orphan = lambda: os.getppid() != parent  # noqa: E731
    is_early = lambda: time.monotonic() < replica.start and not is_orphan()  # noqa: E731
    wait_while(is_early, timeout=float("inf"), error=RuntimeError, pause=0.1)
    file, lock = replica.file, take_place(replica.file, is_orphan)
    if lock == NEVER:
        return
    program = program_of(file)
    log = open_private(Path(program["log"]), os.O_WRONLY | os.O_APPEND)
    if not in_fork:
        os.set_inheritable(lock, True)
        become(program["command"], env=program["environment"], output=log, umask=private_umask(file.parent))
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    os.environ.clear()
    os.environ.update(program["environment"])
    if "numpy" in sys.modules:  # unlike Python's own random numbers, they would be the same in every fork
        sys.modules["numpy"].random.seed()
    gc.enable()
    module, *arguments = program["command"][program["command"].index("-m") + 1 :]
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
