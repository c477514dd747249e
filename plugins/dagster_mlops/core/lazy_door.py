"""Doors that open on demand: a package that loads a module when one of its names is first used."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_door(package: str, modules: Mapping[str, tuple[str, ...]]) -> Callable[[str], Any]:
    """A ``__getattr__`` for a package (PEP 562) that exports the names of `modules`, by module.

    >>> lazy_door("json", {"json.decoder": ("JSONDecoder",)})("JSONDecoder").__name__
    'JSONDecoder'
    """
    module_of = {name: module for module, names in modules.items() for name in names}

    def load(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(module_of[name]), name)

    return load
