"""Child processes that end with us: programs, and Python scripts that answer requests."""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NoReturn

from dagster_mlops.errors import DagsterMlopsError

_BOOTSTRAP = (
    # A script does not run by its path: its neighbours, such as git.py, would hide packages of the same names. So would
    # the user's files, if the working directory were on the path.
    "import sys; sys.path[:] = [place for place in sys.path if place]; import runpy; "
    "runpy.run_path(sys.argv.pop(1), run_name='__main__')"
)
_INSIDE = Path(__file__).with_name("_child_script.py")
_TAIL = 200  # lines of output that are kept for an error
_BATCH = 1.0  # seconds between two calls of `output`: each may become an event in a database
_LOOK = 0.5  # seconds between two checks that the child is alive
_FAREWELL = 10.0  # seconds that a child has to exit by itself after its last answer


class ChildError(DagsterMlopsError):
    """A child process gave no answer.

    `reason` says why in a few words, `text` is the traceback of the script, or else the last lines it printed, and
    `returncode` that of the process: negative if a signal ended it, None if it took too long and was ended.
    """

    def __init__(self, reason: str, text: str = "", returncode: int | None = None) -> None:
        super().__init__(f"{reason}\n{text}".strip())
        self.reason, self.text, self.returncode = reason, text, returncode

    @property
    def how(self) -> str:
        """The end of the process in a few words."""
        return "took too long" if self.returncode is None else _how(self.returncode)


