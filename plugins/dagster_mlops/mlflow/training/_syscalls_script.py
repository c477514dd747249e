"""Watches the files that a process opens and the addresses that it connects to, in C and in other processes as well.

On Linux, the kernel can ask a second process before each such system call
(https://man7.org/linux/man-pages/man2/seccomp_unotify.2.html). It needs no rights, and no more than Python's own
library. Where the system refuses it, such as in some containers, the function runs without it.
"""

import array  # noqa: F401 - for `send_fds`, which would import it when the watch has begun
import ctypes
import json
import os
import platform
import re
import select
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

ON, OFF = "/dagster-mlops/watch-on", "/dagster-mlops/watch-off"
"""Opening one of these begins or ends the watch; there are no such files."""
_DNS = 53
_COARSE = 5  # Linux's clock of files, which is some milliseconds behind
# The system's services, which tell names, users and times, and take logs.
_SERVICES = re.compile(
    r"^(/var)?/run/(systemd|dbus|nscd|avahi-daemon|cups|nvidia-\w+|sssd|uuidd|user/\d+/(bus|systemd|pulse|gnupg|keyring))\b"
    r"|^/dev/log$|^/tmp/\.X11-unix/|^/var/lib/sss/"
)
# By machine: its name in the kernel, the numbers of `seccomp`, `connect` and `listen`, and of each other call (`open`,
# `link`, `rename`, `execve` and those like them) the positions of the folder (-1: none), of the path, and of the flags.
_MACHINES: dict[str, tuple[int, int, int, int, dict[int, tuple[int, int, int]]]] = {
    "x86_64": (
        0xC000003E,
        317,
        42,
        50,
        {2: (-1, 0, 1), 257: (0, 1, 2), 437: (0, 1, -1), 86: (-1, 0, -1), 82: (-1, 0, -1), 265: (0, 1, -1)}
        | {264: (0, 1, -1), 316: (0, 1, -1), 59: (-1, 0, -1), 322: (0, 1, -1)},
    ),
    "aarch64": (
        0xC00000B7,
        277,
        203,
        201,
        {56: (0, 1, 2), 437: (0, 1, -1), 37: (0, 1, -1), 38: (0, 1, -1), 276: (0, 1, -1)}
        | {221: (-1, 0, -1), 281: (0, 1, -1)},
    ),
}
_COPY_DESCRIPTOR = 438  # `pidfd_getfd`, on every machine
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_NOTIFY, _ALLOW = 0x7FC00000, 0x7FFF0000
_NO_NEW_PRIVILEGES = 38


def run_watched(function: Callable[[], Any]) -> tuple[Any, dict[str, list[str]] | None]:
    """The result of `function`, which runs in a fork of this process, and the ``files`` and ``addresses`` it has used.

    Only those are listed that it used between `ON` and `OFF`, and files that were there before. None: not watched.

    Raises:
        RuntimeError: it fails; the text is its traceback.
    """
    if not _can_watch():
        return function(), None
    ours, theirs = socket.socketpair()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        ours.close()
        _run(function, theirs)
    theirs.close()
    end = os.pidfd_open(child)
    with ours, os.fdopen(end, "rb", buffering=0):
        watched, listeners, _, _ = socket.recv_fds(ours, 1, 1)
        reads, text, streams = _Reads(), bytearray(), [ours, end, *listeners]
        # To its end, not to its answer: what it opens as it ends would fail.
        while end in streams:
            for stream in select.select(streams, [], [])[0]:
                if stream is ours and (part := ours.recv(1 << 16)):
                    text += part
                elif stream in listeners:
                    reads.serve(stream)
                else:
                    streams.remove(stream)
        while part := ours.recv(1 << 16):
            text += part
        for listener in listeners:
            os.close(listener)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    answer = json.loads(text) if text else {"traceback": f"The process has ended without an answer (exit code {code})."}
    if "traceback" in answer:
        raise RuntimeError(answer["traceback"])
    return answer["answer"], reads.facts() if watched == b"1" else None


def _can_watch() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):  # another system, or one that lacks calls of Linux
        return False
    return platform.machine() in _MACHINES


def _run(function: Callable[[], Any], answers: socket.socket) -> None:
    """Run the function in this process, watched from now on, and end."""
    try:
        listener = _watched()
        socket.send_fds(answers, [b"1" if listener >= 0 else b"0"], [listener] if listener >= 0 else [])
        if listener >= 0:
            os.close(listener)
        message = {"answer": function()}
    except Exception:  # noqa: BLE001 - whatever the function raises
        message = {"traceback": traceback.format_exc()}
    with answers:
        answers.sendall(json.dumps(message).encode())
    raise SystemExit(0)


