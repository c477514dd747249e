"""Makes an older version of a dataset the newest one again."""

import dataclasses
import logging
import shutil
from typing import Any

from dagster_mlops.dvc.history.versions import record_of_version, version_hash
from dagster_mlops.dvc.resource import DvcResource
from dagster_mlops.dvc.store import file_formats as frames
from dagster_mlops.dvc.store import pointers as versions
from dagster_mlops.dvc.store.dvc_lock import locked_out
from dagster_mlops.errors import DatasetError
from dagster_mlops.provenance import Dataset

_log = logging.getLogger(__name__)


def restore(dvc: DvcResource, path: str, version: str = "previous", *, force: bool = False, **facts: Any) -> Dataset:
    """Store the content of an older version as the newest: history goes on, nothing in it is undone.

        restore(DvcResource(repo="/data/flights"), "raw/flights.parquet", "v1.0")

    The data is copied beside the dataset first and put in place in one step, so a kill leaves the old or the new. The
    new record names the inputs and the code of the run that once made the content.

    The output of a stage is only put into the workspace, because ``dvc.lock`` says what its stage made: ``dvc repro``
    makes that again, ``dvc commit`` accepts what lies there. A warning says so.

    Args:
        dvc: the repository.
        path: where the dataset lives in it.
        version: a content hash, a git branch, tag or commit, or ``previous``.
        force: overwrite a data file that was changed since it was last stored.
        facts: further fields of the record, such as ``dagster_run_id``.

    Raises:
        DatasetError: there is no such version, it is nowhere to be found, or the data on disk was changed by hand.
    """
    md5 = version_hash(dvc, path, version)
    target = dvc.locate(path)
    made = record_of_version(dvc, path, version, md5)
    with dvc.open(locked=False) as repo:
        is_pointer = versions.pointer_of(target).exists()
        current = (
            dvc.data_version(path) if is_pointer or locked_out(dvc, target.relative_to(dvc.root).as_posix()) else None
        )
        found = versions.content_hash(repo, target) if target.exists() else None
        if found not in (None, current, md5) and not force:
            raise DatasetError(
                f"{target} was changed since it was last stored, and restoring would overwrite that. Store the change "
                f"first (`dvc add {path}` and commit), undo it (`dvc checkout {path}`), or restore with force."
            )
        copy = versions.scratch(repo) if found != md5 else None
    if copy:
        source = dvc.read_path(path, md5=md5)
        # Not a link: what lies in the workspace may be edited, the cache may not.
        shutil.copytree(source, copy, copy_function=shutil.copyfile) if source.is_dir() else shutil.copyfile(
            source, copy
        )
    if current and not is_pointer:
        if copy:
            with dvc.open() as repo:
                versions.move(repo, copy, target)
        if current != md5:
            _log.warning("%s lies in the workspace at %s, while dvc.lock says %s.", path, md5, current)
        return dataclasses.replace(made, rev="")
    rows = made.rows if made.rows is not None else frames.described(copy or target, path)[0]
    inherited = {"upstream": made.upstream, "code_commit": made.code_commit, "dirty": made.dirty}
    return dvc.store(path, source=copy, rows=rows, **{**inherited, **facts})
