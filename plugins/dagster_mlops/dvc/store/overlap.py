"""Outputs must not overlap: what DVC's own check of a new pointer finds, without DVC's parsing of every other one."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from dagster_mlops.core.files import write_atomically
from dagster_mlops.core.git import git
from dagster_mlops.dvc.lazy import Repo
from dagster_mlops.dvc.store.cut_off import parse_yaml
from dagster_mlops.dvc.store.git_commit import ignored
from dagster_mlops.errors import DatasetError
from dagster_mlops.provenance import NAMESPACE


def refuse_overlap(repo: Repo, target: Path) -> None:
    """Refuse a new dataset that is an output already, is in one, or has one in it.

    Raises:
        DatasetError: it overlaps.
    """
    new = str(target)
    for output, file in _outputs(repo, os.path.relpath(target, repo.root_dir)):
        if f"{new}/".startswith(f"{output}/") or output.startswith(f"{new}/"):
            raise DatasetError(
                f"DVC cannot store {target}: it overlaps with {output}, an output of {file}. Choose another path, or "
                f"`dvc remove {os.path.relpath(file, repo.root_dir)}` first."
            )


def _outputs(repo: Repo, path: str) -> Iterator[tuple[str, str]]:
    """The outputs of the repository that may overlap with a path, each with the file that defines it."""
    names = set(_definitions(Path(repo.root_dir)))
    plain_file = Path(repo.tmp_dir or "", NAMESPACE, "plain_pointers.json")
    plain = _read(plain_file)
    current = names & plain
    around = {f"{place}.dvc" for place in (path, *map(str, Path(path).parents))}
    for name in sorted(name for name in current if name in around or name.startswith(f"{path}/")):
        file = os.path.join(repo.root_dir, name)
        yield file.removesuffix(".dvc"), file
    for name in sorted(names - plain):
        file = os.path.join(repo.root_dir, name)
        if name.endswith("dvc.yaml"):
            outs = (out for stage in repo.stage.load_all(file) for out in stage.outs if out.protocol == "local")
            yield from ((out.fs_path, file) for out in outs)
        else:
            with suppress(FileNotFoundError), open(file, "rb") as stream:  # git may still have one that is gone
                paths = _paths(file, stream.read())
                if paths == [file.removesuffix(".dvc")]:
                    current.add(name)
                yield from ((path, file) for path in paths)
    if current != plain:
        write_atomically(plain_file, json.dumps(sorted(current)))


def _read(plain_file: Path) -> set[str]:
    """The pointers that name what lies beside them, as all do that DVC 3 writes: they are read once."""
    with suppress(OSError, ValueError):
        return set(json.loads(plain_file.read_bytes()))
    return set()


def _paths(pointer: str, content: bytes) -> list[str]:
    try:
        fields = parse_yaml(content)
        folder = os.path.join(os.path.dirname(pointer), fields.get("wdir", "."))
        paths = [out["path"] for out in fields.get("outs") or () if "://" not in out["path"]]
        return [os.path.normpath(os.path.join(folder, path)) for path in paths]
    except Exception:  # noqa: BLE001 (damaged in whatever way: DVC names it when it is read)
        return []


def _definitions(root: Path) -> list[str]:
    """The ``.dvc`` files and ``dvc.yaml`` of a repository, without those of repositories below it."""
    listing = git(root, "ls-files", "-z")
    if listing.returncode == 0:
        tracked = {name for name in os.fsdecode(listing.stdout).split("\0") if name}
        names = [*filter(_defines, tracked), *_untracked(root, tracked)]
    else:
        names = []
        for folder, folders, files in os.walk(root):
            folders[:] = [name for name in folders if name == ".dvc" or not name.startswith(".")]
            paths = [Path(folder, name).relative_to(root).as_posix() for name in files]
            names += filter(_defines, paths)
    inner = tuple(name.removesuffix(".dvc/config") for name in names if name.endswith("/.dvc/config"))
    return [name for name in names if not name.endswith(".dvc/config") and not (inner and name.startswith(inner))]


def _defines(path: str) -> bool:
    return path.endswith((".dvc", "/dvc.yaml", "/.dvc/config")) or path == "dvc.yaml"


def _untracked(root: Path, tracked: set[str]) -> Iterator[str]:
    """The definitions that git neither tracks nor ignores.

    `git ls-files --others` compares each ignored file with each line of `.gitignore`, where DVC writes one for each.
    """
    folders = {name.rpartition("/")[0] for name in tracked}
    folders |= {str(above) for folder in folders for above in PurePosixPath(folder).parents}
    level = [""]
    while level:
        new: list[str] = []
        for folder in level:  # which grows
            with suppress(PermissionError), os.scandir(root / folder) as entries:
                for entry in entries:
                    path = f"{folder}{entry.name}"
                    if not entry.is_dir(follow_symlinks=False):
                        if path not in tracked and _defines(path):
                            new.append(path)
                    elif path in folders:
                        level.append(f"{path}/")
                    elif entry.name != ".git" and not os.path.exists(f"{entry.path}/.git"):
                        new.append(f"{path}/")
        left_out = ignored(root, new) if new else ()
        level = [path for path in new if path not in left_out]
        yield from (path for path in level if not path.endswith("/"))
        level = [path for path in level if path.endswith("/")]
