"""Downloads the content of an import, in a separate process that can be ended if a source does not answer."""

import shutil
from pathlib import Path
from typing import Any

from dagster_mlops.core.advice import causes


def from_repository(request: dict[str, Any]) -> dict[str, Any]:
    """Put a dataset or file of another repository at `target`."""
    from dvc.fs import DVCFileSystem

    source = DVCFileSystem(repo=request["url"], rev=request["commit"], subrepos=True)
    source.get(request["path"], request["target"], recursive=source.isdir(request["path"]))
    return {}


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
