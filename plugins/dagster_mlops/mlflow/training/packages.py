"""The installed packages, with their versions, sources and licences."""

import json
import re
from functools import lru_cache
from importlib import metadata as distributions
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from dagster_mlops.provenance import mask_credentials

_FIELD = re.compile(r"^(Name|Version|License-Expression|License|Classifier): *(.*)$", re.MULTILINE | re.IGNORECASE)
_LONGEST = 100  # characters: some packages put the whole text of the licence into the field


@lru_cache(maxsize=1)
def installed_packages() -> tuple[dict[str, str], ...]:
    """``name``, ``version``, ``source`` and ``licence`` of every installed package, by name, read once per process.

    The source is empty for a package from an index, an address with the commit for one from a repository, and a
    ``file:`` address for one from a folder. The licence is the package's SPDX expression, else its classifiers, else
    its field `License`; empty where it has none.
    """
    packages: dict[tuple[str, str], dict[str, str]] = {}
    for distribution in distributions.distributions():
        # Only the head: parsing whole messages takes a second for some hundred packages.
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
            packages[package["name"].lower(), package["version"]] = package
    return tuple(package for _, package in sorted(packages.items()))


def requirements() -> str:
    """The installed packages as a requirements file for pip and uv; folders of this machine are comments in it."""
    return "".join(f"{_requirement(**package)}\n" for package in installed_packages())


def _requirement(*, name: str, version: str, source: str, **_: str) -> str:
    if source.startswith("file:"):
        return f"# {name}=={version} from {source}"
    return f"{name} @ {source}" if source else f"{name}=={version}"


def _source(direct_url: str | None) -> str:
    """The source of a package, from its PEP 610 record."""
    try:
        record = json.loads(direct_url or "{}")
    except ValueError:
        return ""
    url, vcs, archive = (record.get(key) for key in ("url", "vcs_info", "archive_info"))
    if vcs:
        below = f"#subdirectory={record['subdirectory']}" if record.get("subdirectory") else ""
        return mask_credentials(f"{vcs['vcs']}+{url}@{vcs['commit_id']}{below}")
    if str(url).startswith("file:"):
        editable = (record.get("dir_info") or {}).get("editable")
        is_folder = editable or Path(url2pathname(urlsplit(str(url)).path)).is_dir()
        if archive is not None or not is_folder:
            return ""  # a wheel from a folder, or built elsewhere, like conda's: others can find its version
    return mask_credentials(str(url)) if url else ""


def _licence(fields: dict[str, list[str]]) -> str:
    classifiers = [c.rpartition(" :: ")[2] for c in fields.get("classifier", ()) if c.startswith("License ::")]
    licences = [*fields.get("license-expression", ()), ", ".join(classifiers), *fields.get("license", ())]
    return next((text for text in licences if text and text != "UNKNOWN"), "")[:_LONGEST]
