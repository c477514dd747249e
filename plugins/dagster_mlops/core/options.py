"""Options of Dagster's definitions that users give to a factory, and that reach what it makes."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_type_hints

import dagster as dg

from dagster_mlops.core.asset_keys import asset_deps, asset_key

_SINGLE = ("description", "group_name", "code_version", "automation_condition", "freshness_policy")
_JOINED = ("metadata", "owners", "tags", "kinds")


def merged_options(
    options: Mapping[str, Any],
    *,
    name: str | None = None,
    kinds: Iterable[str] = (),
    deps: Iterable[Any] = (),
    ins: Mapping[str, dg.AssetIn] | None = None,
    metadata: Mapping[str, Any] | None = None,
    required_resource_keys: Iterable[str] = (),
    **defaults: Any,
) -> dict[str, Any]:
    """Arguments of :func:`dagster.asset`: those of a factory, with the `options` of its user.

    Kinds, dependencies, inputs, metadata and resource keys of both are joined. Another option takes the place of its
    default, unless it is None; a ``key`` that of the `name`.

    >>> merged_options({"key": "raw/weather", "kinds": {"csv"}}, name="weather", kinds=["dvc"])["key"]
    AssetKey(['raw', 'weather'])
    """
    user_options = {option: value for option, value in options.items() if value is not None}
    name = user_options.get("name", name)
    identity = {"key": asset_key(user_options["key"])} if "key" in user_options else {"name": name}
    return {
        **defaults,
        **user_options,
        **identity,
        "kinds": {*kinds, *user_options.get("kinds", ())},
        "deps": asset_deps([*deps, *user_options.get("deps", ())]),
        "ins": {**(ins or {}), **user_options.get("ins", {})},
        "metadata": {**(metadata or {}), **user_options.get("metadata", {})},
        "required_resource_keys": {*required_resource_keys, *user_options.get("required_resource_keys", ())},
    }


def with_signature(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that carries its signature, for which Dagster asks fifteen times while it makes one asset."""
    signature = inspect.signature(function)
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError:  # Dagster explains it
        return function
    parameters = [p.replace(annotation=hints.get(p.name, p.annotation)) for p in signature.parameters.values()]
    result = hints.get("return", signature.return_annotation)
    setattr(function, "__signature__", signature.replace(parameters=parameters, return_annotation=result))  # noqa: B010
    return function


def asset_with(options: Mapping[str, Any], **defaults: Any) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """The decorator of a factory's function, with the arguments of :func:`merged_options`."""
    return dg.asset(**merged_options(options, **defaults))


def specs_with_options(
    specs: Iterable[dg.AssetSpec], options: Mapping[str, Any]
) -> tuple[list[dg.AssetSpec], dict[str, Any]]:
    """Specs with those of the `options` that a spec has, and the other options, which are for the step.

    What a spec says already, such as its group, goes before an option.
    """
    for_step = {option: value for option, value in options.items() if value is not None}
    deps = asset_deps(for_step.pop("deps", ()))
    joined = {option: for_step.pop(option) for option in _JOINED if option in for_step}
    single = {option: for_step.pop(option) for option in _SINGLE if option in for_step}
    return [
        spec.merge_attributes(deps=deps, **joined).replace_attributes(
            **{option: value for option, value in single.items() if getattr(spec, option) in (None, "default")}
        )
        for spec in specs
    ], for_step
