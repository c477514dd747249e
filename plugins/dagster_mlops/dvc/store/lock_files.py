"""Outputs of stages, from the ``dvc.lock`` that names their hashes and the ``dvc.yaml`` that defines them."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from dagster_mlops.core.git import git, plain_revision
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.dvc.store.pointers import content_at, parsed
from dagster_mlops.errors import DatasetError
from dagster_mlops.provenance import Dataset

_MOST_COMMITS = 50  # in which a hash is sought


@lazy_dataclass(frozen=True)
class LockedOut:
    """An output of a stage in a ``dvc.lock``: `file` is that file, relative to the repository.

    `out` is the entry, with the ``remote`` and ``push`` of ``dvc.yaml``, as in a ``.dvc`` file.
    """

    file: str
    stage: str
    out: Mapping[str, Any]

    def within(self, text: bytes) -> dict[str, Any] | None:
        """The same output in another version of the file, in the form of a pointer."""
        same = (self.stage, self.out["path"])
        return next(({"outs": [out]} for stage, out in _outs(text) if (stage, out["path"]) == same), None)


def stages_in(text: bytes) -> dict[str, Any]:
    """The stages of a ``dvc.lock`` or ``dvc.yaml``, by name; none if it is empty or damaged."""
    return parsed(text).get("stages") or {}


def _outs(text: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """The outputs with a hash in a ``dvc.lock``, each with the name of its stage."""
    for stage, entry in stages_in(text).items():
        yield from ((stage, out) for out in entry.get("outs", ()) if "md5" in out)


def locked_out(root: Path, path: str, *, rev: str | None = None) -> LockedOut | None:
    """The output of a stage at `path`, from the current ``dvc.lock`` or the one at a git revision."""
    for file in _names(root, rev):
        folder, definitions = PurePosixPath(file).parent, {}
        for stage, out in _outs(content_at(root, file, rev) or b""):
            if PurePosixPath(out["path"]).name != PurePosixPath(path).name:
                continue
            # Relative to the stage's working directory, which only dvc.yaml has.
            definitions = definitions or stages_in(content_at(root, str(folder / "dvc.yaml"), rev) or b"")
            definition = definitions.get(stage.partition("@")[0]) or {}
            wdir = definition.get("wdir") or (definition.get("do") or {}).get("wdir") or "."
            place = os.path.normpath(folder / wdir / out["path"])
            if place == path or ("${" in wdir and _ends_with(path, out["path"])):
                return LockedOut(file, stage, {**out, **_options(definition.get("do") or definition, out["path"])})
    return None


def _options(definition: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The remote that an output names in ``dvc.yaml``, and whether it may be pushed. ``dvc.lock`` has hashes only."""
    outs = [out for kind in ("outs", "metrics", "plots") for out in definition.get(kind) or () if isinstance(out, dict)]
    for name, options in (pair for out in outs for pair in out.items()):
        # What a template stands for is known to DVC only.
        pattern = ".+".join(map(re.escape, re.split(r"\$\{.*?\}", os.path.normpath(name))))
        if isinstance(options, dict) and re.fullmatch(pattern, os.path.normpath(path)):
            return {option: options[option] for option in ("remote", "push") if option in options}
    return {}


def locked_output(root: Path, path: str, md5: str) -> Dataset | None:
    """The output of a stage with this content: the newest ``dvc.lock``, in the workspace or in git, that names it."""
    for rev, text in _locks(root, md5):
        for _, out in _outs(text):
            if out["md5"] == md5 and _ends_with(path, out["path"]):
                return Dataset(path=path, md5=md5, repo=str(root), rev=rev, bytes=out.get("size"))
    return None


def _ends_with(path: str, relative: str) -> bool:
    parts = [part for part in PurePosixPath(relative).parts if part != ".."]
    return list(PurePosixPath(path).parts[-len(parts) :]) == parts


def _names(root: Path, rev: str | None) -> list[str]:
    if rev is None:
        listing = git(root, "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", "*dvc.lock")
    else:
        listing = git(root, "ls-tree", "-r", "--name-only", "-z", plain_revision(rev, error=DatasetError))
    names = [name for name in listing.stdout.decode().split("\0") if PurePosixPath(name).name == "dvc.lock"]
    return names or ["dvc.lock"]


def _locks(root: Path, md5: str) -> Iterator[tuple[str, bytes]]:
    for name in _names(root, None):
        commit = git(root, "log", "-1", "--format=%H", "--", f"./{name}").stdout.decode().strip()
        yield commit, content_at(root, name, None) or b""
    log = git(root, "log", "--all", f"-{_MOST_COMMITS}", "--format=%H", f"-S{md5}", "--", "*dvc.lock")
    for commit in log.stdout.decode().split():
        for name in _names(root, commit):
            yield commit, content_at(root, name, commit) or b""
