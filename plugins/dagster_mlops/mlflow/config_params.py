"""A step's config as MLflow shows it: params with dotted names, without secrets."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from dagster_mlops.provenance import mask_credentials

PREFIX = "config."
"""What the names begin with, so that none is a param which the training function logs."""
_LONGEST_NAME, _LONGEST_VALUE = 250, 6000  # characters that MLflow takes


def visible_config(context: dg.AssetExecutionContext) -> Any:
    """The op's config with defaults; what comes from the environment is the variable's name, as ``{"env": NAME}``."""
    run_config: Any = context.run.run_config
    written = run_config.get("ops", {}).get(context.op_execution_context.op_handle.name, {})
    return _hide(context.op_execution_context.op_config, written.get("config"))


def config_params(config: Any, kept_in: str) -> dict[str, str]:
    """Params of a config: nested names are joined by dots, lists are JSON, a value that is too long ends in its hash.

    `kept_in` is the artifact that has all of it.

    >>> config_params({"lr": 0.1, "layers": [64, 32], "data": {"rows": None}}, "code/step.json")
    {'config.lr': '0.1', 'config.layers': '[64, 32]', 'config.data.rows': 'None'}
    """
    params: dict[str, str] = {}
    for path, value in _leaves(config, ()):
        text = mask_credentials(value if isinstance(value, str) else _text(value))
        if len(text) > _LONGEST_VALUE:
            rest = f"… ({len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()}, see {kept_in})"
            text = text[: _LONGEST_VALUE - len(rest)] + rest
        name = re.sub(r"[^\w\-. /:]", "_", PREFIX + ".".join(path))
        if len(name) > _LONGEST_NAME or name in params:
            name = f"{name[: _LONGEST_NAME - 9]}.{hashlib.sha256(repr(path).encode()).hexdigest()[:8]}"
        params[name] = text
    return params


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping) and value and set(value) != {"env"}:
        for name, below in value.items():
            yield from _leaves(below, (*path, str(name)))
    elif path or value:
        yield path or ("value",), value


def _text(value: Any) -> str:
    if isinstance(value, Mapping) and set(value) == {"env"}:
        return f"env:{value['env']}"
    return json.dumps(value, default=str) if isinstance(value, list | tuple | Mapping) else str(value)


def _hide(value: Any, written: Any) -> Any:
    if isinstance(written, Mapping) and set(written) == {"env"} and not isinstance(value, Mapping):
        return dict(written)
    if isinstance(value, Mapping):
        below = written if isinstance(written, Mapping) else {}
        return {name: _hide(found, below.get(name)) for name, found in value.items()}
    if isinstance(value, list) and isinstance(written, list | tuple) and len(value) == len(written):
        return [_hide(*pair) for pair in zip(value, written, strict=True)]
    return value
