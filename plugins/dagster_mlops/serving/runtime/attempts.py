"""Requests that a server has begun to score, noted where its death does not take them.

A proxy whose connection breaks cannot know whether the server had read the request. So each process of a deployment
notes the token of a request before it scores it, in a file that is memory. Who gets a request for the second time finds
there whether it may have been scored and logged; if not, it takes it.
"""

import mmap
import os
from collections.abc import Mapping
from itertools import count
from pathlib import Path

from dagster_mlops.core.private_files import open_private

TOKEN, NUMBER = b"x-attempt-token", b"x-envoy-attempt-count"
"""Headers: one value for all attempts of a request, and the number of this one, from 1."""
_WIDTH, _LAST = 40, 2**14  # bytes of a token; a second attempt comes within milliseconds of the first


class Attempts:
    """The requests that the processes of one deployment have begun, the last 16,384 of each.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> one, other = Attempts(folder, "replica-0"), Attempts(folder, "replica-1")
    >>> one.begin({TOKEN: b"t1", NUMBER: b"1"}), other.begin({TOKEN: b"t1", NUMBER: b"2"})
    (True, False)
    >>> other.begin({TOKEN: b"t2", NUMBER: b"2"})
    True

    Args:
        folder: The same for all processes of a deployment.
        name: Of this process; the next one of the name goes on with its file.
    """

    def __init__(self, folder: str | Path, name: str) -> None:
        self._folder = Path(folder)
        descriptor = open_private(self._folder / f"{name}.begun", os.O_RDWR)
        try:
            os.ftruncate(descriptor, _WIDTH * _LAST)
            self._memory = mmap.mmap(descriptor, _WIDTH * _LAST)
        finally:
            os.close(descriptor)
        self._numbers = count()

    @classmethod
    def from_environment(cls) -> "Attempts | None":
        """Those of the deployment that this process serves; None without a supervisor that gives it a folder."""
        folder, name = os.environ.get("DAGSTER_MLOPS_GROUP_DIR"), os.environ.get("DAGSTER_MLOPS_PROGRAM")
        return cls(folder, name) if folder and name and Path(folder).is_dir() else None

    def begin(self, headers: Mapping[bytes, bytes]) -> bool:
        """Note that a request is about to be scored; False if a process may have scored it before."""
        token = headers.get(TOKEN, b"")[:_WIDTH]
        if not token:
            return True
        entry = token.ljust(_WIDTH, b"\0")
        if headers.get(NUMBER, b"1") != b"1" and self._has(entry):
            return False
        start = next(self._numbers) % _LAST * _WIDTH
        self._memory[start : start + _WIDTH] = entry
        return True

    def _has(self, entry: bytes) -> bool:
        return any(entry in file.read_bytes() for file in self._folder.glob("*.begun"))
