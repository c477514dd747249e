"""Imports a tool where it is used, and names the extra to install when it is not there."""

import importlib
from types import ModuleType

from dagster_mlops.errors import MissingExtraError

# The extra that brings a tool's import package, where the two names differ.
_EXTRA_OF = {"dagster_k8s": "k8s", "kubernetes": "k8s", "git": "dvc"}


def extra(module: str, *, extra: str | None = None) -> ModuleType:
    """Import `module` (dotted names allowed) or say which extra of dagster-mlops brings it.

    Only the absence of the tool itself is turned into :class:`MissingExtraError`. An import that fails *inside* an
    installed tool passes through unchanged, because reinstalling the extra would not mend it.

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
        name = extra or _EXTRA_OF.get(root, root)
        raise MissingExtraError(f"{root!r} is not installed. Run: pip install 'dagster-mlops[{name}]'") from error
