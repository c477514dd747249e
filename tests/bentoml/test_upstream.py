"""Fails when BentoML no longer needs one of our work-arounds."""

import inspect
from typing import Any

import bentoml

from dagster_mlops.bentoml import upstream
from tests.support import known_warnings

pytestmark = known_warnings.DEPRECATED


def test_the_public_functions_know_one_store_only():
    for name in ("list", "get", "delete"):
        for functions, ours in ((bentoml.bentos, upstream.bento_store), (bentoml.models, upstream.model_store)):
            public = {p for p in inspect.signature(getattr(functions, name)).parameters if not p.startswith("_")}
            assert not public & {"store", "home", "path", "bento_store", "model_store"}, f"use it in place of {ours}"


def test_the_public_server_has_no_mode_without_a_worker_and_no_option_for_threads():
    from _bentoml_impl.worker import service  # warns when it is imported
    from bentoml_cli.serve import build_serve_command

    options = {option.name for option in build_serve_command().commands["serve"].params}
    assert "port" in options and not options & {"standalone", "single_process", "no_workers", "fd", "threads"}
    assert {"bento_identifier", "fd", "worker_id"} <= {option.name for option in service.main.params}
    assert "service.to_asgi(" in inspect.getsource(service)
    assert "from _bentoml_impl.loader import load\n" in inspect.getsource(service), f"{upstream.serve} wraps it"


def test_bentoml_puts_its_layers_before_any_middleware_of_a_service():
    @bentoml.service(name="layers", metrics={"enabled": False})
    class Layers: ...

    ours: Any = type("Ours", (), {})
    Layers.add_asgi_middleware(ours)
    app: Any = Layers.to_asgi()
    assert [layer.cls.__name__ for layer in app.user_middleware].index("Ours") > 0, (
        "or it costs nothing to be the first"
    )
    kind: Any = type("Kind", (), {"to_asgi": lambda self: "BentoML"})
    upstream.put_before(kind, lambda app: f"ours, then {app}")
    assert kind().to_asgi() == "ours, then BentoML"
