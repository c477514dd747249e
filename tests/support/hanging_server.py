"""A server of the prediction app whose model does what a row asks for: sleep, or hang, with Python's lock or without.

``python hanging_server.py PORT FACTOR``, where ``THREADS`` and ``TIMEOUT`` are variables of its environment.
"""

import json
import os
import re
import sys
import time
from typing import Any

import uvicorn
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, Schema

from dagster_mlops.serving.runtime import PredictionLog
from dagster_mlops.serving.runtime.app import PredictionApp
from dagster_mlops.serving.runtime.limits import Limits
from dagster_mlops.serving.runtime.watchdog import watch

HANG, HANG_WITH_LOCK = -1.0, -2.0  # in place of the seconds of a row


class Sleeper:
    """The parts of MLflow's PyFuncModel that serving uses."""

    def __init__(self, factor: float) -> None:
        self.metadata = Model(
            signature=ModelSignature(inputs=Schema([ColSpec("double", "x"), ColSpec("double", "seconds", False)]))
        )
        self.metadata.flavors = {"python_function": {}}
        self._factor = factor

    def predict(self, frame: Any, params: Any = None) -> Any:
        seconds = float(frame.seconds.max()) if "seconds" in frame else 0
        if seconds == HANG:
            time.sleep(10_000)
        if seconds == HANG_WITH_LOCK:
            re.match(r"(a+)+$", "a" * 100 + "b")  # for longer than the universe, and without a release of the lock
        time.sleep(max(0, seconds))
        return frame.x * self._factor


def main(port: int, factor: str) -> None:
    limits = Limits(timeout=float(os.environ["TIMEOUT"]), threads=int(os.environ["THREADS"]))
    app = PredictionApp(limits)
    log = PredictionLog.from_environment(tool="small", model_name="small", model_version=factor)
    model: Any = Sleeper(float(factor))
    app.serve(model, name="small", deployment="d", log=log, probe=os.environ.get("DAGSTER_MLOPS_PROBE", ""))
    watch(app.longest_call, limits.timeout, patience=limits.timeout)

    async def readiness(scope: Any, receive: Any, send: Any) -> None:
        status = 200 if app.is_ready() else 503
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps({"pid": os.getpid()}).encode()})

    uvicorn.run(app.before(readiness), host="127.0.0.1", port=port, log_level="warning", lifespan="off")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
