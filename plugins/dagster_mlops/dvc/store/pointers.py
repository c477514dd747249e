"""Pointers to versions: ``.dvc`` files, which are written in steps that may be killed, and ``dvc.lock`` files."""

import os
import re
import shutil
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from dagster_mlops.core.advice import advice
from dagster_mlops.core.extras import extra
from dagster_mlops.core.git import git
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.dvc.lazy import Repo
from dagster_mlops.dvc.store import remotes
from dagster_mlops.dvc.store.contents import LEGACY, Content, cache_of, cached_path, content_of
from dagster_mlops.dvc.store.cut_off import parse_yaml, set_aside
from dagster_mlops.dvc.store.git_commit import Edit
from dagster_mlops.dvc.store.overlap import refuse_overlap
from dagster_mlops.errors import DatasetError
from dagster_mlops.provenance import NAMESPACE, Dataset

_DAY = 86_400
_MOST_COMMITS = 50  # in which a hash is sought


def pointer_of(target: Path) -> Path:
    """The ``.dvc`` file of a dataset."""
    return target.with_name(target.name + ".dvc")


def parse_pointer(text: bytes) -> dict[str, Any] | None:
    """The content of a ``.dvc`` file; None if it is damaged, e.g. cut off by a kill."""
    content = _parsed(text)
    outs = content.get("outs")
    return content if outs and isinstance(outs, list) and outs[0].get("md5") and outs[0].get("path") else None


def read_pointer(target: Path) -> dict[str, Any] | None:
    """The content of a dataset's current ``.dvc`` file; None if there is none, or a damaged one."""
    pointer = pointer_of(target)
    return parse_pointer(pointer.read_bytes()) if pointer.exists() else None


def scratch(repo: Repo) -> Path:
    """A new path on the repository's disk, ignored by git and DVC. Remains of a kill are deleted after a day."""
    folder = Path(repo.tmp_dir or "", NAMESPACE, "scratch")
    folder.mkdir(parents=True, exist_ok=True)
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


def cache(repo: Repo, target: Path, *, imported: bool = False) -> tuple[Content, int]:
    """Copy the content into DVC's cache, and have git ignore it; returns it and its size.

    Only with `imported` may `target` be an import.

    Raises:
        DatasetError: DVC refuses: the path is missing, tracked by git, an import, or overlaps another dataset.
    """
    pointer = pointer_of(target)
    before = read_pointer(target)
    if before and "deps" in before and not imported:
        raise DatasetError(f"{pointer} is an import. Update it with `dvc update`, or store under another path.")
    if before is None and pointer.exists():
        set_aside(pointer, repo.tmp_dir)
    # In Python, DVC would parse git's index and each line of .gitignore, which has one for each dataset.
    vars(repo.scm).update(is_ignored=partial(_is_ignored, repo), is_tracked=partial(_is_tracked, repo))
    try:
        if before is None:
            refuse_overlap(repo, target)
        stage = repo.stage.create(
            single_stage=True, validate=False, fname=str(pointer), wdir=str(target.parent), outs=[target.name]
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
    except (extra("dvc.exceptions").DvcException, OSError) as error:
        raise DatasetError(f"DVC cannot store {target}: {error} {advice(error, remotes.REMEDIES)}".rstrip()) from error
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
    new = scratch(repo)
    new.write_text(serialize.dumps_yaml(fields))
    os.replace(new, pointer)


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
    return _parsed(text).get("stages") or {}


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        content = parse_yaml(text)
    except yaml.YAMLError:
        return {}
    return content if isinstance(content, dict) else {}


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
        listing = git(root, "ls-tree", "-r", "--name-only", "-z", rev)
    names = [name for name in listing.stdout.decode().split("\0") if PurePosixPath(name).name == "dvc.lock"]
    return names or ["dvc.lock"]


def content_at(root: Path, file: str, rev: str | None) -> bytes | None:
    """The content of a file at a git revision or, with None, on disk; None if it is not there."""
    if rev is not None:
        output = git(root, "show", f"{rev}:./{file}")
        return output.stdout if output.returncode == 0 else None
    return (root / file).read_bytes() if (root / file).is_file() else None


def _locks(root: Path, md5: str) -> Iterator[tuple[str, bytes]]:
    for name in _names(root, None):
        commit = git(root, "log", "-1", "--format=%H", "--", f"./{name}").stdout.decode().strip()
        yield commit, content_at(root, name, None) or b""
    log = git(root, "log", "--all", f"-{_MOST_COMMITS}", "--format=%H", f"-S{md5}", "--", "*dvc.lock")
    for commit in log.stdout.decode().split():
        for name in _names(root, commit):
            yield commit, content_at(root, name, commit) or b""
