"""Which packages are installed, in which versions, from where, under which licences."""

import json
import re
from functools import lru_cache
from importlib import metadata as distributions
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from dagster_mlops.provenance import mask_credentials

_FIELD = re.compile(r"^(Name|Version|License-Expression|License|Classifier): *(.*)$", re.MULTILINE | re.IGNORECASE)
_LONGEST = 100  # characters: some packages have put the whole text of the licence into the field


@lru_cache(maxsize=1)
def installed_packages() -> tuple[dict[str, str], ...]:
    """``name``, ``version``, ``source`` and ``licence`` of every installed package, by name, read once per process.

    The source is empty for what comes from an index, an address for what was installed from one, with its commit, and
    a ``file:`` address for a folder. The licence is the SPDX expression where the package gives one, else its
    classifiers, else what it calls its licence; empty where it says nothing.
    """
    found: dict[tuple[str, str], dict[str, str]] = {}
    for distribution in distributions.distributions():
        # Only the head: parsing the whole as a message takes a second for some hundred packages.
        head = (distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or "").partition("\n\n")[0]
        fields: dict[str, list[str]] = {}
        for name, value in _FIELD.findall(head):
            fields.setdefault(name.lower(), []).append(value.strip())
        if "name" in fields and "version" in fields:
            package = {
                "name": fields["name"][0],
                "version": fields["version"][0],
                "source": _source(distribution.read_text("direct_url.json")),
                "licence": _licence(fields),
            }
            found[package["name"].lower(), package["version"]] = package
    return tuple(package for _, package in sorted(found.items()))


def requirements() -> str:
    """What is installed, as a file that pip and uv install again; folders of this machine are comments in it."""
    return "".join(f"{_requirement(**package)}\n" for package in installed_packages())


def _requirement(*, name: str, version: str, source: str, licence: str) -> str:
    del licence
    if source.startswith("file:"):
        return f"# {name}=={version} from {source}"
    return f"{name} @ {source}" if source else f"{name}=={version}"


def _source(direct_url: str | None) -> str:
    """Where a package was installed from, as PEP 610 keeps it."""
    try:
        found = json.loads(direct_url or "{}")
    except ValueError:
        return ""
    url, vcs, archive = (found.get(key) for key in ("url", "vcs_info", "archive_info"))
    if vcs:
        below = f"#subdirectory={found['subdirectory']}" if found.get("subdirectory") else ""
        return mask_credentials(f"{vcs['vcs']}+{url}@{vcs['commit_id']}{below}")
    if str(url).startswith("file:"):
        editable = (found.get("dir_info") or {}).get("editable")
        here = editable or Path(url2pathname(urlsplit(str(url)).path)).is_dir()
        if archive is not None or not here:
            return ""  # a wheel from a folder, or built elsewhere, as conda's: its version is what others can find
    return mask_credentials(str(url)) if url else ""


def _licence(fields: dict[str, list[str]]) -> str:
    classified = [c.rpartition(" :: ")[2] for c in fields.get("classifier", ()) if c.startswith("License ::")]
    told: list[Any] = [*fields.get("license-expression", ()), ", ".join(classified), *fields.get("license", ())]
    return next((text for text in told if text and text != "UNKNOWN"), "")[:_LONGEST]
