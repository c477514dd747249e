"""Assets as arguments of factories: by key, by definition, by spec, by text or as an input."""

from collections.abc import Iterable, Sequence
from typing import Any

import dagster as dg

AssetLike = dg.AssetKey | dg.AssetsDefinition | dg.AssetSpec | str | Sequence[str]
"""An asset as an argument of a factory. The text ``raw/weather`` is the key with the parts ``raw`` and ``weather``."""


def asset_key(asset: AssetLike | dg.AssetIn) -> dg.AssetKey:
    """The key of an asset.

    >>> asset_key("training/rows").path, asset_key(["training", "rows"]).path
    (['training', 'rows'], ['training', 'rows'])

    Raises:
        DagsterInvalidDefinitionError: A part of the key is empty.
    """
    if isinstance(asset, dg.AssetIn):
        if asset.key is None:
            raise dg.DagsterInvalidDefinitionError("An AssetIn needs the key of its asset: dg.AssetIn(key=…).")
        return asset.key
    if isinstance(asset, dg.AssetsDefinition | dg.AssetSpec):
        return asset.key
    # Dagster itself takes a slash as part of a name that it then refuses.
    key = dg.AssetKey.from_user_string(asset) if isinstance(asset, str) else dg.AssetKey.from_coercible(asset)
    if not key.path or not all(part.strip() for part in key.path):
        raise dg.DagsterInvalidDefinitionError(f"{asset!r} names no asset. Write its key, such as 'raw/weather'.")
    return key


def asset_input(asset: AssetLike | dg.AssetIn, *, partition_mapping: dg.PartitionMapping | None = None) -> dg.AssetIn:
    """An asset as an input that its own IO manager loads."""
    if isinstance(asset, dg.AssetIn):
        return asset
    return dg.AssetIn(key=asset_key(asset), partition_mapping=partition_mapping)


def asset_deps(assets: Iterable[Any]) -> list[Any]:
    """Dependencies as Dagster takes them: keys in place of texts, and anything else as it is.

    >>> asset_deps(["raw/weather"])
    [AssetKey(['raw', 'weather'])]
    """
    return [asset_key(asset) if isinstance(asset, str) else asset for asset in assets]
