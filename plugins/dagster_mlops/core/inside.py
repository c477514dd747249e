"""Names of files that come from data: none of them leads out of the folder that it is meant for, or into git's own."""

import os
from pathlib import Path, PurePosixPath
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
    if os.path.commonpath([real, top]) != top or _names_git(Path(os.path.relpath(real, top))):
        raise error(
            f"{name!r} is a name of something outside of {folder}, over a link. It is not read and not written."
        )
    return path


def plain_name(name: Any, *, error: type[DagsterMlopsError] = DagsterMlopsError) -> str:
    """The name, if it is one below any folder; for a folder without links, such as a new one.

    Raises:
        DagsterMlopsError: as `error`, like :func:`inside`.
    """
    path = PurePosixPath(name) if isinstance(name, str) and "\0" not in name and _can_be_encoded(name) else None
    if path is None or not path.parts or Path(path).is_absolute() or ".." in Path(path).parts or _names_git(path):
        raise error(
            f"{name!r} is not a name below its folder: someone wrote it by hand. It is not read and not written."
        )
    return str(path)


def _names_git(path: Path | PurePosixPath) -> bool:
    return any(part.rstrip(" .").casefold() in _OF_GIT for part in path.parts)


def _can_be_encoded(name: str) -> bool:
    try:
        return bool(os.fsencode(name))
    except UnicodeEncodeError:
        return False
