"""Files that several processes share: replaced in one step, locked, and hashed."""

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from dagster_mlops.core.private_files import is_shared, open_private, private_folder, sync
from dagster_mlops.errors import DagsterMlopsError

STATE = ".dagster_mlops"
"""The folder for what the plugins keep beside the user's files, unless another is named; git ignores it."""


def write_atomically(
    file: Path, content: str | bytes, *, private: bool = False, durable: bool = False, draft: Path | None = None
) -> None:
    """Replace the content of `file`; a reader, or a kill of this process, sees all of the old or all of the new.

    Args:
        file: The file. Its folder is created where it is missing.
        content: Text is written as UTF-8.
        private: Whether it holds personal data or secrets; see :mod:`dagster_mlops.core.private_files`. The mode of the
            file that is replaced does not count.
        durable: Whether a power cut, too, leaves all of the old or all of the new, and the new once this has returned:
            the content is on the disk before it replaces the old, and its name before this returns.
        draft: Path of the unfinished file on the same disk; beside `file` unless given.
    """
    created = [folder for folder in file.parents if not folder.exists()] if durable else []
    if private:
        private_folder(file.parent)
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
    draft = draft or file.with_name(f".{file.name}.{uuid.uuid4().hex[:12]}.tmp")
    opener = open_private if private else partial(os.open, mode=0o666)
    try:
        with open(opener(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
        if durable:
            sync(draft)
        os.replace(draft, file)
        if durable:
            for folder in dict.fromkeys([file.parent, *(new.parent for new in created)]):
                sync(folder)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def sync_tree(folder: Path) -> None:
    """Write all files of a folder, their names, its name and that of the folder around it, to the disk."""
    for path in [*folder.rglob("*"), folder, *folder.absolute().parents[:2]]:
        if not path.is_symlink():
            sync(path)


def own_folder(folder: Path) -> Path:
    """The folder, created with a ``.gitignore`` for all of it: what the plugins write into it is not the user's code.

    It is private, because it holds what models read and answer. A folder that exists keeps its mode, and one that holds
    other files already is the user's, and stays as it is.
    """
    private_folder(folder)
    if not any(folder.iterdir()):
        write_atomically(folder / ".gitignore", "*\n")
    return folder


@contextmanager
def exclusive(file: Path, timeout: float, *, error: type[DagsterMlopsError] = DagsterMlopsError) -> Iterator[None]:
    """Hold an exclusive lock among the processes of this machine; the system frees it when a holder is killed.

    The file stays afterwards, and beside it one with the holder's name, for the error of a process that waits in vain.

    Raises:
        DagsterMlopsError: as `error`, when another process held it for `timeout` seconds.
    """
    holder = file.with_name(f"{file.name}.holder")
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock(file)
    try:
        lock.acquire(timeout=timeout, poll_interval=0.05)
    except Timeout:
        name = holder.read_text() if holder.exists() else "another process"
        raise error(f"{file} was held by {name} for {timeout:g} s. Wait for it or end it, then try again.") from None
    try:
        with suppress(OSError):  # the name only helps; another user may own the file
            write_atomically(holder, f"process {os.getpid()}")  # not through a link to another file
        yield
    finally:
        lock.release()


@contextmanager
def if_free(file: Path) -> Iterator[bool]:
    """Hold the lock without waiting for it; False when another process is inside."""
    lock = _lock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _lock(file: Path) -> FileLock:
    # Whoever shares the folder must be able to open it for writing, too.
    return FileLock(file, mode=0o660 if file.parent.is_dir() and is_shared(file.parent) else 0o644)


def digest(file: Path, algorithm: str = "sha256") -> str:
    """The hash of a file's content, in hexadecimal digits.

    It identifies content and protects nothing, so MD5, which DVC uses, works even on a system that forbids it.
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
