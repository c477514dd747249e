"""What the ``dvc.lock`` files of a repository, now or in git's history, say about the outputs of stages."""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

from dagster_mlops.code_state import git
from dagster_mlops.provenance import Dataset

if TYPE_CHECKING:
    from dagster_mlops.dvc.resource import DvcResource

_MOST_COMMITS = 50


def stages_in(text: bytes) -> dict[str, Any]:
    """The stages of a ``dvc.lock``, by name; none where it is empty or damaged."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return (content.get("stages") or {}) if isinstance(content, dict) else {}


def locked_output(dvc: "DvcResource", path: str, md5: str) -> Dataset | None:
    """The output of a stage with this content: the newest ``dvc.lock``, in the workspace or in git, that names it."""
    for rev, text in _locks(dvc, md5):
        for entry in stages_in(text).values():
            for out in entry.get("outs", ()):
                # Paths in a dvc.lock are relative to the stage's working directory, which it does not tell.
                named = [part for part in PurePosixPath(out["path"]).parts if part != ".."]
                if out.get("md5") == md5 and list(PurePosixPath(path).parts[-len(named) :]) == named:
                    return Dataset(path=path, md5=md5, repo=str(dvc.root), rev=rev, bytes=out.get("size"))
    return None


def _locks(dvc: "DvcResource", md5: str) -> Iterator[tuple[str, bytes]]:
    listed = git(dvc.root, "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", "*dvc.lock")
    names = [name for name in listed.stdout.decode().split("\0") if name] or ["dvc.lock"]
    for name in names:
        commit = git(dvc.root, "log", "-1", "--format=%H", "--", f"./{name}").stdout.decode().strip()
        if (dvc.root / name).is_file():
            yield commit, (dvc.root / name).read_bytes()
    found = git(dvc.root, "log", "--all", f"-{_MOST_COMMITS}", "--format=%H", f"-S{md5}", "--", "*dvc.lock")
    for commit in found.stdout.decode().split():
        for name in git(dvc.root, "ls-tree", "-r", "--name-only", commit).stdout.decode().splitlines():
            if name.endswith("dvc.lock"):
                yield commit, git(dvc.root, "show", f"{commit}:./{name}").stdout
