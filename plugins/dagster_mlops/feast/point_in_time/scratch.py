"""Temporary folders; those that a killed process leaves behind are removed by the next one."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dagster_mlops.errors import FeatureError

_SUFFIX = ".asof.tmp"


@contextmanager
def scratch_folder(parent: Path, prefix: str = "") -> Iterator[Path]:
    """A new folder in `parent` that is removed afterwards; first, folders of processes that have ended are removed.

    The system releases a process's lock on its folder when the process ends in any way. Where a file system cannot
    lock folders (NFS), only the process's own folder is removed.

    Raises:
        FeatureError: `parent` does not exist, is read-only or is full.
    """
    import fcntl  # only on POSIX, and definitions should also load elsewhere

    _sweep(parent)
    while True:
        try:
            folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=_SUFFIX, dir=parent))
        except OSError as error:
            raise FeatureError(f"no temporary folder can be created in {parent}: {error}.") from error
        handle = -1
        try:
            handle = os.open(folder, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if folder.exists():
                break
        except (FileNotFoundError, BlockingIOError):
            pass  # another process took it for an ended one's before it was locked
        except OSError:
            break  # folders cannot be locked here, so no one can take it for an ended process's either
        if handle >= 0:
            os.close(handle)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if handle >= 0:
            os.close(handle)


def _sweep(parent: Path) -> None:
    import fcntl

    try:
        folders = [Path(entry.path) for entry in os.scandir(parent) if entry.name.endswith(_SUFFIX)]
    except OSError:
        return  # creating a folder there gives a better error
    for folder in folders:
        try:
            handle = os.open(folder, os.O_RDONLY)
        except OSError:  # gone, or another user's
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            pass  # in use, or folders cannot be locked here
        finally:
            os.close(handle)
