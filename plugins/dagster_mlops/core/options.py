"""Options of Dagster's definitions that users give to a factory, and that reach what it makes."""

import difflib
import functools
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
    user_options = known_options(options, dg.asset, dg.multi_asset)
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


def known_options(options: Mapping[str, Any], *takers: Callable[..., Any]) -> dict[str, Any]:
    """The options that a user gave, without those that are None.

    Raises:
        TypeError: None of Dagster's functions `takers` takes one of them: the message names the factory that the user
            has called, and the option that is probably meant.
    """
    accepted = frozenset().union(*map(_parameters, takers))
    if unknown := [option for option in options if option not in accepted]:
        name, arguments = _called_factory()
        close = difflib.get_close_matches(unknown[0], {*arguments, *accepted}, n=1)
        advice = f" Did you mean {close[0]!r}?" if close else ""
        raise TypeError(f"{name}() takes no option {unknown[0]!r}.{advice}")
    return {option: value for option, value in options.items() if value is not None}


@functools.cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def _called_factory() -> tuple[str, set[str]]:
    """The name of the factory of this library that other code has called, with the arguments of all that it calls."""
    frame, name, arguments = inspect.currentframe(), "", set()
    while frame and frame.f_globals.get("__name__", "").startswith("dagster_mlops."):
        name = frame.f_code.co_qualname.partition(".")[0]  # a decorator's is that of its factory
        if inspect.isfunction(function := frame.f_globals.get(name)):
            arguments |= _parameters(function)
        frame = frame.f_back
    return name, arguments


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
    for_step = known_options(options, dg.asset, dg.multi_asset)
    deps = asset_deps(for_step.pop("deps", ()))
    joined = {option: for_step.pop(option) for option in _JOINED if option in for_step}
    single = {option: for_step.pop(option) for option in _SINGLE if option in for_step}
    return [
        spec.merge_attributes(deps=deps, **joined).replace_attributes(
            **{option: value for option, value in single.items() if getattr(spec, option) in (None, "default")}
        )
        for spec in specs
    ], for_step
