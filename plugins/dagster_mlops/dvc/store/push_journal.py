"""Notes of the versions that are committed but not pushed yet, so that the next call pushes them after a kill."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from dagster_mlops.core.files import if_free
from dagster_mlops.dvc.store import objects
from dagster_mlops.errors import DatasetError
from dagster_mlops.provenance import NAMESPACE

if TYPE_CHECKING:
    from dvc.repo import Repo

_log = logging.getLogger(__name__)


@contextmanager
def noted(repo: "Repo", md5: str, size: int, remote: str | None) -> Iterator[None]:
    """Keep a note that a version is to be pushed, until the body has ended without an error."""
    folder = _folder(repo)
    folder.mkdir(parents=True, exist_ok=True)
    with _held(folder / quote(f"{md5} {size} {remote or ''}", safe="")):
        yield


def push_noted(repo: "Repo") -> None:
    """Push the versions that earlier calls left; one that fails once more stays noted, with a warning in the log.

    A version that another process is pushing is left to it; one that is no longer complete in the cache is dropped.
    """
    folder = _folder(repo)
    for note in sorted(folder.iterdir()) if folder.is_dir() else ():
        md5, size, remote = unquote(note.name).split(" ", 2)
        try:
            with _held(note) as ours:
                if ours and objects.cached(repo, md5):
                    objects.push(repo, md5, int(size), remote or None)
        except DatasetError as error:
            _log.warning("An older version is still not pushed: %s", error)


@contextmanager
def _held(note: Path) -> Iterator[bool]:
    """Hold a note, and remove it at the end unless there was an error; False if another process holds it."""
    with if_free(note) as ours:
        yield ours
        if ours:
            note.unlink(missing_ok=True)


def _folder(repo: "Repo") -> Path:
    return Path(repo.tmp_dir or "", NAMESPACE, "unpushed")
