"""Brings an older version of a dataset back as the newest one."""

import dataclasses
import logging
import shutil
from typing import Any

from dagster_mlops.dvc.history.versions import record_of_version, version_hash
from dagster_mlops.dvc.resource import DvcResource
from dagster_mlops.dvc.store import file_formats, pointers
from dagster_mlops.dvc.store.dvc_lock import locked_out
from dagster_mlops.errors import DatasetError
from dagster_mlops.provenance import Dataset

_log = logging.getLogger(__name__)


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
        current = (
            dvc.data_version(path)
            if is_pointer or locked_out(dvc.root, target.relative_to(dvc.root).as_posix())
            else None
        )
        on_disk = pointers.content_hash(repo, target) if target.exists() else None
        if on_disk not in (None, current, md5) and not force:
            raise DatasetError(
                f"{target} was changed since it was last stored, and restoring would overwrite that. Store the change "
                f"first (`dvc add {path}` and commit), undo it (`dvc checkout {path}`), or restore with force."
            )
        copy = pointers.scratch(repo) if on_disk != md5 else None
    if copy:
        source = dvc.read_path(path, md5=md5)
        # Not a link: files in the workspace may be edited, those in the cache must not.
        shutil.copytree(source, copy, copy_function=shutil.copyfile) if source.is_dir() else shutil.copyfile(
            source, copy
        )
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
