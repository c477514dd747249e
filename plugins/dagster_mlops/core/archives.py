"""ZIP archives in which every reader finds the same members: readers differ in what they take for the directory."""

import struct
import zipfile
from pathlib import Path

_END = struct.Struct("<4s4H2LH")  # signature, disks and members, size and place of the directory, length of a comment
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")


def check_one_reading(file: Path) -> None:
    """Check that an archive is laid out as its writers do it: members, directory, end, and nothing else.

    Before the directory, or behind the end, there may be bytes by which a lenient reader (Python's) and a strict one
    (PyTorch's) come to two directories, one of which they have looked at. PyTorch also takes names without their case.

    Raises:
        ValueError, zipfile.BadZipFile: It is not, or holds two members of one name.
    """
    with zipfile.ZipFile(file) as archive:
        names = [name.casefold() for name in archive.namelist()]
    if len(set(names)) != len(names):
        raise ValueError("it holds two members of one name")
    length = _LOCATOR.size + _END_64.size + _END.size
    with file.open("rb") as content:
        size = content.seek(0, 2)
        content.seek(max(0, size - length))
        tail = content.read().rjust(length, b"\0")
    signature, *_, directory_size, directory, comment = _END.unpack(tail[-_END.size :])
    end = size - _END.size
    locator, _, place, _ = _LOCATOR.unpack(tail[_END_64.size : -_END.size])
    if locator == b"PK\x06\x07":
        signature_64, *_, directory_size, directory = _END_64.unpack(tail[: _END_64.size])
        end = size - length
        comment = comment or signature_64 != b"PK\x06\x06" or place != end
    if signature != b"PK\x05\x06" or comment or directory + directory_size != end:
        raise ValueError("its directory is not where it says")
