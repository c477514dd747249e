"""Envoy as the door to the world: clients that are slow, many or oversized are cut off, and the others are answered."""

import contextlib
import socket
import time
from pathlib import Path

import httpx
import pytest

from dagster_mlops.serving import envoy
from dagster_mlops.serving.processes import free_port


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory):
    folder: Path = tmp_path_factory.mktemp("envoy")
    port = free_port()
    envoy.ensure(folder, port)
    yield port
    envoy.stop(folder)


def answers(port: int) -> bool:
    return httpx.get(f"http://127.0.0.1:{port}/predict", timeout=5).status_code == 503  # no deployment is live


def test_headers_that_are_too_long_or_too_many_are_refused(port):
    for headers in ({"x-long": "x" * 40_000}, {f"x-{number}": "1" for number in range(120)}):
        assert httpx.get(f"http://127.0.0.1:{port}/predict", headers=headers, timeout=5).status_code == 431
    assert answers(port)


@pytest.mark.thorough
def test_half_open_clients_are_cut_off_and_keep_no_one_out(port):
    with contextlib.ExitStack() as stack:
        half = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30)) for _ in range(1500)]
        for client in half:
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        assert answers(port)
        start = time.monotonic()
        assert all(b"408" in client.recv(4096) or not client.recv(1) for client in half)
        assert 5 < time.monotonic() - start < 25 and answers(port)
