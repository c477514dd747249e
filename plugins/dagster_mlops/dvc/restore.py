"""Makes an older version of a dataset the newest one again."""

import shutil
from typing import Any

from dagster_mlops.dvc import frames, versions
from dagster_mlops.dvc.history import record_of_version, version_hash
from dagster_mlops.dvc.resource import DvcResource
from dagster_mlops.errors import DatasetError
from dagster_mlops.provenance import Dataset


def restore(dvc: DvcResource, path: str, version: str = "previous", *, force: bool = False, **facts: Any) -> Dataset:
    """Store the content of an older version as the newest: history goes on, nothing in it is undone.

        restore(DvcResource(repo="/data/flights"), "raw/flights.parquet", "v1.0")

    The data is copied beside the dataset first and put in place in one step, so a kill leaves the old or the new. The
    new record names the inputs and the code of the run that once made the content.

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
        current = dvc.data_version(path) if versions.pointer_of(target).exists() else None
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
    rows = made.rows if made.rows is not None else frames.described(copy or target, path)[0]
    inherited = {"upstream": made.upstream, "code_commit": made.code_commit, "dirty": made.dirty}
    return dvc.store(path, source=copy, rows=rows, **{**inherited, **facts})
