"""Temporary folders that a killed process leaves behind, and that the next one removes."""

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
    """A new folder in `parent` that is removed afterwards, as are first those of processes that are no more.

    The system frees a process's lock on its folder when the process ends, however it ends. Where a file system cannot
    lock folders (NFS), nothing is removed but one's own.

    Raises:
        FeatureError: `parent` is not there, read-only or full.
    """
    import fcntl  # only POSIX has it, and definitions should still load elsewhere

    _sweep(parent)
    while True:
        try:
            folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=_SUFFIX, dir=parent))
        except OSError as error:
            raise FeatureError(f"no temporary folder can be made in {parent}: {error}.") from error
        handle = -1
        try:
            handle = os.open(folder, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if folder.exists():
                break
        except (FileNotFoundError, BlockingIOError):
            pass  # another process took it for a dead one's before it was locked
        except OSError:
            break  # not to be locked here: nobody can take it for a dead one's either
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
        found = [Path(entry.path) for entry in os.scandir(parent) if entry.name.endswith(_SUFFIX)]
    except OSError:
        return  # whoever makes a folder there tells better
    for folder in found:
        try:
            handle = os.open(folder, os.O_RDONLY)
        except OSError:  # gone, or another user's
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            pass  # in use, or not to be locked here
        finally:
            os.close(handle)
