"""Which packages are installed, in which versions, under which licences."""

import re
from functools import lru_cache
from importlib import metadata as distributions
from typing import Any

_FIELD = re.compile(r"^(Name|Version|License-Expression|License|Classifier): *(.*)$", re.MULTILINE | re.IGNORECASE)
_LONGEST = 100  # characters: some packages have put the whole text of the licence into the field


@lru_cache(maxsize=1)
def installed_packages() -> tuple[dict[str, str], ...]:
    """``name``, ``version`` and ``licence`` of every installed package, by name, read once per process.

    The licence is the SPDX expression where the package gives one, else its classifiers, else what it calls its
    licence; empty where it says nothing.
    """
    found: dict[tuple[str, str], dict[str, str]] = {}
    for distribution in distributions.distributions():
        # Only the head: parsing the whole as a message takes a second for some hundred packages.
        head = (distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or "").partition("\n\n")[0]
        fields: dict[str, list[str]] = {}
        for name, value in _FIELD.findall(head):
            fields.setdefault(name.lower(), []).append(value.strip())
        if "name" in fields and "version" in fields:
            package = {"name": fields["name"][0], "version": fields["version"][0], "licence": _licence(fields)}
            found[package["name"].lower(), package["version"]] = package
    return tuple(package for _, package in sorted(found.items()))


def _licence(fields: dict[str, list[str]]) -> str:
    classified = [c.rpartition(" :: ")[2] for c in fields.get("classifier", ()) if c.startswith("License ::")]
    told: list[Any] = [*fields.get("license-expression", ()), ", ".join(classified), *fields.get("license", ())]
    return next((text for text in told if text and text != "UNKNOWN"), "")[:_LONGEST]
