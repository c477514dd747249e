"""Doors that open on demand: a package that loads a module when one of its names is first used."""

import functools
import importlib
import pkgutil
import re
from collections.abc import Callable
from typing import Any

# Not with Python's parser, which takes five times as long: each code location waits for its doors.
_IMPORT = re.compile(r"^ *from (\S+) import (\([^)]*\)|.+)$", re.MULTILINE)
_EXPORTED = re.compile(r"\b(\w+) as \1\b")


def lazy_door(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` (PEP 562) of a package that loads what it exports when it is first used.

        if TYPE_CHECKING:
            from acme.assets import table_asset as table_asset

        __getattr__, __dir__ = lazy_door(__name__)

    Readers and type checkers see plain imports, where ``as`` says that the name is for users; they are read from the
    source when a name, `dir` or ``__all__`` is first asked for. ``dg list components`` finds components by `dir`.

    >>> load, _ = lazy_door("dagster_mlops.core")
    >>> load("asset_key").__module__
    'dagster_mlops.core.asset_keys'
    """

    @functools.cache
    def modules() -> dict[str, str]:
        source = (pkgutil.get_data(package, "__init__.py") or b"").decode()
        return {name: module for module, names in _IMPORT.findall(source) for name in _EXPORTED.findall(names)}

    def names() -> list[str]:
        return sorted(modules())

    def load(name: str) -> Any:
        if name == "__all__":
            return names()
        if name not in modules():
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules()[name]), name)

    return load, names
