"""Keeps the first request to a server from importing Feast."""

import importlib
import sys
from typing import Any

from dagster_mlops.mlflow import upstream

_REGISTRY = "mlflow.tracking.request_header.registry"
# Feast registers as a provider of request headers, so MLflow imports it before the first request of each process, which
# takes seconds. Feast has headers only for its own requests to MLflow.
_SEEKS_HEADERS = "feast.infra.data_sources.mlflow.auth"


def spare_imports() -> None:
    """Let MLflow's first request not import Feast. Feast's headers are sent once Feast is imported."""
    if _REGISTRY in sys.modules or _SEEKS_HEADERS in sys.modules:
        return
    plugins: Any = importlib.import_module("mlflow.utils.plugins")
    entry_points = plugins.get_entry_points
    late: list[Any] = []

    def immediate(group: str) -> list[Any]:
        entries = list(entry_points(group))
        late.extend(entry for entry in entries if entry.value.startswith(_SEEKS_HEADERS))
        return [entry for entry in entries if entry not in late]

    plugins.get_entry_points = immediate
    try:
        registry: Any = importlib.import_module(_REGISTRY)
    finally:
        plugins.get_entry_points = entry_points
    for entry in late:
        upstream.register_header_provider(registry, lambda entry=entry: _Late(entry))


class _Late:
    """A provider of headers that is loaded once something else has imported its module."""

    def __init__(self, entry: Any) -> None:
        self.entry, self.provider = entry, None

    def in_context(self) -> bool:
        if self.provider is None and _SEEKS_HEADERS in sys.modules:
            self.provider = self.entry.load()()
        return self.provider is not None and self.provider.in_context()

    def request_headers(self) -> dict[str, str]:
        return self.provider.request_headers() if self.provider else {}
