"""Files with personal data or secrets: for their owner, and for the group of a folder that is shared with it.

A shared folder is one that its group, but not everyone, may write to, as after ``chmod g+ws state``. Packages that
serve a model hold a copy of this file, so it needs Python's own library only.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path


def is_shared(folder: Path) -> bool:
    """True for a folder that its group may write to. One that everyone may write to, such as /tmp, is not shared."""
    mode = folder.stat().st_mode
    return bool(mode & stat.S_IWGRP) and not mode & stat.S_IWOTH


def private_folder(folder: Path) -> Path:
    """The folder, created as 0700, or 0770 in a shared one, and so are those around it that are not there.

    One that exists keeps its mode. After a power cut, a new one is still there.
    """
    if not folder.parent.exists():
        private_folder(folder.parent)  # with a umask of 002, it would look like a shared one
    try:
        folder.mkdir(0o700)
    except FileExistsError:
        if not folder.is_dir():
            raise
    else:
        if is_shared(folder.parent):
            folder.chmod(stat.S_IMODE(folder.stat().st_mode) | 0o070)
        with suppress(OSError):  # a folder that can be written to, but not read; network disks that know no such sync
            sync(folder.parent)
    return folder


def sync(place: Path) -> None:
    """Write the content of a file, or the names in a folder, to the disk."""
    descriptor = os.open(place, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_ours_alone(folder: Path) -> bool:
    """True for a folder that this user owns, and into which, or into whose place, no other user can put files."""
    for place in [*reversed(folder.resolve().parents), folder.resolve()]:
        status = place.stat()
        # In a folder with the sticky bit, such as /tmp, no one moves away what another user owns.
        is_open = status.st_mode & 0o022 and (place == folder.resolve() or not status.st_mode & stat.S_ISVTX)
        if is_open or status.st_uid not in (os.geteuid(), 0):
            return False
        if status.st_uid == os.geteuid() and not status.st_mode & 0o011:
            return True  # whatever is below, no one else gets there
    return folder.stat().st_uid == os.geteuid()


def open_private(file: Path, flags: int, *, like: Path | None = None) -> int:
    """A descriptor of a file that is created as 0600, or 0660 in a shared folder; one that exists keeps its mode.

    It is never wider than in the end: another user who had it open by then could read what is written later.

    Args:
        file: The file, in a folder that exists.
        flags: Those of :func:`os.open`, without ``O_CREAT``.
        like: Folder whose mode decides, where the file is moved there later.
    """
    try:
        descriptor = os.open(file, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(file, flags)
    if is_shared(like or file.parent):
        os.fchmod(descriptor, 0o660)
    return descriptor


def touch_private(file: Path) -> None:
    """Create an empty file where there is none, so that it is private when a tool fills it. SQLite takes it as new.

    Where that fails, the tool fails, too, and says more about it.
    """
    with suppress(OSError):
        os.close(open_private(file, os.O_RDONLY))


def private_umask(folder: Path) -> int:
    """The umask of a child whose files in `folder` are to be private, because a tool creates them."""
    return 0o007 if is_shared(folder) else 0o077
