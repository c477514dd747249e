"""A step's config as MLflow shows it: params with dotted names, without secrets."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from dagster_mlops.provenance import mask_credentials

_DEFAULT = object()
PREFIX = "config."
"""What the names begin with, so that none is a param which the training function logs."""
_LONGEST_NAME, _LONGEST_VALUE = 250, 6000  # characters that MLflow takes


def visible_config(context: dg.AssetExecutionContext) -> Any:
    """The op's config with defaults; what comes from the environment is the variable's name, as ``{"env": NAME}``."""
    schema = context.op_execution_context.op_def.config_schema.config_type
    return _hide(_named(context.op_execution_context.op_config, schema), _written(context, None))


def kept_config(context: dg.AssetExecutionContext) -> tuple[Any, tuple[str, ...]]:
    """The same config without credentials, which are ``***``, and the dotted names of the values that had some.

    A default with a credential is left out, and no loss: the code says it again.
    """
    lost: list[str] = []
    kept = _keep(visible_config(context), _written(context, _DEFAULT), (), lost)
    return None if kept is _DEFAULT else kept, tuple(lost)


def masked_strings(value: Any) -> Any:
    """The same value with the credentials of each string in it masked: in the JSON text of it they have no clear end.

    >>> masked_strings({"urls": ["https://host/rows.csv?api_key=abc", "s3://bucket/rows"], "rate": 0.1})
    {'urls': ['https://host/rows.csv?api_key=***', 's3://bucket/rows'], 'rate': 0.1}
    """
    if isinstance(value, Mapping):
        return {name: masked_strings(below) for name, below in value.items()}
    if isinstance(value, list | tuple):
        return [masked_strings(below) for below in value]
    return mask_credentials(value) if isinstance(value, str) else value


def config_params(config: Any, kept_in: str) -> dict[str, str]:
    """Params of a config: nested names are joined by dots, lists are JSON, a value that is too long ends in its hash.

    `kept_in` is the artifact that has all of it.

    >>> config_params({"lr": 0.1, "layers": [64, 32], "data": {"rows": None}}, "code/step.json")
    {'config.lr': '0.1', 'config.layers': '[64, 32]', 'config.data.rows': 'None'}
    """
    params: dict[str, str] = {}
    for path, value in _leaves(config, ()):
        text = _text(value)
        if len(text) > _LONGEST_VALUE:
            rest = f"… ({len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()}, see {kept_in})"
            text = text[: _LONGEST_VALUE - len(rest)] + rest
        name = re.sub(r"[^\w\-. /:]", "_", PREFIX + ".".join(path))
        if len(name) > _LONGEST_NAME or name in params:
            name = f"{name[: _LONGEST_NAME - 9]}.{hashlib.sha256(repr(path).encode()).hexdigest()[:8]}"
        params[name] = text
    return params


def _written(context: dg.AssetExecutionContext, otherwise: Any) -> Any:
    """The config as the run was given it, without defaults."""
    run_config: Any = context.run.run_config
    return run_config.get("ops", {}).get(context.op_execution_context.op_handle.name, {}).get("config", otherwise)


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping) and value and set(value) != {"env"}:
        for name, below in value.items():
            yield from _leaves(below, (*path, str(name)))
    elif path or value:
        yield path or ("value",), value


def _text(value: Any) -> str:
    if isinstance(value, Mapping) and set(value) == {"env"}:
        return f"env:{value['env']}"
    masked = masked_strings(value)
    return json.dumps(masked, default=str) if isinstance(value, list | tuple | Mapping) else str(masked)


def _named(value: Any, schema: Any) -> Any:
    """The config with enums by name, as a run is given them: what the op gets are their values."""
    if schema is None or value is None:
        return value
    if schema.kind.name == "NONEABLE":
        return _named(value, schema.inner_type)
    if schema.kind.name == "ENUM":
        return next((known.config_value for known in schema.enum_values if known.python_value == value), value)
    if isinstance(value, Mapping):
        # A field of a config, or any of a dictionary.
        fields, inner = getattr(schema, "fields", {}), getattr(schema, "inner_type", None)
        kinds = {name: fields[name].config_type if name in fields else inner for name in value}
        return {name: _named(below, kinds[name]) for name, below in value.items()}
    inner = getattr(schema, "inner_type", schema)
    return [_named(below, inner) for below in value] if isinstance(value, list) else value


def _hide(value: Any, written: Any) -> Any:
    if isinstance(written, Mapping) and set(written) == {"env"} and not isinstance(value, Mapping):
        return dict(written)
    if isinstance(value, Mapping):
        below = written if isinstance(written, Mapping) else {}
        return {name: _hide(found, below.get(name)) for name, found in value.items()}
    if isinstance(value, list) and isinstance(written, list | tuple) and len(value) == len(written):
        return [_hide(*pair) for pair in zip(value, written, strict=True)]
    return value


def _keep(value: Any, written: Any, path: tuple[str, ...], lost: list[str]) -> Any:
    if isinstance(value, Mapping):
        below = written if isinstance(written, Mapping) else {}
        found = {name: _keep(one, below.get(name, _DEFAULT), (*path, str(name)), lost) for name, one in value.items()}
        kept = {name: one for name, one in found.items() if one is not _DEFAULT}
        # A nested default is left out as a whole: half a dictionary is another one.
        return _DEFAULT if path and written is _DEFAULT and len(kept) < len(found) else kept
    if isinstance(value, list):
        below = written if isinstance(written, list | tuple) and len(written) == len(value) else [written] * len(value)
        kept = [
            _keep(one, given, (*path, str(i)), lost) for i, (one, given) in enumerate(zip(value, below, strict=True))
        ]
        return _DEFAULT if _DEFAULT in kept else kept
    masked = mask_credentials(value) if isinstance(value, str) else value
    if masked == value:
        return value
    if written is _DEFAULT:
        return _DEFAULT
    lost.append(".".join(path))
    return masked
