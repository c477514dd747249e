"""Spares the first request to a server what another package hangs on it."""

import importlib
import sys
from typing import Any

from dagster_mlops.mlflow import upstream

_REGISTRY = "mlflow.tracking.request_header.registry"
# Feast says that it knows headers for MLflow, so MLflow imports Feast, seconds of it, before its first request in each
# process. Feast knows some only while it asks MLflow itself.
_SEEKS_HEADERS = "feast.infra.data_sources.mlflow.auth"


def spare_imports() -> None:
    """Let MLflow's first request not import Feast. The headers that Feast knows are sent once Feast is imported."""
    if _REGISTRY in sys.modules or _SEEKS_HEADERS in sys.modules:
        return
    plugins: Any = importlib.import_module("mlflow.utils.plugins")
    entry_points = plugins.get_entry_points
    late: list[Any] = []

    def immediate(group: str) -> list[Any]:
        found = list(entry_points(group))
        late.extend(entry for entry in found if entry.value.startswith(_SEEKS_HEADERS))
        return [entry for entry in found if entry not in late]

    plugins.get_entry_points = immediate
    try:
        registry: Any = importlib.import_module(_REGISTRY)
    finally:
        plugins.get_entry_points = entry_points
    for entry in late:
        upstream.register_header_provider(registry, lambda entry=entry: _Late(entry))


class _Late:
    """A provider of headers that is loaded when something else has imported its module."""

    def __init__(self, entry: Any) -> None:
        self.entry, self.provider = entry, None

    def in_context(self) -> bool:
        if self.provider is None and _SEEKS_HEADERS in sys.modules:
            self.provider = self.entry.load()()
        return self.provider is not None and self.provider.in_context()

    def request_headers(self) -> dict[str, str]:
        return self.provider.request_headers() if self.provider else {}
