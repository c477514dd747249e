"""Waits with a time limit: for a problem to go away, and for an action that fails for a while to succeed."""

import time
from collections.abc import Callable, Iterable
from itertools import repeat
from typing import TypeVar

_T = TypeVar("_T")


def wait_while(
    problem: Callable[[], _T], *, timeout: float, error: Callable[[_T], Exception], pause: float = 0.05
) -> None:
    """Return as soon as `problem` returns nothing, such as an empty text, None or False.

    Raises:
        Exception: the one that `error` makes of the last problem, after `timeout` seconds.

    >>> wait_while(lambda: "the port is closed", timeout=0, error=lambda problem: TimeoutError(f"{problem} after 0 s"))
    Traceback (most recent call last):
    ...
    TimeoutError: the port is closed after 0 s
    """
    deadline = time.monotonic() + timeout
    while current := problem():
        if time.monotonic() > deadline:
            raise error(current)
        time.sleep(pause)


def retry(
    action: Callable[[], _T],
    *,
    is_transient: Callable[[Exception], object],
    timeout: float = float("inf"),
    pauses: Iterable[float] = repeat(0.1),
) -> _T:
    """The result of `action`, which is called again after each error that `is_transient` accepts.

    Its last error passes through: when `timeout` seconds have gone by, or after the last of the `pauses` (in seconds).
    """
    deadline = time.monotonic() + timeout
    for pause in pauses:
        try:
            return action()
        except Exception as error:
            if time.monotonic() > deadline or not is_transient(error):
                raise
        time.sleep(pause)
    return action()
