"""The end of a server whose model does not return, so that its supervisor starts it again."""

import faulthandler
import logging
import os
import threading
from collections.abc import Callable

_logger = logging.getLogger("bentoml.dagster_mlops")


def watch(longest_call: Callable[[], tuple[float, list[str]]], timeout: float, patience: float | None = None) -> None:
    """End this process when a call lasts much longer than a request may; the log gets its request and all stacks.

    After `timeout` seconds no one waits for the call any more. The server is not ready from then on, and `patience` is
    for the requests that its other threads have. A call that returns meanwhile changes nothing.

    Args:
        longest_call: Seconds that the oldest unfinished call has lasted, and names of its requests.
        timeout: Seconds for a request.
        patience: Seconds after that; as many again, and at least 10, unless given.
    """
    limit = timeout + (max(timeout, 10.0) if patience is None else patience)
    threading.Thread(target=_watch, args=(longest_call, timeout, limit), name="watchdog", daemon=True).start()


def _watch(longest_call: Callable[[], tuple[float, list[str]]], timeout: float, limit: float) -> None:
    pause, warned, never = min(1.0, timeout / 10), False, threading.Event()
    while True:
        # A call into C that keeps the interpreter's lock stops this loop, too. Then Python's own watchdog, a thread
        # that needs no such lock, writes the stacks and ends the process.
        faulthandler.dump_traceback_later(limit + pause, exit=True)
        seconds, requests = longest_call()
        late = f"the model has not returned for {seconds:.0f} s; it was asked for {', '.join(requests[:10])}"
        if seconds > limit:
            _logger.error("%s. This server ends, and its supervisor starts it again. All stacks:", late)
            faulthandler.dump_traceback()
            os._exit(1)
        if seconds > timeout and not warned:
            _logger.warning("%s. This server is not ready until it returns.", late)
        warned = seconds > timeout
        never.wait(pause)
