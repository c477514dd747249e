"""Names of files that come from data: none of them leads out of the folder that it is meant for, or into git's own."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dagster_mlops.errors import DagsterMlopsError

# A checkout that holds such a folder runs what is in it. The second is the first on a disk with short names.
_OF_GIT = {".git", "git~1"}


def inside(folder: Path, name: Any, *, error: type[DagsterMlopsError] = DagsterMlopsError) -> Path:
    """The path below `folder` by a name that others may have written: in a listing, an archive, a record.

    >>> str(inside(Path("/data"), "images/1.png"))
    '/data/images/1.png'

    Links that exist on the way are followed. A name is refused, not changed: files would end up where no one looks.

    Raises:
        DagsterMlopsError: as `error`: the name leads out of the folder or into a ``.git``, or names no file.
    """
    path = folder / plain_name(name, error=error)
    real, top = os.path.realpath(path), os.path.realpath(folder)
    if os.path.commonpath([real, top]) != top or _names_git(Path(os.path.relpath(real, top)).parts):
        raise error(
            f"{name!r} is a name of something outside of {folder}, over a link. It is not read and not written."
        )
    return path


def plain_name(name: Any, *, error: type[DagsterMlopsError] = DagsterMlopsError) -> str:
    """The name, if it is one below any folder; for a folder without links, such as a new one.

    Raises:
        DagsterMlopsError: as `error`, like :func:`inside`.
    """
    parts = name.split("/") if isinstance(name, str) and "\0" not in name and _can_be_encoded(name) else []
    if not {*parts} - {"", "."} or ".." in parts or os.path.isabs(name) or _names_git(parts):
        raise error(
            f"{name!r} is not a name below its folder: someone wrote it by hand. It is not read and not written."
        )
    return name


def files_below(files: Any, path: str, *, error: type[DagsterMlopsError] = DagsterMlopsError) -> dict[str, Any]:
    """The entries of the files below a folder of an fsspec file system, by name; to be called before they are copied.

    Raises:
        DagsterMlopsError: as `error`: one of them leads out of the folder, as no checkout of git would.
    """
    entries = {}
    for root, folders, names in files.walk(path, detail=True):
        for name in (*folders, *names):
            if os.sep in plain_name(name, error=error):
                raise error(f"{name!r} in {root} is not the name of one file.")
        relative = os.path.relpath(root, path)
        entries.update({os.path.normpath(f"{relative}/{name}"): entry for name, entry in names.items()})
    return entries


def _names_git(parts: Iterable[str]) -> bool:
    return any(part.rstrip(" .").casefold() in _OF_GIT for part in parts)


def _can_be_encoded(name: str) -> bool:
    try:
        return name.isascii() or bool(os.fsencode(name))
    except UnicodeEncodeError:
        return False
