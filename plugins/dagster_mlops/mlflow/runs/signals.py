"""Interruptions that arrive late: not while a run is being closed, nor in the middle of a transaction."""

import _thread
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_AGAIN_S = 0.02
_LONGEST_S = 10.0  # a database that hangs is interrupted in the end
# Python drops what is raised in a callback of its garbage collector, such as SQLAlchemy has for its collections.
_CALLBACKS = {"__del__", "weakref", "_weakrefset", "importlib._bootstrap"}
_DATABASES = {"sqlalchemy", "sqlite3", "psycopg", "psycopg2", "pymysql"}


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold back SIGINT and SIGTERM until the block has ended; it has to end by itself within seconds.

    A step that is terminated gets more than one: from whoever stops all processes at once, and from Dagster, which
    interrupts the process of each of its steps. The second one would cut off what the first one has begun.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    came: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.signal(number, hold) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if came:
            signal.raise_signal(came[0])


@contextmanager
def delivered_outside_of_databases() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back for as long as the main thread asks a database.

    Whoever handled them before handles them then. Raised in a transaction, an interruption leaves the database locked,
    and closing the runs fails; raised in a callback of the garbage collector, it is lost, and nothing stops.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        signo: handler for signo in (signal.SIGINT, signal.SIGTERM) if callable(handler := signal.getsignal(signo))
    }
    since: dict[int, float] = {}

    def handle(signo: int, frame: FrameType | None) -> None:
        waited = time.monotonic() - since.setdefault(signo, time.monotonic())
        if waited < _LONGEST_S and _must_not_be_interrupted(frame):
            # Not by `threading`, of whose locks the interrupted code may hold one.
            _thread.start_new_thread(_send_again, (signo,))
        else:
            since.pop(signo)
            before[signal.Signals(signo)](signo, frame)

    for signo in before:
        signal.signal(signo, handle)
    try:
        yield
    finally:
        for signo, handler in before.items():
            if signal.getsignal(signo) is handle:
                signal.signal(signo, handler)


def _send_again(signo: int) -> None:
    time.sleep(_AGAIN_S)
    os.kill(os.getpid(), signo)


def _must_not_be_interrupted(frame: FrameType | None) -> bool:
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] in _DATABASES or {module, frame.f_code.co_name} & _CALLBACKS:
            return True
        frame = frame.f_back
    return False
