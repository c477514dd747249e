"""A server of a package that starts in a fraction of a second: a row's prediction is a multiple of its ``x``.

A row may ask for ``seconds`` before it is answered. Answers name the headers of the request. `SIGTERM` ends the server
once it has answered what it has begun. ``SMALL_FAULT`` is a JSON object: the share of the inputs on which it answers
500 (``crash``), predicts another value (``wrong``) or does not answer for a minute (``hang``), and seconds that each
request takes more (``slow``).
"""

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from dagster_mlops.serving.runtime import Attempts, PredictionLog, checked_id, ids_of_rows

FAULT = json.loads(os.environ.get("SMALL_FAULT", "{}"))
FACTOR, DEPLOYMENT = float(sys.argv[2]), os.environ.get("DAGSTER_MLOPS_DEPLOYMENT", "")
VERSION: Any = {"tool": "small", "model_name": "small", "model_version": sys.argv[2]}
LOG = PredictionLog.from_environment(**VERSION)
ATTEMPTS = Attempts.from_environment()
MIRRORED_LOG = PredictionLog.from_environment(mirrored=True, **VERSION)


def has(fault: str, rows: list[dict]) -> bool:
    """True for a share of the inputs, whichever process is asked."""
    return (rows[0]["x"] * 0.6180339887) % 1 < FAULT.get(fault, 0)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._answer(200, {"ready": True})

    def do_POST(self) -> None:
        rows = json.loads(self.rfile.read(int(self.headers["content-length"])))["rows"]
        headers = {name.lower().encode(): value.encode() for name, value in self.headers.items()}
        if ATTEMPTS and not ATTEMPTS.begin(headers):
            return self._answer(503, {"error": "another process may have scored this request"})
        start = time.perf_counter()
        time.sleep(max(row.get("seconds", 0) for row in rows) + FAULT.get("slow", 0) + 60 * has("hang", rows))
        if has("crash", rows):
            return self._answer(500, {"error": "crash"})
        outputs = [FACTOR * row["x"] + has("wrong", rows) for row in rows]
        request_id = checked_id(self.headers.get("x-request-id"))
        secret = os.environ["DAGSTER_MLOPS_PROBE"]
        log = MIRRORED_LOG if self.headers.get("x-mirrored") == secret else LOG
        if log and self.headers.get("x-probe") != secret:
            seconds = time.perf_counter() - start
            log.write(inputs=rows, outputs=outputs, request_ids=ids_of_rows(request_id, rows), seconds=seconds)
        answer = {"predictions": outputs, "deployment": DEPLOYMENT, "pid": os.getpid()}
        self._answer(200, {**answer, "headers": [name.lower() for name in self.headers]})

    def _answer(self, code: int, body: object) -> None:
        content = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None: ...


class Server(ThreadingHTTPServer):
    daemon_threads = True  # those of idle connections
    request_queue_size = 1024


if __name__ == "__main__":
    server = Server((os.environ.get("POD_IP", "127.0.0.1"), int(sys.argv[1])), Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"serving {sys.argv[2]}", flush=True)
    server.serve_forever(poll_interval=0.05)
