"""All use of BentoML's private names (1.4), each with the public one that is missing.

`tests/bentoml/test_upstream.py` fails when BentoML has it, so that the function here can go. ``python -m`` of this file
serves a bento in one process.
"""

import gc
import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster_mlops.core.extras import extra

if TYPE_CHECKING:
    from bentoml._internal.bento import BentoStore as BentoStore
    from bentoml._internal.models import ModelStore as ModelStore


def bento_store(folder: Path) -> "BentoStore":
    """BentoML's bento store in `folder`. The public functions know the one of the process's environment only.

    https://github.com/bentoml/BentoML/blob/v1.4.39/src/bentoml/bentos.py
    """
    return extra("bentoml._internal.bento").BentoStore(folder)


def model_store(folder: Path) -> "ModelStore":
    """BentoML's model store in `folder`: https://github.com/bentoml/BentoML/blob/v1.4.39/src/bentoml/models.py"""
    return extra("bentoml._internal.models").ModelStore(folder)


def serve(tag: str, port: int, config: Mapping[str, Any]) -> None:
    """Serve a bento of one service on a loopback port, in this process.

    `config` is BentoML's service configuration on top of that of the service, which no option or variable changes.

    ``bentoml serve`` starts a worker, and keeps its port open when the worker ends: until the next one has loaded the
    model, requests wait there instead of to go to another replica.
    https://github.com/bentoml/BentoML/blob/v1.4.40/src/_bentoml_impl/server/serving.py
    """
    # Imports make millions of objects, and little garbage. With the usual threshold, looks for it take a tenth of them.
    gc.set_threshold(50_000)
    # BentoML's default is one folder for all processes of a user, which each start empties.
    with tempfile.TemporaryDirectory(prefix="bentoml-metrics-") as metrics, socket.socket() as listener:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(2048)
        loader: Any = extra("_bentoml_impl.loader", extra="bentoml")
        load = loader.load

        def load_with_config(*arguments: Any, **options: Any) -> Any:
            service = load(*arguments, **options)
            service.config.update({**config, "traffic": {**service.config.get("traffic", {}), **config["traffic"]}})
            if front := getattr(service.inner, "front", None):
                put_before(type(service), front)
            return service

        loader.load = load_with_config
        worker = extra("_bentoml_impl.worker.service", extra="bentoml")
        worker.main([tag, "--fd", str(listener.detach()), "--worker-id", "1"])


def put_before(kind: Any, front: Callable[[Any], Any]) -> None:
    """Let services of this type be served by ``front(app)``, where `app` is BentoML's.

    BentoML puts its own layers, such as tracing, before any app and middleware of a service, also where they are
    switched off; they cost as much as the rest of a request.
    https://github.com/bentoml/BentoML/blob/v1.4.40/src/_bentoml_impl/server/app.py (``middlewares``)
    """
    to_asgi = kind.to_asgi
    kind.to_asgi = lambda self, *arguments, **options: front(to_asgi(self, *arguments, **options))


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))
