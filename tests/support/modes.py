"""Who may read a file."""

import stat
from pathlib import Path


def readable_by_others(*places: Path) -> list[str]:
    """The files at and below `places` whose group or others may read or write them, unless a folder keeps them out."""
    open_files: list[str] = []
    for place in places:
        mode = stat.S_IMODE(place.stat().st_mode)
        if place.is_dir():
            open_files += readable_by_others(*place.iterdir()) if mode & 0o077 else []
        elif mode & 0o077 and place.name not in ("lock", "lock.holder", ".gitignore"):  # nothing about anyone
            open_files.append(str(place))
    return open_files
