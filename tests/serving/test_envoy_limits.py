"""Envoy as the door to the world: clients that are slow, many or oversized are cut off, and the others are answered."""

import contextlib
import socket
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from dagster_mlops.core.waits import wait_while
from dagster_mlops.errors import DeploymentError
from dagster_mlops.serving import Access
from dagster_mlops.serving.local import envoy, supervision
from dagster_mlops.serving.local.envoy_config import Backend
from dagster_mlops.serving.local.processes import free_port


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory):
    folder: Path = tmp_path_factory.mktemp("envoy")
    port = free_port()
    envoy.ensure(folder, port)
    yield port
    envoy.stop(folder)


class Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None: ...


def test_only_the_paths_of_a_deployment_are_public(tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        public = ("/readyz", "/predict", "/files/*", f"/{'long/' * 40}")
        backend = Backend("live", [server.server_port], "/readyz", "s3cret", public)
        port = free_port()
        envoy.ensure(tmp_path, port)
        try:
            envoy.route(tmp_path, backend)

            def code(path: str) -> int:
                with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
                    client.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
                    return int(client.makefile("rb").readline().split()[1])

            wait_while(lambda: code("/readyz") != 200, timeout=10, error=lambda _: AssertionError("no route"))
            opened = ("/predict", "/predict?a=b", "/files/a/b", public[-1])
            assert {path: code(path) for path in opened} == dict.fromkeys(opened, 200)
            closed = (
                "/",
                "/metrics",
                "/docs.json",
                "/PREDICT",
                "/predict/",
                "//metrics",
                "/predictx",
                "/%6detrics",
                "/filesx",
            )
            assert {path: code(path) for path in closed} == dict.fromkeys(closed, 404)
            escapes = ("/files/../metrics", "/files/%2e%2e/metrics", "/files/..%2fmetrics")
            assert {path: code(path) for path in escapes if code(path) == 200} == {}

            envoy.route(tmp_path, replace(backend, public=("/*",)))
            wait_while(lambda: code("/docs.json") != 200, timeout=10, error=lambda _: AssertionError("no route"))
            metrics = ("/metrics", "/metrics/", "//metrics", "/a/../metrics", "/metrics?name=a")
            assert {path: code(path) for path in metrics} == dict.fromkeys(metrics, 404)
            envoy.route(tmp_path, replace(backend, public=("/*", "/metrics")))
            wait_while(lambda: code("/metrics") != 200, timeout=10, error=lambda _: AssertionError("no route"))
        finally:
            server.shutdown()
            envoy.stop(tmp_path)


def answers(port: int) -> bool:
    return httpx.get(f"http://127.0.0.1:{port}/predict", timeout=5).status_code == 503  # no deployment is live


def test_headers_that_are_too_long_or_too_many_are_refused(port):
    for headers in ({"x-long": "x" * 40_000}, {f"x-{number}": "1" for number in range(120)}):
        assert httpx.get(f"http://127.0.0.1:{port}/predict", headers=headers, timeout=5).status_code == 431
    assert answers(port)


def test_a_body_that_is_too_large_is_refused_declared_or_not(port):
    most, url = 16 * 2**20, f"http://127.0.0.1:{port}/predict"
    for body in (b"x" * (most + 1), (b"x" * 2**20 for _ in range(17))):
        refusal = httpx.post(url, content=body, timeout=30, trust_env=False)
        assert refusal.status_code == 413
        assert refusal.json() == {"error": "the body has more than 16,777,216 bytes"}
    assert httpx.post(url, content=b"x" * most, timeout=30, trust_env=False).status_code == 503  # no deployment is live


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


def test_other_limits_and_another_port_cost_no_request(tmp_path):
    codes, ends = [], threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), KeptOpen) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port, other = free_port(), free_port()
        envoy.ensure(tmp_path, port)

        def ask(port: int) -> int:
            return httpx.get(f"http://127.0.0.1:{port}/", timeout=10).status_code

        def send() -> None:
            with httpx.Client(timeout=10) as client:
                while not ends.is_set():
                    for get in (client.get, httpx.get):  # over one connection, and each over its own
                        try:
                            codes.append(get(f"http://127.0.0.1:{port}/").status_code)
                        except httpx.HTTPError as error:
                            codes.append(repr(error))

        client = threading.Thread(target=send)
        try:
            envoy.route(tmp_path, Backend("live", [server.server_port], "/readyz", "s3cret"))
            wait_while(lambda: ask(port) != 200, timeout=10, error=lambda _: AssertionError("no route"))
            [before] = supervision.pids(tmp_path, next(iter(envoy.roles(tmp_path)))).values()
            client.start()
            for size in (1000, 2000, 3000):
                assert envoy.ensure(tmp_path, port, Access(request_bytes=size))
                count = len(codes)
                wait_while(
                    lambda n=count: len(codes) < n + 20, timeout=10, error=lambda _: AssertionError("no traffic")
                )
            ends.set()
            client.join()
            assert set(codes) == {200}
            assert not envoy.ensure(tmp_path, port, Access(request_bytes=3000))
            assert envoy.ensure(tmp_path, other, Access(host="0.0.0.0")) and ask(other) == 200
            with pytest.raises(httpx.ConnectError):
                ask(port)
            assert envoy.ensure(tmp_path, other) and ask(other) == 200  # another address of the same port
            with pytest.raises(DeploymentError, match="is taken"):
                envoy.ensure(tmp_path, server.server_port)
            assert [before] == [*supervision.pids(tmp_path, next(iter(envoy.roles(tmp_path)))).values()]
        finally:
            ends.set()
            server.shutdown()
            envoy.stop(tmp_path)


class KeptOpen(Server):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
