"""A step's config as MLflow params: with dotted names, without secrets."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from dagster_mlops.provenance.credentials import masked_strings

_DEFAULT = object()
PREFIX = "config."
"""Start of the names, so that none is a param which the training function logs."""
_LONGEST_NAME, _LONGEST_VALUE = 250, 6000  # characters that MLflow accepts


def visible_config(context: dg.AssetExecutionContext) -> Any:
    """The op's config with defaults; a value from the environment is the variable's name, as ``{"env": NAME}``."""
    schema = context.op_execution_context.op_def.config_schema.config_type
    return _hide(_enums_by_name(context.op_execution_context.op_config, schema), _run_config(context, None))


def kept_config(context: dg.AssetExecutionContext) -> tuple[Any, tuple[str, ...]]:
    """The same config with credentials as ``***``, and the dotted names of the values that had some.

    A default with a credential is left out without being named: the code still has it.
    """
    secrets: list[str] = []
    config = _keep(visible_config(context), _run_config(context, _DEFAULT), (), secrets)
    return None if config is _DEFAULT else config, tuple(secrets)


def kept_resources(context: dg.AssetExecutionContext) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The run's config for the resources of the training's function, and the names of its secrets, as above.

    Without MLflow's: a rerun has one of its own.
    """
    secrets: list[str] = []
    names = context.op_execution_context.op_def.required_resource_keys - {"mlflow"}
    resources: Any = context.run.run_config.get("resources") or {}
    values = {name: resources[name] for name in sorted(names & resources.keys())}
    return _keep(values, values, ("resources",), secrets), tuple(secrets)


def config_params(config: Any, kept_in: str) -> dict[str, str]:
    """Params of a config: nested names are joined by dots, lists are JSON, a value that is too long ends in its hash.

    `kept_in` is the artifact with the whole config.

    >>> config_params({"lr": 0.1, "layers": [64, 32], "data": {"rows": None}}, "code/step.json")
    {'config.lr': '0.1', 'config.layers': '[64, 32]', 'config.data.rows': 'None'}
    """
    params: dict[str, str] = {}
    for path, value in _leaves(config, ()):
        text = _text(value, path[-1])
        if len(text) > _LONGEST_VALUE:
            rest = f"… ({len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()}, see {kept_in})"
            text = text[: _LONGEST_VALUE - len(rest)] + rest
        name = re.sub(r"[^\w\-. /:]", "_", PREFIX + ".".join(path))
        if len(name) > _LONGEST_NAME or name in params:
            name = f"{name[: _LONGEST_NAME - 9]}.{hashlib.sha256(repr(path).encode()).hexdigest()[:8]}"
        params[name] = text
    return params


def _run_config(context: dg.AssetExecutionContext, default: Any) -> Any:
    """The op's config in the run's config, without defaults."""
    run_config: Any = context.run.run_config
    return run_config.get("ops", {}).get(context.op_execution_context.op_handle.name, {}).get("config", default)


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping) and value and set(value) != {"env"}:
        for name, below in value.items():
            yield from _leaves(below, (*path, str(name)))
    elif path or value:
        yield path or ("value",), value


def _text(value: Any, name: str) -> str:
    if isinstance(value, Mapping) and set(value) == {"env"}:
        return f"env:{value['env']}"
    masked = masked_strings(value, name)
    return json.dumps(masked, default=str) if isinstance(value, list | tuple | Mapping) else str(masked)


def _enums_by_name(value: Any, schema: Any) -> Any:
    """The config with enums by name, as in a run's config; the op gets their values."""
    if schema is None or value is None:
        return value
    if schema.kind.name == "NONEABLE":
        return _enums_by_name(value, schema.inner_type)
    if schema.kind.name == "ENUM":
        return next((member.config_value for member in schema.enum_values if member.python_value == value), value)
    if isinstance(value, Mapping):
        # A field of a config, or an entry of a dictionary.
        fields, inner = getattr(schema, "fields", {}), getattr(schema, "inner_type", None)
        kinds = {name: fields[name].config_type if name in fields else inner for name in value}
        return {name: _enums_by_name(below, kinds[name]) for name, below in value.items()}
    inner = getattr(schema, "inner_type", schema)
    return [_enums_by_name(below, inner) for below in value] if isinstance(value, list) else value


def _hide(value: Any, source: Any) -> Any:
    if isinstance(source, Mapping) and set(source) == {"env"} and not isinstance(value, Mapping):
        return dict(source)
    if isinstance(value, Mapping):
        sources = source if isinstance(source, Mapping) else {}
        return {name: _hide(below, sources.get(name)) for name, below in value.items()}
    if isinstance(value, list) and isinstance(source, list | tuple) and len(value) == len(source):
        return [_hide(*pair) for pair in zip(value, source, strict=True)]
    return value


def _keep(value: Any, source: Any, path: tuple[str, ...], secrets: list[str]) -> Any:
    if isinstance(value, Mapping):
        sources = source if isinstance(source, Mapping) else {}
        values = {
            name: _keep(below, sources.get(name, _DEFAULT), (*path, str(name)), secrets)
            for name, below in value.items()
        }
        without_defaults = {name: below for name, below in values.items() if below is not _DEFAULT}
        # A nested default is left out as a whole: half a dictionary is another one.
        return _DEFAULT if path and source is _DEFAULT and len(without_defaults) < len(values) else without_defaults
    if isinstance(value, list):
        sources = source if isinstance(source, list | tuple) and len(source) == len(value) else [source] * len(value)
        items = [_keep(*pair, (*path, str(i)), secrets) for i, pair in enumerate(zip(value, sources, strict=True))]
        return _DEFAULT if _DEFAULT in items else items
    masked = masked_strings(value, path[-1] if path else "")
    if masked == value:
        return value
    if source is _DEFAULT:
        return _DEFAULT
    secrets.append(".".join(path))
    return masked
