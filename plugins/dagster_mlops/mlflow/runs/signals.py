"""Delayed interrupts: not while a run is being closed, nor in the middle of a transaction."""

import _thread
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_AGAIN_S = 0.02
_LONGEST_S = 10.0  # then a database that hangs is interrupted
# Python drops what is raised in a callback of its garbage collector, which SQLAlchemy uses for its collections.
_CALLBACKS = {"__del__", "weakref", "_weakrefset", "importlib._bootstrap"}
_DATABASES = {"sqlalchemy", "sqlite3", "psycopg", "psycopg2", "pymysql"}


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold back SIGINT and SIGTERM until the block ends, which it must do within seconds.

    A terminated step gets more than one signal: from the sender that stops all processes, and from Dagster, which
    interrupts the process of each step. The second signal would interrupt the cleanup after the first one.
    """
    if threading.current_thread() is not threading.main_thread():  # only it gets signals
        yield
        return
    signals: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        signals.append(number)

    before = {number: signal.signal(number, hold) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if signals:
            signal.raise_signal(signals[0])


@contextmanager
def delivered_outside_of_databases() -> Iterator[None]:
    """Hold back SIGINT and SIGTERM while the main thread is inside a database query.

    Afterwards the previous handlers handle them. An interrupt that is raised in a transaction leaves the database
    locked, so that closing the runs fails; one that is raised in a callback of the garbage collector is lost.
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
            # Not with `threading`: the interrupted code may hold one of its locks.
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
