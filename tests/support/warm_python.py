"""Child Pythons that find their tools imported: each is forked from a server that has spent the seconds once.

In the scope of such a fixture, every ``python -c``, ``python -m``, ``python FILE`` and console script that `subprocess`
starts, and every process of `processes`, is a fork of that server: a real child of the test, with its own session,
descriptors, folder and environment, to be waited for and killed like any other. The server's are its hash seed, that it
ignores warnings, and what ``/proc`` says of its command line and environment. What cannot be imitated (other options, a
shell, another user) starts as usual.
"""

import array
import atexit
import ctypes
import functools
import inspect
import multiprocessing.util
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Not forks of the tests: the threads of Arrow and DuckDB would not survive them.
processes = multiprocessing.get_context("spawn")

_REAL = subprocess.Popen
_REAL_SPAWN = multiprocessing.util.spawnv_passfds
_PARAMETERS = list(inspect.signature(_REAL._execute_child).parameters)[2:]  # pyright: ignore[reportAttributeAccessIssue]
_DEFAULTS = {"preexec_fn": None, "shell": False, "gid": None, "gids": None, "uid": None, "process_group": -1}
_SERVER = str(Path(__file__).with_name("warm_server.py"))
_PR_SET_CHILD_SUBREAPER = 36


def warm_python(*modules: str) -> Callable[..., Any]:
    """A fixture in whose scope child Pythons find `modules` imported. Only what is installed can be named."""

    @pytest.fixture(scope="module")
    def warm() -> Iterator[None]:
        server = _server(modules)
        with pytest.MonkeyPatch.context() as patch:
            if sys.platform == "linux":
                patch.setattr(subprocess, "Popen", type("Popen", (_WarmPopen,), {"server": server}))
                patch.setattr(multiprocessing.util, "spawnv_passfds", server.spawn)
            yield

    return warm


_DVC = [
    "dagster._cli", "dagster_dg_cli.cli", "dagster_mlops.cli", "dvc.cli.parser", "dvc.repo.reproduce", "pandas",
    "pyarrow.parquet",
]  # fmt: skip
_TOOLS = [
    "alembic.command", "bentoml", "dagster_mlops.feast.offline_store", "dagster_mlops.mlflow.sweep",
    "evidently.presets", "feast.cli.cli", "feast.infra.compute_engines.local.compute", "matplotlib.figure",
    "mlflow.pyfunc", "mlflow.sklearn", "mlflow.store.tracking.sqlalchemy_store", "optuna.storages", "sklearn.compose",
    "sklearn.ensemble", "sklearn.linear_model", "sklearn.tree", "skops.io",
]  # fmt: skip

# Two seconds for Dagster's commands and DVC, and a dozen for everything: once for each worker of the tests.
warm_dvc = warm_python(*_DVC)
warm_tools = warm_python(*_DVC, *_TOOLS)


@pytest.fixture
def cold_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Child Pythons that import everything themselves, in a module whose others are warm."""
    monkeypatch.setattr(subprocess, "Popen", _REAL)


# Of a worker of the whole suite, which is a fork itself.
_OWN_SERVER = os.environ.pop("TESTS_WARM_SERVER", "")


def start_workers_warm() -> None:
    """From now on, Python's children of this process have all tools imported, and so have their own children."""
    if sys.platform == "linux":
        options = {"server": _Server((*_DVC, *_TOOLS)), "own_server": True}
        subprocess.Popen = type("Popen", (_WarmPopen,), options)


