"""From one prediction back to the raw data and the commit, whichever tools still answer, and forth again."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dagster_mlops.lineage.chain.event_log import EventLog
    from dagster_mlops.lineage.chain.walk import Link, trace
    from dagster_mlops.lineage.production.overview import Status, status
    from dagster_mlops.lineage.reproduction.asset import reproduction_asset

__all__ = ["EventLog", "Link", "Status", "reproduction_asset", "status", "trace"]

# Loaded when asked for: a code location needs one of them, the command line the others.
_HOMES = {
    "EventLog": "chain.event_log",
    "Link": "chain.walk",
    "Status": "production.overview",
    "reproduction_asset": "reproduction.asset",
    "status": "production.overview",
    "trace": "chain.walk",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
