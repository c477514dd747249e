"""The contents of versions: a hash, and the part of DVC's cache that keeps it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dagster_mlops.core.extras import extra
from dagster_mlops.core.inside import plain_name
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.dvc.lazy import HashFileDB, HashInfo, Repo
from dagster_mlops.errors import DatasetError

LEGACY = "md5-dos2unix"
"""DVC's name of the algorithm by which DVC 2 hashed, and of the store of such hashes."""
_HASH = re.compile(r"[0-9a-f]{32}(\.dir)?")


@lazy_dataclass(frozen=True)
class Content:
    """A content by its hash; that of a folder ends in ``.dir``.

    Raises:
        DatasetError: it is not a hash. Files of caches are found by it, and damaged ones are deleted.
    """

    md5: str
    algorithm: str = "md5"

    def __post_init__(self) -> None:
        if not _HASH.fullmatch(self.md5):
            raise DatasetError(f"{self.md5!r} is not a hash as DVC writes it: 32 of the digits 0-9 and a-f.")

    @property
    def is_folder(self) -> bool:
        return self.md5.endswith(".dir")

    @property
    def info(self) -> HashInfo:
        """The hash as DVC's own object."""
        return extra("dvc_data.hashfile.hash_info").HashInfo(self.algorithm, self.md5)


def content_of(out: Mapping[str, Any]) -> Content:
    """The content that an output names in a pointer or ``dvc.lock``.

    DVC 2 wrote no name of the algorithm: it hashed text with the line ends of Unix, and had a store of its own.
    https://dvc.org/doc/user-guide/upgrade
    """
    return Content(str(out["md5"]), "md5" if "hash" in out else LEGACY)


def cache_of(repo: Repo, algorithm: str) -> HashFileDB:
    """The part of DVC's cache that keeps the hashes of an algorithm."""
    return repo.cache.legacy if algorithm == LEGACY else repo.cache.local


def cached_path(repo: Repo, content: Content) -> str:
    """The file of a content in DVC's cache, whether it is there or not."""
    return cache_of(repo, content.algorithm).oid_to_path(content.md5)


def files_in(repo: Repo, content: Content) -> dict[str, Content]:
    """The files of a folder by their names, if its list is in the cache; call it for a list that has its hash.

    Raises:
        DatasetError: the list is not one that DVC writes, such as one with a name that leads out of the folder.
    """
    listing = Path(cached_path(repo, content))
    if not content.is_folder or not listing.exists():
        return {}
    try:
        rows = json.loads(listing.read_bytes())
        return {plain_name(row["relpath"], error=DatasetError): Content(row["md5"], content.algorithm) for row in rows}
    except (ValueError, LookupError, TypeError) as error:
        raise DatasetError(f"{listing} is not a list of files: {type(error).__name__}: {error}") from error


def candidates(md5: str) -> list[Content]:
    """The contents that a bare hash may mean, the one of DVC 3 first."""
    return [Content(md5), Content(md5, LEGACY)]


def remote_has(odb: HashFileDB, repo: Repo, md5: str, size: int | None) -> bool:
    """True if a remote has all of the content; a file that was cut off by a kill counts as missing."""
    content, cache = Content(md5, odb.hash_name), cache_of(repo, odb.hash_name)
    if content.is_folder and cache.exists(md5):
        status = extra("dvc_data.hashfile.status").status
        return not status(odb, [content.info], cache_odb=cache, shallow=False).missing
    try:
        remote_size = odb.fs.info(odb.oid_to_path(md5))["size"]
    except FileNotFoundError:
        return False
    return content.is_folder or size in (None, remote_size)
