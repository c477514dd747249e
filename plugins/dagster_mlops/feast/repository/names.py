"""Asset keys and op names for the names in a Feast repository, which may be any text."""

import re
from collections.abc import Iterable, Sequence

import dagster as dg

from dagster_mlops.core.upstream import reserved_names
from dagster_mlops.errors import FeatureError


def asset_name(name: str) -> str:
    """The part of an asset key for a name in Feast: ASCII letters, digits, ``_``, ``.`` and ``-`` stay.

    Dagster accepts no other characters in the names that it derives from keys. A name with others than ASCII's is
    written as in addresses of the web, in Punycode, so that two names never become one.

    >>> asset_name("/data/rides.parquet"), asset_name("поездки"), asset_name("für alle")
    ('data_rides.parquet', 'xn--d1abgfjug', 'xn--fr_alle-n2a')
    """
    text = name if name.isascii() else "xn--" + name.encode("punycode").decode()
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("_") or "_"


def refuse_equal(names: Iterable[tuple[str, str]]) -> None:
    """Refuse definitions with one name in Dagster; `names` are pairs of what a definition is and that name.

    Raises:
        FeatureError: Names both definitions.
    """
    owners: dict[str, str] = {}
    for owner, name in names:
        if (other := owners.setdefault(name, owner)) != owner:
            raise FeatureError(
                f"{other} and {owner} are both {name} in Dagster. Rename one of them, or give one another key by "
                "get_asset_spec= (in YAML `translation: {key: …}`)."
            )


def prefixed(key: dg.AssetKey, prefix: Sequence[str] | None) -> dg.AssetKey:
    """The key below `prefix`; with ``_`` at its end if Dagster keeps the word for itself, such as ``type``.

    >>> prefixed(dg.AssetKey("type"), None).path, prefixed(dg.AssetKey("type"), ["features"]).path
    (['type_'], ['features', 'type'])
    """
    full = key.with_prefix(prefix or ())
    return dg.AssetKey([f"{full.path[0]}_"]) if full.to_python_identifier() in reserved_names() else full
