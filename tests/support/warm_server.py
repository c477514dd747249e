"""The server behind `warm_python`: imports the modules that its command line names, then forks for each request."""

import atexit
import contextlib
import fcntl
import gc
import importlib
import logging
import os
import pickle
import runpy
import signal
import socket
import sys
import tempfile
import threading
import time
import types
import warnings
from typing import Any

# Above every descriptor that anybody asks for. Those that imports leave open are above it, too, and stay open in forks:
# a library that closed the number of one that is closed already would close whatever has that number since.
HIGH = 500
OWN_SERVER = "TESTS_WARM_SERVER"
SET_BY_IMPORTS: dict[str, str] = {}  # variables


def serve(connection: socket.socket) -> None:
    """Fork for each request, until the other end is closed. A request is a length with descriptors, then a pickle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, whose end is the end of this
    while True:
        length, files, _, _ = socket.recv_fds(connection, 8, 64)
        if not length:
            return
        request = pickle.loads(receive(connection, int.from_bytes(length, "big")))
        reading, writing = os.pipe()
        starter = os.fork()
        if starter == 0:
            starter = os.getpid()
            if os.fork():
                os._exit(0)
            while os.getppid() == starter:  # until it is the child of whoever asked
                time.sleep(0.0005)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whatever the tests did when they started the server
            if request["session"]:
                os.setsid()
            if request["own_server"]:
                sys.warnoptions.clear()  # or multiprocessing would hand it on
                logging.root.handlers.clear()  # that a tool has set up as it was imported
                logging.root.setLevel(logging.WARNING)
                request["env"][OWN_SERVER] = str(own_server())
            os.write(writing, os.getpid().to_bytes(8, "big"))
            become(request, files)
        os.waitpid(starter, 0)
        connection.sendall(os.read(reading, 8))
        for file in (reading, writing, *files):
            os.close(file)


def own_server() -> int:
    """Fork a server for the forks of this process, with what is imported so far: the descriptor to ask it by."""
    ours, theirs = (fcntl.fcntl(end.detach(), fcntl.F_DUPFD, 2 * HIGH) for end in socket.socketpair())
    if os.fork() == 0:
        os.closerange(3, HIGH)
        os.close(ours)
        quiet = os.open(os.devnull, os.O_RDWR)
        os.dup2(quiet, 0)
        os.dup2(quiet, 1)
        serve(socket.socket(fileno=theirs))
        os._exit(0)
    os.close(theirs)
    return ours


def receive(connection: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        if not (more := connection.recv(size - len(content))):
            raise EOFError("the other end was closed in the middle of a message")
        content += more
    return content


def become(request: dict[str, Any], files: list[int]) -> None:
    """Be the Python that was asked for, and end as it would."""
    moved = [fcntl.fcntl(file, fcntl.F_DUPFD, HIGH) for file in files]
    os.closerange(3, HIGH)
    for file, number in zip(moved, request["numbers"], strict=True):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["cwd"])
    if request["umask"] != -1:
        os.umask(request["umask"])
    os.environ.clear()
    os.environ.update({**SET_BY_IMPORTS, **request["env"]})
    time.tzset()
    tempfile.tempdir = None
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    sys.dont_write_bytecode = "-B" in request["options"] or "PYTHONDONTWRITEBYTECODE" in os.environ
    if "-u" in request["options"] or "PYTHONUNBUFFERED" in os.environ:
        sys.stdout.reconfigure(write_through=True)  # pyright: ignore[reportAttributeAccessIssue]
    sys.argv = request["argv"]
    kind, what = request["kind"], request["what"]
    first = {"code": "", "module": os.getcwd(), "file": os.path.dirname(os.path.abspath(what))}[kind]
    sys.path[:0] = [first, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    code = 0
    try:
        if kind == "module":
            runpy._run_module_as_main(what)  # what `python -m` calls  # pyright: ignore[reportAttributeAccessIssue]
        elif kind == "code":
            exec(compile(what, "<string>", "exec"), main.__dict__)
        else:
            main.__file__ = what
            with open(what, "rb") as source:
                exec(compile(source.read(), what, "exec"), main.__dict__)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    with contextlib.suppress(BaseException):
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


if __name__ == "__main__":
    gc.disable()  # what is imported stays
    databases = importlib.import_module("quick_databases")  # beside this file
    del sys.path[0]
    served = int(sys.argv[1])
    taken = [os.open(os.devnull, os.O_RDONLY)]
    while taken[-1] < HIGH - 1:
        taken.append(os.dup(taken[0]))
    before = dict(os.environ)
    # Tools change the filters while they are imported, so that ignoring warnings does not last.
    shown, warnings.showwarning = warnings.showwarning, lambda *_, **__: None
    for name in sys.argv[2:]:
        importlib.import_module(name)
    warnings.showwarning = shown
    SET_BY_IMPORTS.update(os.environ.items() - before.items())
    databases.install()
    for file in taken:
        os.close(file)
    gc.enable()
    gc.freeze()  # what is imported stays in memory that all forks share
    serve(socket.socket(fileno=served))
    os._exit(0)
