"""Downloads the content of an import, in a separate process that can be ended if a source does not answer."""

import shutil
from pathlib import Path
from typing import Any

from dagster_mlops.core.advice import causes
from dagster_mlops.core.extras import extra
from dagster_mlops.core.inside import files_below
from dagster_mlops.dvc.store.listing_guard import guard_listings
from dagster_mlops.errors import DatasetError


def from_repository(request: dict[str, Any]) -> dict[str, Any]:
    """Put a dataset or file of another repository at `target`: as its pointers say, whatever its remote sends.

    Raises:
        DatasetError: the remote sends other bytes, or names that lead out of the dataset.
    """
    from dvc.fs import DVCFileSystem

    guard_listings()
    source = DVCFileSystem(repo=request["url"], rev=request["commit"], subrepos=True)
    path, target = request["path"], request["target"]
    is_folder = source.isdir(path)
    entries = files_below(source, path, error=DatasetError) if is_folder else {"": source.info(path)}
    source.get(path, target, recursive=is_folder)
    for name, entry in entries.items():
        _refuse_other_bytes(Path(target, name), name or path, entry)
    return {}


def _refuse_other_bytes(file: Path, name: str, entry: dict[str, Any]) -> None:
    """Raise a DatasetError if a file is not what its pointer says; what git tracks has git's own hashes."""
    from dvc_data.hashfile.hash import file_md5

    tracked = (entry.get("dvc_info") or {}).get("entry") if not entry.get("fs_info") else None
    if tracked is None or tracked.hash_info is None:
        return
    if file_md5(str(file), extra("dvc.fs").localfs, name=tracked.hash_info.name) != tracked.hash_info.value:
        raise DatasetError(f"The remote holds other bytes than {tracked.hash_info.value} under that hash, of {name}.")


def from_url(request: dict[str, Any]) -> dict[str, Any]:
    """Put the content of a URL at `target`, unless it still has the `known` version.

    Returns:
        ``dependency``, the source as DVC's import describes it, and whether it has ``changed``.
    """
    from dvc.fs import download
    from dvc.repo import Repo

    dataset, target = Path(request["dataset"]), Path(request["target"])
    with Repo(request["repo"], config=request["config"]) as repo:

        def current() -> tuple[Any, dict[str, Any]]:
            stage = repo.stage.create(
                single_stage=True,
                validate=False,
                fname=f"{dataset}.dvc",
                wdir=str(dataset.parent),
                deps=[request["url"]],
                outs=[dataset.name],
                fs_config=request["options"] or None,
            )
            [dependency] = stage.deps
            dependency.save()
            # Options stay in memory: they may hold secrets.
            return dependency, {k: v for k, v in dependency.dumpd().items() if k != "fs_config"}

        for _ in range(3):
            source, version = current()
            if version == request["known"]:
                return {"dependency": version, "changed": False}
            download(source.fs, source.fs_path, str(target))
            if version == current()[1]:  # else it changed meanwhile, and this may be a mix of two versions
                return {"dependency": version, "changed": True}
            target.unlink() if target.is_file() else shutil.rmtree(target)
    return {"error": "it changed during each download"}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The result, or ``error``."""
    try:
        return (from_url if "dataset" in request else from_repository)(request)
    except Exception as error:  # noqa: BLE001 (git, DVC, or any of a dozen storage libraries)
        return {"error": ": ".join(dict.fromkeys(str(cause) or repr(cause) for cause in causes(error)))}
