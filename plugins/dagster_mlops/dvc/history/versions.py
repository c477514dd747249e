"""The versions of a dataset, from the history of its pointer in git."""

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dagster_mlops.core.git import git
from dagster_mlops.dvc.resource import DvcResource
from dagster_mlops.dvc.store import pointers
from dagster_mlops.dvc.store.dvc_lock import locked_out
from dagster_mlops.dvc.store.git_commit import blobs
from dagster_mlops.errors import DatasetError
from dagster_mlops.provenance import NAMESPACE, Dataset, Record

_LOOK_BACK = 1_000  # commits of the pointer among which the record of a hash is sought
_MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")


@dataclass(frozen=True)
class Version:
    """A version of a dataset: its record, and the time of its commit (with time zone)."""

    dataset: Dataset
    committed: datetime


def history(dvc: DvcResource, path: str, *, rev: str = "HEAD", limit: int = 100) -> list[Version]:
    """The versions of a dataset up to a git revision, newest first. Needs no cache and no remote.

        for version in history(dvc, "raw/flights.parquet"):
            print(version.committed, version.dataset.md5, version.dataset.rows)

    For a stage's output, they come from the history of the ``dvc.lock`` that names it.

    Raises:
        DatasetError: no commit up to `rev` holds a pointer of it.
    """
    file = pointers.pointer_of(dvc.locate(path)).relative_to(dvc.root).as_posix()
    locked = None if pointers.pointer_of(dvc.locate(path)).exists() else locked_out(dvc.root, file.removesuffix(".dvc"))
    file = locked.file if locked else file
    log = git(dvc.root, "log", f"-{limit}", "--format=%H %cI", rev, "--", f"./{file}")
    lines = [line.split() for line in log.stdout.decode().splitlines()]
    if not lines:
        reason = log.stderr.decode().strip() or f"no commit up to {rev} holds {file}"
        raise DatasetError(f"{path} has no version in {dvc.root}: {reason}. Name a path that is stored there.")
    versions: list[Version] = []
    for (commit, when), content in zip(lines, blobs(dvc.root, [f"{c}:./{file}" for c, _ in lines]), strict=True):
        if locked:
            out = locked.within(content or b"")
            pointer = {"outs": [out]} if out else None
        else:
            pointer = pointers.parse_pointer(content or b"")
        if pointer:
            versions.append(Version(record_of(dvc, path, pointer, commit), datetime.fromisoformat(when)))
    # A commit may have touched no more than the pointer's description.
    hashes = [version.dataset.md5 for version in versions]
    return [version for version, older in zip(versions, [*hashes[1:], ""], strict=True) if version.dataset.md5 != older]


def version_hash(dvc: DvcResource, path: str, version: str) -> str:
    """The content hash of a version named by a hash, ``previous``, or a git branch, tag or commit.

    Raises:
        DatasetError: there is no such version.
    """
    if _MD5.fullmatch(version):
        return version
    if version != "previous":
        return dvc.data_version(path, rev=version)
    current = dvc.data_version(path)
    for older in history(dvc, path):
        if older.dataset.md5 != current:
            return older.dataset.md5
    raise DatasetError(f"{path} has no version before {current} in the last commits of {dvc.root}. Name its hash.")


def record_of(dvc: DvcResource, path: str, pointer: Mapping[str, Any], commit: str) -> Dataset:
    """The record in a pointer; one with the pointer's own facts if it was written without Dagster."""
    [out] = pointer["outs"]
    noted = (pointer.get("meta") or {}).get(NAMESPACE)
    facts: dict[str, Any] = {"path": path, "md5": out["md5"], "repo": str(dvc.root), "rev": commit}
    if noted and noted.get("md5") == out["md5"]:
        # The file may have been moved since, so path and repository are those of the caller.
        record = Record.from_dict({**noted, **facts, "of": {"tool": "dvc", "role": Dataset.role}})
        assert isinstance(record, Dataset)
        return record
    return Dataset(**facts, bytes=out.get("size"))


def record_of_version(dvc: DvcResource, path: str, version: str, md5: str) -> Dataset:
    """The record from when a version was first stored, if git has it; `version` is as for :func:`version_hash`."""
    if version not in (md5, "previous"):
        return record_of(dvc, path, dvc.pointer(path, rev=version), dvc.revision(path, rev=version))
    with contextlib.suppress(DatasetError):  # none of it is committed
        for entry in history(dvc, path, rev="--all", limit=_LOOK_BACK):
            if entry.dataset.md5 == md5:
                return entry.dataset
    return Dataset(path=path, md5=md5, repo=str(dvc.root))
