"""Names of assets that nothing defines, found when definitions load."""

import difflib
from collections import defaultdict
from collections.abc import Collection, Iterator

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_key


def validate_asset_names(defs: dg.Definitions, *, elsewhere: Collection[AssetLike] = ()) -> dg.Definitions:
    """Refuse definitions in which something names an asset that nothing defines, and return the others.

    Dagster makes an external asset of a misspelt name: what depends on it never finds its input, and a check of it
    never runs, so that it holds nothing back.

        defs = validate_asset_names(dg.Definitions(assets=[...]), elsewhere=["lake/flights"])

    Args:
        defs: The definitions of a code location.
        elsewhere: Assets of other code locations. One that has an :class:`dagster.AssetSpec` here need not be named.

    Raises:
        DagsterInvalidDefinitionError: Each missing asset, with what names it and the asset that is probably meant.
    """
    defined = {*_defined(defs), *map(asset_key, elsewhere)}
    missing: dict[dg.AssetKey, set[str]] = defaultdict(set)
    for key, who in _named(defs):
        if key not in defined:
            missing[key].add(who)
    if missing:
        names = sorted(key.to_user_string() for key in defined)
        raise dg.DagsterInvalidDefinitionError(
            "No asset here has the key\n"
            + "\n".join(
                f"  {key.to_user_string()}, which {', '.join(sorted(missing[key]))} names.{_close(key, names)}"
                for key in sorted(missing, key=str)
            )
            + "\nCorrect the name, or say that the asset is in another code location: elsewhere=[…], or a dg.AssetSpec."
        )
    return defs


def closest(key: dg.AssetKey, names: Collection[str]) -> list[str]:
    """The asset keys, as group/name, that are nearly spelt as `key` is."""
    return difflib.get_close_matches(key.to_user_string(), names, n=3)


def _close(key: dg.AssetKey, names: Collection[str]) -> str:
    close = closest(key, names)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def _defined(defs: dg.Definitions) -> Iterator[dg.AssetKey]:
    for definition in defs.assets or ():
        if isinstance(definition, dg.AssetsDefinition):
            yield from definition.keys
        elif isinstance(definition, dg.AssetSpec | dg.SourceAsset):
            yield definition.key


def _named(defs: dg.Definitions) -> Iterator[tuple[dg.AssetKey, str]]:
    """Every key that an asset or check names, and who names it."""
    for definition in [*(defs.assets or ()), *(defs.asset_checks or ())]:
        specs = [definition] if isinstance(definition, dg.AssetSpec) else getattr(definition, "specs", ())
        for spec in specs:
            yield from ((dep.asset_key, f"asset {spec.key.to_user_string()}") for dep in spec.deps)
        for check in getattr(definition, "check_specs", ()):
            who = f"check {check.name}"
            yield check.asset_key, who
            yield from ((dep.asset_key, who) for dep in check.additional_deps or ())
