"""A file to which lines are appended, and how much of it a power cut may cost."""

import atexit
import errno
import fcntl
import os
import threading
from contextlib import suppress
from pathlib import Path

from dagster_mlops.core.private_files import open_private, sync


class SyncedFile:
    """An append-only file, whose content is on the disk at most `seconds` after it was appended.

    With 0 seconds, :meth:`settle` waits for the disk; those who wait at the same time share one fsync. What was
    appended is in the system's memory, and so survives the end of this process in any way.

    The file is locked until it is closed, or this process ends in any way: so others know that it will not change.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self._file, self._seconds = open_private(path, os.O_WRONLY | os.O_APPEND), seconds
        self._appending, self._syncing = threading.Lock(), threading.Lock()
        self._appended = self._synced = 0
        self._lost = range(0)  # appends that the disk refused
        self._torn, self._first, self.bytes = False, True, 0
        self._timer: threading.Timer | None = None
        self._failure: OSError | None = None
        with suppress(OSError):  # a disk without locks
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        sync(path.parent)  # the file's name
        atexit.register(self._at_exit)

    def append(self, data: bytes, first: bytes = b"") -> int:
        """Append in one write, and return the number of the append.

        In a new file, and after a write that the disk has refused, `first` is written before the data.

        Raises:
            OSError: the disk refuses it, or has refused what was appended before.
        """
        with self._appending:
            if self._failure:
                failure, self._failure = self._failure, None
                raise failure
            data = first + data if self._first else data
            data = b"\n" + data if self._torn else data
            self._first = True  # unless all is written
            while data:
                count = os.write(self._file, data)
                # What a full disk cuts off must not take the next line with it.
                self._torn, data = count < len(data), data[count:]
                self.bytes += count
            self._first = False
            self._appended += 1
            if self._seconds and self._timer is None:
                self._timer = threading.Timer(self._seconds, self._later)
                self._timer.daemon = True
                self._timer.start()
            return self._appended

    def settle(self, number: int) -> None:
        """With 0 seconds, wait until an append is on the disk.

        Raises:
            OSError: the disk refuses it.
        """
        if not self._seconds:
            self._sync(number)

    def close(self) -> None:
        """Write what is left to the disk, and close the file."""
        if self._appended not in self._lost:
            self._sync(self._appended)
        atexit.unregister(self._at_exit)
        os.close(self._file)

    def _sync(self, number: int) -> None:
        with self._syncing:
            if number in self._lost:
                raise OSError(errno.EIO, "the disk has refused what was appended")
            if self._synced < number:
                appended = self._appended
                try:
                    os.fsync(self._file)
                except OSError:
                    # The system tells one caller only: the next fsync succeeds, and what was to be written is gone.
                    self._lost = range(self._synced + 1, appended + 1)
                    self._first = True
                    raise
                self._synced = appended

    def _later(self) -> None:
        with self._appending:
            self._timer, number = None, self._appended
        try:
            self._sync(number)
        except OSError as error:
            self._failure = error

    def _at_exit(self) -> None:
        with suppress(OSError):
            self._sync(self._appended)