def _watched() -> int:
    """Make the kernel ask before each call of the table; the descriptor by which it asks, or -1."""
    architecture, seccomp, connect, listen, calls = _MACHINES[platform.machine()]
    numbers = [connect, listen, *calls]
    # If it is another architecture or another call: allow it.
    program = [(0x20, 0, 0, 4), (0x15, 0, len(numbers) + 1, architecture), (0x20, 0, 0, 0)]
    program += [(0x15, len(numbers) - position, 0, number) for position, number in enumerate(numbers)]
    program += [(0x06, 0, 0, _ALLOW), (0x06, 0, 0, _NOTIFY)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        return -1
    return libc.syscall(seccomp, 1, 8, header)


class _Reads:
    """The files and addresses that the watched processes use while the watch is on."""

    def __init__(self) -> None:
        self._since, self._on = time.clock_gettime(_COARSE), False
        self._files: dict[str, None] = {}
        self._addresses: dict[tuple[str, int], None] = {}
        self._ports: set[int] = set()  # on which the watched processes serve, such as workers of their own
        _, _, self._connect, self._listen, self._calls = _MACHINES[platform.machine()]
        self._libc = ctypes.CDLL(None, use_errno=True)

    def facts(self) -> dict[str, list[str]]:
        foreign = [a for a in self._addresses if a[1] not in self._ports or not _is_of_this_machine(a[0])]
        return {"files": list(self._files), "addresses": [f"{host}:{port}" if port else host for host, port in foreign]}

    def serve(self, listener: int) -> None:
        """Note one call, and let it go on."""
        request = ctypes.create_string_buffer(80)
        if self._libc.ioctl(listener, ctypes.c_ulong(_RECEIVE), request):  # the process has ended, or was interrupted
            return
        call, process, _, number, _, _, *arguments = struct.unpack("QIIiIQ6Q", request)
        with suppress(OSError, ValueError):
            if number == self._connect:
                self._note_address(process, self._memory(process, arguments[1], min(arguments[2], 110)))
            elif number == self._listen:
                self._note_port(process, arguments[0])
            else:
                self._note_file(process, arguments, *self._calls[number])
        self._libc.ioctl(listener, ctypes.c_ulong(_SEND), struct.pack("QqiI", call, 0, 0, 1))

    def _note_file(self, process: int, arguments: list[int], folder: int, path: int, flags: int) -> None:
        name = self._text(process, arguments[path])
        if name in (ON, OFF):
            self._on = name == ON
            return
        mode = arguments[flags] if flags >= 0 else 0
        if not self._on or mode & os.O_ACCMODE == os.O_WRONLY or mode & (os.O_DIRECTORY | os.O_PATH | os.O_TRUNC):
            return
        descriptor = ctypes.c_int(arguments[folder] & 0xFFFFFFFF).value if folder >= 0 else -1
        name = _absolute(name, process, descriptor)
        if name not in self._files and os.path.isfile(name) and os.stat(name).st_ctime < self._since:
            self._files[name] = None

    def _note_address(self, process: int, address: bytes) -> None:
        [family] = struct.unpack_from("=H", address)
        if not self._on:
            return
        if family == socket.AF_UNIX:
            path = os.fsdecode(address[2:].partition(b"\0")[0])
            name = _absolute(path, process) if path else ""  # empty: a name that is not a file, as of the desktop
            # One that was there before is a server's, such as a database's.
            if name and not _SERVICES.search(name) and os.stat(name).st_ctime < self._since:
                self._addresses[name, 0] = None
        elif family in (socket.AF_INET, socket.AF_INET6):
            [port] = struct.unpack_from(">H", address, 2)
            if port not in (0, _DNS):
                host = socket.inet_ntop(family, address[4:8] if family == socket.AF_INET else address[8:24])
                self._addresses[host, port] = None

    def _note_port(self, thread: int, descriptor: int) -> None:
        with open(f"/proc/{thread}/status") as status:
            process = next(int(line.split()[1]) for line in status if line.startswith("Tgid:"))
        with os.fdopen(os.pidfd_open(process), "rb", buffering=0) as handle:
            copy = self._libc.syscall(_COPY_DESCRIPTOR, handle.fileno(), descriptor, 0)
        if copy >= 0:
            with socket.socket(fileno=copy) as server:
                if server.family != socket.AF_UNIX:
                    self._ports.add(server.getsockname()[1])

    def _text(self, process: int, address: int) -> str:
        """The text in the memory of a process, which may end at the end of a page."""
        text = b""
        while b"\0" not in text:
            text += self._memory(process, address + len(text), 4096 - (address + len(text)) % 4096)
        return os.fsdecode(text.partition(b"\0")[0])

    def _memory(self, process: int, address: int, size: int) -> bytes:
        content = ctypes.create_string_buffer(size)
        local, remote = (struct.pack("QQ", place, size) for place in (ctypes.addressof(content), address))
        count = self._libc.process_vm_readv(process, local, 1, remote, 1, 0)
        if count != size:
            raise OSError(ctypes.get_errno(), "cannot be read")
        return content.raw


def _absolute(name: str, process: int, folder: int = -1) -> str:
    """The full path of a file that a process names from its working directory, or from an open folder."""
    if not name.startswith("/"):
        place = "cwd" if folder < 0 else f"fd/{folder}"
        name = f"{os.readlink(f'/proc/{process}/{place}')}/{name}"
    return os.path.normpath(name)


def _is_of_this_machine(host: str) -> bool:
    """True for an address on which this machine can serve."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as server, suppress(OSError):
        server.bind((host, 0))
        return True
    return False
