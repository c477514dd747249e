"""Outputs of stages in the ``dvc.lock`` files of a repository, on disk and in git's history."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from dagster_mlops.core.git import git
from dagster_mlops.provenance import Dataset

_MOST_COMMITS = 50


@dataclass(frozen=True)
class LockedOut:
    """An output of a stage in a ``dvc.lock``: `file` is that file, relative to the repository, `out` the entry."""

    file: str
    stage: str
    out: Mapping[str, Any]

    def within(self, text: bytes) -> Mapping[str, Any] | None:
        """The same output in another version of the file."""
        outs = stages_in(text).get(self.stage, {}).get("outs", ())
        return next((out for out in outs if out["path"] == self.out["path"] and "md5" in out), None)


def stages_in(text: bytes) -> dict[str, Any]:
    """The stages of a ``dvc.lock`` or ``dvc.yaml``, by name; none if it is empty or damaged."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return (content.get("stages") or {}) if isinstance(content, dict) else {}


def locked_out(root: Path, path: str, *, rev: str | None = None) -> LockedOut | None:
    """The output of a stage at `path`, from the current ``dvc.lock`` or the one at a git revision."""
    for file in _names(root, rev):
        folder, definitions = PurePosixPath(file).parent, {}
        for stage, entry in stages_in(_text(root, file, rev)).items():
            for out in entry.get("outs", ()):
                if PurePosixPath(out["path"]).name != PurePosixPath(path).name or "md5" not in out:
                    continue
                # Relative to the stage's working directory, which only dvc.yaml has.
                definitions = definitions or stages_in(_text(root, str(folder / "dvc.yaml"), rev))
                definition = definitions.get(stage.partition("@")[0]) or {}
                wdir = definition.get("wdir") or (definition.get("do") or {}).get("wdir") or "."
                place = os.path.normpath(folder / wdir / out["path"])
                if place == path or ("${" in wdir and _ends_with(path, out["path"])):
                    return LockedOut(file, stage, out)
    return None


def locked_output(root: Path, path: str, md5: str) -> Dataset | None:
    """The output of a stage with this content: the newest ``dvc.lock``, in the workspace or in git, that names it."""
    for rev, text in _locks(root, md5):
        for entry in stages_in(text).values():
            for out in entry.get("outs", ()):
                if out.get("md5") == md5 and _ends_with(path, out["path"]):
                    return Dataset(path=path, md5=md5, repo=str(root), rev=rev, bytes=out.get("size"))
    return None


def _ends_with(path: str, relative: str) -> bool:
    parts = [part for part in PurePosixPath(relative).parts if part != ".."]
    return list(PurePosixPath(path).parts[-len(parts) :]) == parts


def _names(root: Path, rev: str | None) -> list[str]:
    if rev is None:
        listing = git(root, "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", "*dvc.lock")
    else:
        listing = git(root, "ls-tree", "-r", "--name-only", "-z", rev)
    names = [name for name in listing.stdout.decode().split("\0") if PurePosixPath(name).name == "dvc.lock"]
    return names or ["dvc.lock"]


def _text(root: Path, file: str, rev: str | None) -> bytes:
    if rev is not None:
        return git(root, "show", f"{rev}:./{file}").stdout
    return (root / file).read_bytes() if (root / file).is_file() else b""


def _locks(root: Path, md5: str) -> Iterator[tuple[str, bytes]]:
    for name in _names(root, None):
        commit = git(root, "log", "-1", "--format=%H", "--", f"./{name}").stdout.decode().strip()
        if text := _text(root, name, None):
            yield commit, text
    log = git(root, "log", "--all", f"-{_MOST_COMMITS}", "--format=%H", f"-S{md5}", "--", "*dvc.lock")
    for commit in log.stdout.decode().split():
        for name in _names(root, commit):
            yield commit, _text(root, name, commit)