def run_program(
    command: Sequence[str],
    *,
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    timeout: float,
) -> "subprocess.CompletedProcess[bytes]":
    """Run a program to its end. On a timeout or an interrupt, it is killed together with its children.

    Without `env` it gets the whole environment; see :func:`child_session`.

    Raises:
        OSError: there is no such program.
        ChildError: it did not end within `timeout` seconds.
    """
    process = start(command, cwd=cwd, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process, _ended(process):
        try:
            output, errors = process.communicate(stdin, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise ChildError(f"{command[0]} did not end within {timeout:g} s.") from None
        return subprocess.CompletedProcess(command, process.returncode, output, errors)


def run_child(script: Path, request: Any, *, timeout: float | None, **options: Any) -> Any:
    """The answer of a Python script to one request; `options` are those of :func:`child_session`.

        stages = run_child(Path(__file__).with_name("_describe_script.py"), {"root": "."}, cwd=root, timeout=60)

    Raises:
        ChildError: the script fails, or does not answer within `timeout` seconds.
    """
    with child_session(script, **options) as child:
        return child.ask(request, timeout=timeout)


@contextmanager
def child_session(
    script: Path,
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    python: str = sys.executable,
    output: Callable[[list[str]], Any] = lambda lines: None,
    grace: float = 0,
    umask: int = -1,
) -> "Iterator[Child]":
    """A Python script in a separate process, which answers requests until the block ends.

    The script defines ``answer(request)``; both are JSON. Requests go through standard input rather than arguments or
    files, because they may hold secrets, and answers through a separate descriptor, because libraries print. The
    process ends, together with its children, when the block does, and when this process dies, for whatever reason.

    Args:
        script: The file. Its imports are those of `python`; neither its folder nor `cwd` is on the path.
        cwd: The working directory.
        env: The environment: :func:`dagster_mlops.core.environment.child_environment`, or ``whole_environment`` for
            what the user wrote. None is the latter.
        python: The interpreter; its environment need not have this library.
        output: Called, in the thread that asks and at most once a second, with the lines that are printed.
        grace: Seconds between asking the process to stop and killing it, when the block ends by an exception.
        umask: Its umask; -1 is this process's.
    """
    answers, descriptor = os.pipe()
    os.set_inheritable(descriptor, True)
    command = [python, "-B", "-u", "-c", _BOOTSTRAP, str(_INSIDE), str(script), str(descriptor)]
    pipe = subprocess.PIPE
    try:
        options: Any = {"cwd": cwd, "env": env, "umask": umask, "keep": [descriptor]}
        process = start(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, **options)
    except BaseException:
        os.close(answers)
        raise
    finally:
        os.close(descriptor)
    with os.fdopen(answers, "rb", buffering=0) as channel, process, _ended(process, grace):
        yield (child := Child(process, channel, output))
        child.part()


class Child:
    """A script that waits for requests in a separate process. Made by :func:`child_session`."""

    def __init__(
        self, process: "subprocess.Popen[bytes]", channel: IO[bytes], output: Callable[[list[str]], Any]
    ) -> None:
        assert process.stdin and process.stdout
        self._process, self._requests, self._printed, self._channel = process, process.stdin, process.stdout, channel
        self._output, self._due = output, 0.0
        self._batch: list[str] = []
        self._tail: deque[str] = deque(maxlen=_TAIL)
        self._rest = {channel: bytearray(), process.stdout: bytearray()}
        self._open = set(self._rest)
        for stream in self._open:
            os.set_blocking(stream.fileno(), False)

    def ask(self, request: Any, *, timeout: float | None = None) -> Any:
        """The script's answer.

        Raises:
            ChildError: the script fails, or does not answer within `timeout` seconds. It answers no more after that.
        """
        self._tail.clear()
        self._send(json.dumps(request).encode())
        deadline = time.monotonic() + timeout if timeout is not None else float("inf")
        try:
            while (message := self._message()) is None:
                # A dead process may have left an answer in the pipe, so that is read once more.
                if self._process.poll() is not None and (message := self._message()) is None:
                    raise self._died()
                if message is not None:
                    break
                if time.monotonic() >= deadline:
                    raise ChildError(f"no answer within {timeout:g} s", "\n".join(self._tail))
                self._wait(min(_LOOK, max(0.0, deadline - time.monotonic())))
                self._pass_on()
        finally:
            self._read(self._printed)  # the child printed it before it answered
            self._pass_on(all_lines=True)
        if "traceback" in message:
            raise ChildError(last_line(message["traceback"]), message["traceback"], 1)
        return message["answer"]

    def part(self) -> None:
        """Let the process exit by itself, because its libraries may have to clean up."""
        self._send(b"")
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_FAREWELL)

    def _send(self, line: bytes) -> None:
        text = line + b"\n"
        with suppress(BrokenPipeError):  # it has ended already; the reason is known when no answer comes
            while text:
                text = text[os.write(self._requests.fileno(), text) :]

    def _message(self) -> dict[str, Any] | None:
        lines = self._read(self._channel)
        return json.loads(lines[0]) if lines else None

    def _wait(self, seconds: float) -> None:
        if self._batch:
            seconds = min(seconds, max(0.0, self._due - time.monotonic()))
        if self._open:
            with selectors.DefaultSelector() as selector:
                for stream in self._open:
                    selector.register(stream, selectors.EVENT_READ)
                selector.select(seconds)
        else:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        self._read(self._printed)

    def _read(self, stream: IO[bytes]) -> list[bytearray]:
        """The complete lines that have come; those of the output also go to the callback and into errors."""
        complete: list[bytearray] = []
        while stream in self._open:
            try:
                received = os.read(stream.fileno(), 1 << 16)
            except BlockingIOError:
                break
            if not received:
                self._open.remove(stream)
                received = b"\n" if self._rest[stream] else b""
            self._rest[stream] += received
            if b"\n" in received:
                *new, self._rest[stream] = self._rest[stream].split(b"\n")
                complete += new
        if stream is self._printed:
            lines = [line.decode(errors="replace").rstrip("\r") for line in complete if line.strip()]
            self._batch += lines
            self._tail.extend(lines)
        return complete

    def _pass_on(self, *, all_lines: bool = False) -> None:
        if self._batch and (all_lines or time.monotonic() >= self._due):
            batch, self._batch, self._due = self._batch, [], time.monotonic() + _BATCH
            self._output(batch)

    def _died(self) -> ChildError:
        self._read(self._printed)
        code = self._process.returncode
        return ChildError(" ".join([*list(self._tail)[-1:], f"({_how(code)})"]), "\n".join(self._tail), code)


def start(
    command: Sequence[str],
    *,
    cwd: Path | str | None,
    env: Mapping[str, str] | None,
    stdin: Any = subprocess.DEVNULL,
    stdout: Any,
    stderr: Any = subprocess.STDOUT,
    keep: Sequence[int] = (),
    umask: int = -1,
) -> "subprocess.Popen[bytes]":
    """Start a process in a session of its own, so that its children can be ended with it.

    This library starts processes nowhere else.
    """
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        umask=umask,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        pass_fds=keep,
        start_new_session=True,
    )


def become(command: Sequence[str], *, env: Mapping[str, str], output: int, umask: int) -> NoReturn:
    """Replace the program of this process by another, which writes to the file descriptor `output`."""
    os.umask(umask)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.execvpe(command[0], list(command), dict(env))


@contextmanager
def _ended(process: "subprocess.Popen[bytes]", grace: float = 0) -> Iterator[None]:
    """Kill the process and its children when the block ends; after an exception, first ask it to stop for `grace` s."""
    try:
        yield
    except BaseException:
        if grace and process.poll() is None:
            _signal(process, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(grace)
        raise
    finally:
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: "subprocess.Popen[bytes]", number: int) -> None:
    with suppress(ProcessLookupError):  # no one is left
        os.killpg(process.pid, number)


def _how(returncode: int) -> str:
    return f"exit code {returncode}" if returncode >= 0 else f"ended by {signal.Signals(-returncode).name}"


def last_line(text: str) -> str:
    """The last line of an output that is not blank."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no message")
