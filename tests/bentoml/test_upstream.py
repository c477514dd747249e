"""Fails when BentoML no longer needs one of our work-arounds."""

import inspect

import bentoml

from dagster_mlops.bentoml import upstream
from tests.support import known_warnings

pytestmark = known_warnings.DEPRECATED


def test_the_public_functions_know_one_store_only():
    for name in ("list", "get", "delete"):
        for functions, ours in ((bentoml.bentos, upstream.bento_store), (bentoml.models, upstream.model_store)):
            public = {p for p in inspect.signature(getattr(functions, name)).parameters if not p.startswith("_")}
            assert not public & {"store", "home", "path", "bento_store", "model_store"}, f"use it in place of {ours}"
