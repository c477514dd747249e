"""Asset keys and op names for the names in a Feast repository, which may be any text."""

import hashlib
import re
from collections.abc import Iterable

import dagster as dg

from dagster_mlops.errors import FeatureError


def asset_name(name: str) -> str:
    """The part of an asset key for a name in Feast: letters of any script, digits, ``_``, ``.`` and ``-`` stay.

    >>> asset_name("/data/rides.parquet"), asset_name("поездки"), asset_name("🚕")
    ('data_rides.parquet', 'поездки', 'u1f695')
    """
    return re.sub(r"[^\w.-]+", "_", name).strip("_") or "_".join(f"u{ord(letter):x}" for letter in name)


def refuse_equal_keys(keys: Iterable[tuple[str, dg.AssetKey]]) -> None:
    """Refuse definitions with one asset key; `keys` are pairs of what a definition is and its key.

    Raises:
        FeatureError: Names both.
    """
    owners: dict[dg.AssetKey, str] = {}
    for owner, key in keys:
        if (other := owners.setdefault(key, owner)) != owner:
            raise FeatureError(
                f"{other} and {owner} both have the asset key {key.to_user_string()}. Rename one of them, or give one "
                "another key by get_asset_spec= (in YAML `translation: {key: …}`)."
            )


def op_name(key: dg.AssetKey) -> str:
    """A name that Dagster accepts for the op of an asset, one for each key.

    >>> op_name(dg.AssetKey(["features", "origin-weather"])), op_name(dg.AssetKey("type"))
    ('features__origin_weather', 'type_3303cb6e')
    """
    from dagster._core.definitions.utils import DISALLOWED_NAMES  # there is no public list

    name = key.to_python_identifier()
    if re.fullmatch(r"[A-Za-z0-9_]+", name) and name not in DISALLOWED_NAMES:
        return name
    return f"{re.sub(r'[^A-Za-z0-9_]', '_', name)}_{hashlib.sha256(key.to_string().encode()).hexdigest()[:8]}"
