"""Pointers to versions: ``.dvc`` files, which are written in steps that may be killed, and ``dvc.lock`` files."""

import os
import shutil
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from dagster_mlops.core.advice import advice
from dagster_mlops.core.extras import extra
from dagster_mlops.core.files import write_atomically
from dagster_mlops.core.git import git, plain_revision
from dagster_mlops.core.private_files import private_folder
from dagster_mlops.dvc.lazy import Repo
from dagster_mlops.dvc.store import remotes
from dagster_mlops.dvc.store.contents import LEGACY, Content, cache_of, cached_path, content_of
from dagster_mlops.dvc.store.cut_off import parse_yaml, set_aside
from dagster_mlops.dvc.store.git_commit import Edit
from dagster_mlops.dvc.store.overlap import refuse_overlap
from dagster_mlops.errors import DatasetError
from dagster_mlops.provenance import NAMESPACE, Dataset

_DAY = 86_400


def pointer_of(target: Path) -> Path:
    """The ``.dvc`` file of a dataset."""
    return target.with_name(target.name + ".dvc")


def parse_pointer(text: bytes) -> dict[str, Any] | None:
    """The content of a ``.dvc`` file; None if it is damaged, e.g. cut off by a kill."""
    content = parsed(text)
    outs = content.get("outs")
    return content if outs and isinstance(outs, list) and outs[0].get("md5") and outs[0].get("path") else None


def read_pointer(target: Path) -> dict[str, Any] | None:
    """The content of a dataset's current ``.dvc`` file; None if there is none, or a damaged one."""
    pointer = pointer_of(target)
    return parse_pointer(pointer.read_bytes()) if pointer.exists() else None


def scratch(repo: Repo) -> Path:
    """A new path on the repository's disk, ignored by git and DVC. Remains of a kill are deleted after a day."""
    folder = private_folder(Path(repo.tmp_dir or "", NAMESPACE, "scratch"))
    for remains in folder.iterdir():
        if time.time() - remains.lstat().st_mtime > _DAY:
            shutil.rmtree(remains) if remains.is_dir() else remains.unlink(missing_ok=True)
    return folder / uuid.uuid4().hex


def move(repo: Repo, source: Path, target: Path) -> None:
    """Put new content in place: a file in one step, a folder by moving the old one away first."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir() and not target.is_symlink():
        os.replace(target, scratch(repo))
    os.replace(source, target)


def content_hash(repo: Repo, path: Path, algorithm: str = "md5") -> str:
    """DVC's hash of a file or folder: a plain MD5 for a file, ``….dir`` for a folder. Unchanged files are not read."""
    build, files = extra("dvc_data.hashfile.build").build, extra("dvc.fs").localfs
    odb, ignore = cache_of(repo, algorithm), repo.dvcignore
    return build(odb, str(path), files, algorithm, dry_run=True, ignore=ignore)[2].hash_info.value


def claim(repo: Repo, target: Path, *, imported: bool = False) -> dict[str, Any] | None:
    """The pointer of a dataset that is to be stored, or None if it is new. One that a kill cut off is taken from git.

    Only with `imported` may `target` be an import.

    Raises:
        DatasetError: it is an import or overlaps another output, or a person or a merge broke its pointer.
    """
    pointer = pointer_of(target)
    before = read_pointer(target)
    if before is None and pointer.exists():
        set_aside(pointer, repo.tmp_dir)
        # It may say where the data may go.
        if parse_pointer(committed := content_at(pointer.parent, pointer.name, "HEAD") or b""):
            pointer.write_bytes(committed)
            before = read_pointer(target)
    if before and "deps" in before and not imported:
        raise DatasetError(f"{pointer} is an import. Update it with `dvc update`, or store under another path.")
    if before is None:
        with _refusals(target):
            refuse_overlap(repo, target)
    return before


@contextmanager
def _refusals(target: Path) -> Iterator[None]:
    try:
        yield
    except (extra("dvc.exceptions").DvcException, OSError) as error:
        raise DatasetError(f"DVC cannot store {target}: {error} {advice(error, remotes.REMEDIES)}".rstrip()) from error


def cache(repo: Repo, target: Path, before: Mapping[str, Any] | None) -> tuple[Content, int]:
    """Copy the content into DVC's cache, and have git ignore it; returns it and its size.

    `before` is the pointer that :func:`claim` returned.

    Raises:
        DatasetError: DVC refuses: the path is missing, or tracked by git.
    """
    if not isinstance(repo.scm, extra("dvc.scm").NoSCM):
        # In Python, DVC would parse git's index and each line of .gitignore, which has one for each dataset.
        vars(repo.scm).update(is_ignored=partial(_is_ignored, repo), is_tracked=partial(_is_tracked, repo))
    with _refusals(target):
        stage = repo.stage.create(
            single_stage=True,
            validate=False,
            fname=str(pointer_of(target)),
            wdir=str(target.parent),
            outs=[target.name],
        )
        [out] = stage.outs
        if before and (old := content_of(before["outs"][0])).algorithm == LEGACY:
            # Content that did not change stays a version of DVC 2, as with `dvc add`.
            out.hash_name, out.hash_info = LEGACY, old.info
        # Copies (the default) are left as they are; DVC would test link types in the user's folder.
        relink = bool({"hardlink", "symlink"} & set(repo.cache.local.cache_types))
        with remotes.raised():
            out.add(relink=relink)
        entry = out.dumpd()
        content, size = content_of(entry), int(entry["size"])
        cached = Path(cached_path(repo, content))
        if not content.is_folder and cached.stat().st_size != size:
            cached.unlink()  # cut off by a kill, before DVC had marked it complete
            with remotes.raised():
                out.add(relink=relink)
    return content, size


