"""Imports a tool where it is used, and names the extra to install when it is not there."""

import importlib
import re
from importlib.metadata import metadata
from types import ModuleType
from typing import Any

from dagster_mlops.errors import MissingExtraError


def extra(module: str, *, extra: str | None = None) -> ModuleType:
    """Import `module` (dotted names allowed) or say which extra of dagster-mlops brings it.

    Only the absence of the tool itself is turned into :class:`MissingExtraError`. An import that fails *inside* an
    installed tool passes through unchanged, because reinstalling the extra would not fix it.

    >>> extra("json").dumps([1])
    '[1]'
    >>> extra("no_such_tool", extra="mlflow")
    Traceback (most recent call last):
    ...
    dagster_mlops.errors.MissingExtraError: 'no_such_tool' is not installed. Run: pip install 'dagster-mlops[mlflow]'
    """
    root = module.split(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != root:
            raise
        name = extra or _extra_of(root)
        raise MissingExtraError(f"{root!r} is not installed. Run: pip install 'dagster-mlops[{name}]'") from error


class LazyModule:
    """A module that :func:`extra` imports when something of it is first used.

    >>> LazyModule("json").dumps([1])
    '[1]'
    """

    def __init__(self, module: str, *, extra: str | None = None) -> None:
        self._module, self._extra = module, extra

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by what inspects modules, such as doctest
            raise AttributeError(name)
        return getattr(extra(self._module, extra=self._extra), name)


def _extra_of(module: str) -> str:
    """The extra that brings a tool's import package: the one of that name, else the first that requires it."""
    package = metadata("dagster-mlops")
    if module in package.get_all("Provides-Extra", []):
        return module
    for requirement in package.get_all("Requires-Dist", []):
        match = re.match(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"]", requirement)
        if match and match[2] != "all" and re.sub(r"[-_.]+", "_", match[1]) == module:
            return match[2]
    return module
