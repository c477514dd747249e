"""Options of Dagster's definitions that users give to a factory, and that reach what it makes."""

from collections.abc import Iterable, Mapping
from typing import Any

import dagster as dg

from dagster_mlops.core.asset_keys import asset_deps, asset_key

_SPEC_REPLACED = ("description", "group_name", "code_version", "automation_condition", "freshness_policy", "is_virtual")
_SPEC_MERGED = ("metadata", "owners", "tags", "kinds")


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
    given = {option: value for option, value in options.items() if value is not None}
    named = {"key": asset_key(given["key"])} if "key" in given else {"name": given.get("name", name)}
    return {
        **defaults,
        **given,
        **named,
        "kinds": {*kinds, *given.get("kinds", ())},
        "deps": asset_deps([*deps, *given.get("deps", ())]),
        "ins": {**(ins or {}), **given.get("ins", {})},
        "metadata": {**(metadata or {}), **given.get("metadata", {})},
        "required_resource_keys": {*required_resource_keys, *given.get("required_resource_keys", ())},
    }


def spec_with_options(spec: dg.AssetSpec, options: Mapping[str, Any]) -> tuple[dg.AssetSpec, dict[str, Any]]:
    """A spec with those of the `options` that a spec has, and the others, which are for the step."""
    left = {option: value for option, value in options.items() if value is not None}
    merged = {option: left.pop(option) for option in _SPEC_MERGED if option in left}
    replaced = {option: left.pop(option) for option in _SPEC_REPLACED if option in left}
    deps = asset_deps(left.pop("deps", ()))
    return spec.merge_attributes(deps=deps, **merged).replace_attributes(**replaced), left