def _is_ignored(repo: Repo, path: str) -> bool:
    return git(Path(repo.root_dir), "check-ignore", "--quiet", "--no-index", "--", path).returncode == 0


def _is_tracked(repo: Repo, path: str) -> bool:
    return bool(git(Path(repo.root_dir), "--literal-pathspecs", "ls-files", "--", path).stdout)


def write_pointer(
    repo: Repo, target: Path, content: Content, record: Dataset, *, imported_from: Mapping[str, Any] | None = None
) -> None:
    """Write the content's hash and its record into the pointer, unless that names the content already.

    `imported_from` is the dependency of an import, as DVC writes it.
    """
    serialize = extra("dvc.utils.serialize")
    pointer = pointer_of(target)
    # Keeps the user's own parts of the file: a description, labels, comments.
    fields = serialize.parse_yaml_for_update(pointer.read_text() if pointer.exists() else "", str(pointer))
    before = (fields.get("outs") or [{}])[0]
    same_source = not imported_from or [_followed(dep) for dep in fields.get("deps", ())] == [_followed(imported_from)]
    if "md5" in before and content_of(before) == content and same_source:
        return
    other_fields = {key: value for key, value in before.items() if key not in ("md5", "size", "nfiles", "hash", "path")}
    algorithm = {} if content.algorithm == LEGACY else {"hash": "md5"}
    facts: dict[str, Any] = {"md5": record.md5, "size": record.bytes, **algorithm, "path": target.name}
    if target.is_dir():
        facts["nfiles"] = sum(file.is_file() for file in target.rglob("*"))
    fields["outs"] = [{**facts, **other_fields}]
    if imported_from:
        # By this hash, which leaves out the same fields as DVC's own, DVC sees whether someone edited the file.
        identity = {"outs": [{**facts, **other_fields}], "deps": [dict(imported_from)]}
        annotations = extra("dvc.annotations").ANNOTATION_FIELDS
        md5 = extra("dvc.utils").dict_md5(identity, exclude=[*annotations, "size", "nfiles", "isexec"])
        fields.update(md5=md5, frozen=True, deps=[dict(imported_from)])
    fields.setdefault("meta", {})[NAMESPACE] = record.to_dict()
    write_atomically(pointer, serialize.dumps_yaml(fields), durable=True, draft=scratch(repo))


def _followed(dependency: Mapping[str, Any]) -> dict[str, Any]:
    """The source of an import without its commit, since another commit may have the same content."""
    repo = {key: value for key, value in dependency.get("repo", {}).items() if key != "rev_lock"}
    return {**dependency, "repo": repo}


def ignored(*targets: Path) -> dict[Path, Edit]:
    """The edits that commit the lines for these targets which DVC wrote into the ``.gitignore`` beside each."""
    names_by_file: dict[Path, set[bytes]] = defaultdict(set)
    for target in targets:
        names_by_file[target.with_name(".gitignore")].add(f"/{target.name}".encode())
    edits: dict[Path, Edit] = {}
    for file, names in names_by_file.items():
        rules = file.read_bytes().splitlines() if file.exists() else []
        if ours := [rule for rule in rules if rule.replace(b"\\", b"") in names]:
            edits[file] = partial(_with_rules, rules=ours)
    return edits


def _with_rules(old: bytes, *, rules: Sequence[bytes]) -> bytes:
    # Only our lines: the user may have edited the rest of the file without committing it.
    missing = [rule for rule in rules if rule not in old.splitlines()]
    return b"".join([old, b"" if not old or old.endswith(b"\n") else b"\n", *(rule + b"\n" for rule in missing)])


def parsed(text: bytes) -> dict[str, Any]:
    """The fields of a pointer, ``dvc.yaml`` or ``dvc.lock``; none if it is empty or damaged."""
    try:
        content = parse_yaml(text)
    except yaml.YAMLError:
        return {}
    return content if isinstance(content, dict) else {}


def content_at(root: Path, file: str, rev: str | None) -> bytes | None:
    """The content of a file at a git revision or, with None, on disk; None if it is not there."""
    if rev is not None:
        output = git(root, "show", f"{plain_revision(rev, error=DatasetError)}:./{file}")
        return output.stdout if output.returncode == 0 else None
    return (root / file).read_bytes() if (root / file).is_file() else None
