"""Real tracking servers for the tests, and a proxy in front of one that counts, refuses and asks for passwords."""

import base64
import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.http_servers import QuietHandler, QuietServer

_HOPS = {"connection", "content-length", "keep-alive", "transfer-encoding"}


@contextmanager
def mlflow_server(folder: Path, port: int, backend: str, *, workers: int = 1) -> Iterator[str]:
    """An ``mlflow server`` on loopback that keeps artifacts below `folder` and hands them out itself."""
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--workers", str(workers), "--backend-store-uri", backend),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_until_healthy(server, port, folder / "server.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(10)


def _wait_until_healthy(server: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    for _ in range(600):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            assert server.poll() is None, log.read_text()
        finally:
            connection.close()
        time.sleep(0.1)
    raise AssertionError(f"the server did not start within a minute: {log.read_text()}")


class Proxy(QuietServer):
    """Passes requests on and remembers them in `seen`, as ``POST runs/create``.

    With `password`, it answers 401 to who does not give it (``user:password``). It answers 429 to the next `busy` ones,
    nothing at all to the `gone` ones after them, and with `version` says which one it is.
    """

    password = ""
    busy = gone = 0
    version = ""

    def __init__(self, port: int, target: int) -> None:
        self.target, self.seen, self.lock = target, [], threading.Lock()
        super().__init__(_Pass, port)

    def refuses(self) -> bool:
        """Whether the request at hand gets a 429."""
        refused = self.busy > 0
        self.busy -= refused
        return refused

    def hangs_up(self) -> bool:
        """Whether the request at hand gets no answer."""
        silent = self.gone > 0
        self.gone -= silent
        return silent


class _Pass(QuietHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy  # pyright: ignore[reportIncompatibleVariableOverride]

    def _pass(self) -> None:
        path = self.path.partition("?")[0].removeprefix("/api/2.0/").removeprefix("mlflow/")
        with self.server.lock:
            self.server.seen.append(f"{self.command} {path}")
            refused = self.server.refuses()
            silent = not refused and self.server.hangs_up()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if silent:
            self.close_connection = True
            return None
        wanted = f"Basic {base64.b64encode(self.server.password.encode()).decode()}"
        if refused or (self.server.password and self.headers.get("Authorization") != wanted):
            return self._answer(429 if refused else 401, [], b"Refused.")
        if self.server.version and path == "/version":
            return self._answer(200, [], self.server.version.encode())
        connection = http.client.HTTPConnection("127.0.0.1", self.server.target, timeout=60)
        try:
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            told = connection.getresponse()
            return self._answer(told.status, told.getheaders(), told.read())
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in _HOPS:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass
