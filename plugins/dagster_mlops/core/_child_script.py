"""Main program of a child process of :mod:`dagster_mlops.core.child`: loads a script and calls its `answer`.

Usage: ``python -c BOOTSTRAP THIS_FILE SCRIPT DESCRIPTOR``. Requests are lines of JSON on standard input, answers lines
of JSON on the descriptor. It needs Python's own library only: the environment may be one without dagster-mlops.
"""

import json
import os
import queue
import runpy
import select
import signal
import sys
import threading
import traceback


def main(script: str, descriptor: int) -> None:
    """Answer until an empty line comes."""
    os.set_inheritable(descriptor, False)  # a command that the script runs must not hold it open
    requests = _requests()
    answer = None
    while line := requests.get():
        try:
            answer = answer or runpy.run_path(script)["answer"]
            message = {"answer": answer(json.loads(line))}
        except Exception:  # noqa: BLE001 (whatever the script raises)
            traceback.print_exc()
            message = {"traceback": traceback.format_exc()}
        sys.stdout.flush()
        sys.stderr.flush()
        text = (json.dumps(message) + "\n").encode()
        while text:
            text = text[os.write(descriptor, text) :]
        if "traceback" in message:
            raise SystemExit(1)


def _requests() -> "queue.Queue[bytes]":
    """The lines on standard input, which is empty for the script and its commands.

    This process and its children end when the one that asks has ended: then the pipe closes, or, if a fork of that
    process holds it open, another process becomes the parent.
    """
    pipe, parent = os.dup(0), os.getppid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    lines: queue.Queue[bytes] = queue.Queue()

    def read() -> None:
        rest = b""
        while os.getppid() == parent:
            if select.select([pipe], [], [], 1.0)[0]:
                received = os.read(pipe, 1 << 16)
                if not received:
                    break
                *complete, rest = (rest + received).split(b"\n")
                for line in complete:
                    lines.put(line)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=read, daemon=True).start()
    return lines


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
