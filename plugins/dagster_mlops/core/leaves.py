"""Nested values as one mapping with dotted names."""

from collections.abc import Iterator, Mapping
from typing import Any


def leaves(value: Any, name: str = "", *, lists: bool = True) -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings and lists, each with its dotted name; without `lists`, a list is a leaf.

    >>> dict(leaves({"tree": {"depth": 3, "rates": [0.1, 0.2]}}))
    {'tree.depth': 3, 'tree.rates.0': 0.1, 'tree.rates.1': 0.2}
    """
    if isinstance(value, Mapping):
        items = value.items()
    elif lists and isinstance(value, list):
        items = enumerate(value)
    else:
        yield name, value
        return
    for key, inner in items:
        yield from leaves(inner, f"{name}.{key}" if name else str(key), lists=lists)
