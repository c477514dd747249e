"""The folder for what DVC remembers about files between commands, in a place that no other user can write to."""

import functools
import os
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from dagster_mlops.core.private_files import is_ours_alone, private_folder

_VARIABLE = "DVC_SITE_CACHE_DIR"
_SETTING = re.compile(r"^\s*site_cache_dir\s*=", re.MULTILINE)


def site_cache(root: Path) -> str:
    """DVC's site cache for the repository that `root` is in; empty where it is chosen by other means, or not needed.

    DVC's default is one folder for all users of a machine, which anyone may write to and whose entries are unpickled:
    a neighbour runs code in it (CVE-2025-69872, without a fix in diskcache). A folder that the variable
    DVC_SITE_CACHE_DIR or the repository's ``core.site_cache_dir`` names stays in use.
    """
    folder = next((f / ".dvc" for f in (root, *root.parents) if (f / ".dvc").is_dir()), None)
    if folder is None or os.environ.get(_VARIABLE) or any(_chosen(folder / f) for f in ("config", "config.local")):
        return ""
    # Not beside the data first: when its disk is full, DVC could not even say so.
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if home.is_absolute():  # a user without a home has "~"
        with suppress(OSError):
            if is_ours_alone(place := private_folder(home / "dagster_mlops" / "dvc_site_cache")):
                return str(place)
    with suppress(OSError):  # whoever can write into the repository can run code in it by other means, too
        return str(private_folder(folder / "tmp" / "dagster_mlops" / "site_cache"))
    return _temporary().name


@functools.cache
def _temporary() -> "tempfile.TemporaryDirectory[str]":
    """A folder for a user without a home whose repository can only be read: it ends with this process."""
    return tempfile.TemporaryDirectory(prefix="dagster-mlops-site-cache-")


def site_cache_option(root: Path) -> dict[str, str]:
    """The same as an option of DVC's section ``core``, for a repository that this process opens."""
    place = site_cache(root)
    return {"site_cache_dir": place} if place else {}


def site_cache_variables(root: Path) -> Mapping[str, str]:
    """The same for the environment of a process that opens the repository, and others."""
    place = site_cache(root)
    return {_VARIABLE: place} if place else {}


def _chosen(file: Path) -> bool:
    return file.is_file() and _SETTING.search(file.read_text(errors="replace")) is not None