class _WarmPopen(_REAL):
    server: "_Server"
    own_server = False

    def _execute_child(self, args: Any, executable: Any, *values: Any) -> None:
        options = dict(zip(_PARAMETERS, (executable, *values), strict=True))
        program = _program(args) if isinstance(args, (list, tuple)) else None
        usual = executable in (None, sys.executable) and all(options.get(k, v) == v for k, v in _DEFAULTS.items())
        # Of a served process, its environment in /proc tells which deployment it belongs to.
        own = {"PYTHONHASHSEED", "DAGSTER_MLOPS_ROLE"} & set(map(os.fsdecode, options["env"] or os.environ))
        if program is None or not usual or own or not os.path.isdir(options["cwd"] or "."):
            super()._execute_child(args, executable, *values)  # pyright: ignore[reportAttributeAccessIssue]
            return
        streams = [options["p2cread"], options["c2pwrite"], options["errwrite"]]
        files = {number: number if given == -1 else given for number, given in enumerate(streams)}
        files.update({kept: kept for kept in options["pass_fds"]})
        request = {
            **program,
            "cwd": os.path.abspath(os.fsdecode(options["cwd"] or os.getcwd())),
            "env": {os.fsdecode(k): os.fsdecode(v) for k, v in (options["env"] or os.environ).items()},
            "session": options["start_new_session"],
            "umask": options["umask"],
            "own_server": self.own_server,
        }
        self.pid = self.server.fork(request, files)
        self._child_created = True
        self._close_pipe_fds(*[  # pyright: ignore[reportAttributeAccessIssue]
            options[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        ])  # fmt: skip


def _program(command: list[Any] | tuple[Any, ...]) -> dict[str, Any] | None:
    """What Python is asked to run; None where that is not a plain ``-c``, ``-m`` or file."""
    first, *rest = map(os.fspath, command)
    if _is_script(first):
        rest = [first, *rest]
    elif first != sys.executable:
        return None
    options: list[str] = []
    while rest and rest[0] in ("-B", "-u"):
        options.append(rest.pop(0))
    match rest[2:] if rest[:2] == ["-W", "ignore"] else rest:
        case ["-c", code, *arguments]:
            return {"kind": "code", "what": code, "argv": ["-c", *arguments], "options": options}
        case ["-m", module, *arguments]:
            return {"kind": "module", "what": module, "argv": [module, *arguments], "options": options}
        case [file, *arguments] if not file.startswith("-"):
            return {"kind": "file", "what": file, "argv": [file, *arguments], "options": options}
    return None


@functools.cache
def _is_script(file: str) -> bool:
    """Whether a file is a command of the same Python, as `dvc` and `dagster` are."""
    path = Path(file)
    return (
        path.parent == Path(sys.executable).parent
        and path.is_file()
        and path.read_bytes()[:99].startswith(f"#!{sys.executable}\n".encode())
    )


class _Server:
    """A process that has imported `modules`, and forks when it is told to."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        self._turn = threading.Lock()
        self._process = None
        if _OWN_SERVER and {*modules} <= {*_DVC, *_TOOLS}:
            self._socket = socket.socket(fileno=os.dup(int(_OWN_SERVER)))
            return
        self._socket, theirs = socket.socketpair()
        command = [sys.executable, "-W", "ignore", _SERVER, str(theirs.fileno()), *modules]
        with theirs:
            self._process = _REAL(command, pass_fds=[theirs.fileno()], cwd="/", stdout=subprocess.DEVNULL)
        atexit.register(self.stop)

    def fork(self, request: dict[str, Any], files: dict[int, int]) -> int:
        """Start a child of *this* process. `files`: its descriptors, as number there to number here."""
        content = pickle.dumps({**request, "numbers": list(files)})
        handed = array.array("i", files.values())
        with self._turn:
            # The server's fork forks once more and ends; its child goes to the nearest ancestor that takes in orphans.
            _take_in_orphans(True)
            try:
                length = len(content).to_bytes(8, "big")
                self._socket.sendmsg([length], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, handed)])
                self._socket.sendall(content)
                return int.from_bytes(_receive(self._socket, 8), "big")
            finally:
                _take_in_orphans(False)

    def spawn(self, path: bytes, arguments: list[str | bytes], kept: list[int]) -> int:
        """What `multiprocessing` calls to start a process of `processes`."""
        program = _program([os.fsdecode(argument) for argument in arguments])
        if program is None:
            return _REAL_SPAWN(path, arguments, kept)
        place = {"cwd": os.getcwd(), "env": dict(os.environ), "session": False, "umask": -1, "own_server": False}
        return self.fork({**program, **place}, {number: number for number in (0, 1, 2, *kept)})

    def stop(self) -> None:
        self._socket.close()
        if self._process:
            self._process.kill()  # it may still be importing
            self._process.wait(10)


@functools.cache
def _server(modules: tuple[str, ...]) -> _Server:
    return _Server(modules)


def _take_in_orphans(yes: bool) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0)


def _receive(connection: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        if not (more := connection.recv(size - len(content))):
            raise EOFError("the server of warm Pythons has ended")
        content += more
    return content
