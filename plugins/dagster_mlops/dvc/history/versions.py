"""The versions of a dataset, from the history of its pointer in git, and the return of an older one."""

import contextlib
import dataclasses
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dagster_mlops.core.git import git, plain_revision
from dagster_mlops.dvc.resource import DvcResource
from dagster_mlops.dvc.store import file_formats, lock_files, pointers
from dagster_mlops.dvc.store.contents import content_of
from dagster_mlops.dvc.store.git_commit import blobs
from dagster_mlops.errors import DatasetError
from dagster_mlops.provenance import NAMESPACE, Dataset, Record

_log = logging.getLogger(__name__)
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
    name = dvc.name_of(path)
    locked = None if (dvc.root / f"{name}.dvc").exists() else lock_files.locked_out(dvc.root, name)
    file = locked.file if locked else f"{name}.dvc"
    rev = rev if rev == "--all" else plain_revision(rev, error=DatasetError)
    log = git(dvc.root, "log", f"-{limit}", "--format=%H %cI", rev, "--", f"./{file}")
    lines = [line.split() for line in log.stdout.decode().splitlines()]
    if not lines:
        reason = log.stderr.decode().strip() or f"no commit up to {rev} holds {file}"
        raise DatasetError(f"{path} has no version in {dvc.root}: {reason}. Name a path that is stored there.")
    versions: list[Version] = []
    parse = locked.within if locked else pointers.parse_pointer
    for (commit, when), content in zip(lines, blobs(dvc.root, [f"{c}:./{file}" for c, _ in lines]), strict=True):
        if pointer := parse(content or b""):
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


def restore(dvc: DvcResource, path: str, version: str = "previous", *, force: bool = False, **facts: Any) -> Dataset:
    """Store the content of an older version as the newest: history goes on, nothing in it is undone.

        restore(DvcResource(repo="/data/flights"), "raw/flights.parquet", "v1.0")

    The data is copied beside the dataset first and put in place in one step, so a kill leaves the old or the new. The
    new record names the inputs and the code of the run that computed the content.

    The output of a stage is only put into the workspace, because ``dvc.lock`` holds the stage's own result: ``dvc
    repro`` rebuilds that, ``dvc commit`` accepts the restored one. A warning says so.

    Args:
        dvc: Repository.
        path: Path of the dataset in it.
        version: Content hash, git branch, tag or commit, or ``previous``.
        force: Whether to overwrite a data file that was changed since it was last stored.
        facts: Further fields of the record, such as ``dagster_run_id``.

    Raises:
        DatasetError: there is no such version, it is not available, or the data on disk was changed by hand.
    """
    md5 = version_hash(dvc, path, version)
    target = dvc.locate(path)
    original = record_of_version(dvc, path, version, md5)
    with dvc.open(locked=False) as repo:
        is_pointer = pointers.pointer_of(target).exists()
        is_known = is_pointer or lock_files.locked_out(dvc.root, dvc.name_of(path))
        out = dvc.pointer(path)["outs"][0] if is_known else {}
        current = out.get("md5")
        algorithm = content_of(out).algorithm if out else "md5"
        on_disk = pointers.content_hash(repo, target, algorithm) if target.exists() else None
        if on_disk not in (None, current, md5) and not force:
            raise DatasetError(
                f"{target} was changed since it was last stored, and restoring would overwrite that. Store the change "
                f"first (`dvc add {path}` and commit), undo it (`dvc checkout {path}`), or restore with force."
            )
        copy = pointers.scratch(repo) if on_disk != md5 else None
    if copy:
        source = dvc.read_path(path, md5=md5)
        # Not a link: files in the workspace may be edited, those in the cache must not.
        if source.is_dir():
            shutil.copytree(source, copy, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(source, copy)
    if current and not is_pointer:
        if copy:
            with dvc.open() as repo:
                pointers.move(repo, copy, target)
        if current != md5:
            _log.warning("%s lies in the workspace at %s, while dvc.lock says %s.", path, md5, current)
        return dataclasses.replace(original, rev="")
    rows = original.rows if original.rows is not None else file_formats.described(copy or target, path)[0]
    inherited = {"upstream": original.upstream, "code_commit": original.code_commit, "dirty": original.dirty}
    return dvc.store(path, source=copy, rows=rows, **{**inherited, **facts})
