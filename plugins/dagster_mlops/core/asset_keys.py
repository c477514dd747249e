"""Assets as arguments of factories: by key, by definition, by name or as an input."""

import dagster as dg

AssetLike = dg.AssetKey | dg.AssetsDefinition | str


def asset_key(asset: AssetLike | dg.AssetIn) -> dg.AssetKey:
    """The key of an asset, however it is named.

    >>> asset_key("training/rows").path
    ['training', 'rows']
    """
    if isinstance(asset, dg.AssetIn):
        if asset.key is None:
            raise dg.DagsterInvalidDefinitionError("An AssetIn needs the key of its asset: dg.AssetIn(key=…).")
        return asset.key
    if isinstance(asset, dg.AssetsDefinition):
        return asset.key
    return dg.AssetKey.from_user_string(asset) if isinstance(asset, str) else asset


def asset_input(asset: AssetLike | dg.AssetIn) -> dg.AssetIn:
    """An asset as an input that its own IO manager loads."""
    return asset if isinstance(asset, dg.AssetIn) else dg.AssetIn(key=asset_key(asset))
