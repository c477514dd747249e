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
_SETTING = re.compile(r"^\s*site_cache_dir\s*=\s*([\"']?)(.+?)\1\s*(?:#.*)?$", re.MULTILINE)


def site_cache(root: Path) -> str:
    """DVC's site cache for the repository that `root` is in; empty where it is chosen by other means, or not needed.

    DVC's default is one folder for all users of a machine, which anyone may write to and whose entries are unpickled:
    a neighbour runs code in it (CVE-2025-69872, without a fix in diskcache). A folder that the variable
    DVC_SITE_CACHE_DIR or the repository's ``core.site_cache_dir`` names stays in use.
    """
    folder = _dvc_folder(root)
    if folder is None or os.environ.get(_VARIABLE) or _chosen(folder):
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
    """The same for the environment of a process that opens the repository, and clones of others.

    A clone knows nothing of the folder that the repository's configuration names: it gets it, too.
    """
    place = site_cache(root)
    if not place and not os.environ.get(_VARIABLE) and (folder := _dvc_folder(root)):
        place = _chosen(folder)
    return {_VARIABLE: place} if place else {}


def _dvc_folder(root: Path) -> Path | None:
    return next((f / ".dvc" for f in (root, *root.parents) if (f / ".dvc").is_dir()), None)


def _chosen(folder: Path) -> str:
    """The folder that a repository's configuration names; empty if it names none."""
    files = [file for name in ("config.local", "config") if (file := folder / name).is_file()]
    settings = (_SETTING.search(file.read_text(errors="replace")) for file in files)
    return next((setting[2].strip() for setting in settings if setting), "")
