"""Commits a few files to git without touching anything else that the user has staged, edited or left untracked."""

import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import field
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias, TypeVar

from dagster_mlops.core.git import git
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.waits import retry
from dagster_mlops.errors import DatasetError
from dagster_mlops.provenance import mask_credentials

Edit = Callable[[bytes], bytes]
"""A function from the content of a file in git to the new content."""


Entries: TypeAlias = dict[str, str]
"""By path, ``mode blob stage`` of a file in git."""

_T = TypeVar("_T")
_ATTRIBUTES = ".gitattributes"
_REPLACING = ("update-index", "--add", "--replace")  # a file may become a folder
_ON_DISK = ("-c", "core.fsync=committed")  # by default, a power cut may cost the objects of a commit
_KILLED = "If a .lock file is named and no git process runs there, one was killed: delete that file, then re-run."


def toplevel(folder: Path) -> Path | None:
    """The checkout that holds `folder`, or None if there is none."""
    process = git(folder, "rev-parse", "--show-toplevel")
    return Path(process.stdout.decode().strip()) if process.returncode == 0 else None


def blobs(top: Path, names: Sequence[str], env: Mapping[str, str] | None = None) -> list[bytes | None]:
    """The contents of objects such as ``HEAD:path`` or, staged, ``:path``; None for a missing one."""
    raw = run(top, "cat-file", "--batch", stdin="".join(f"{name}\n" for name in names).encode(), env=env)
    contents: list[bytes | None] = []
    for _ in names:
        header, _, raw = raw.partition(b"\n")
        if header.endswith(b" missing"):
            contents.append(None)
            continue
        size = int(header.rsplit(b" ", 1)[1])
        contents.append(raw[:size])
        raw = raw[size + 1 :]
    return contents


def commit(
    top: Path,
    files: Iterable[str],
    edits: Mapping[str, Edit],
    *,
    message: str,
    author: Mapping[str, str],
    wait: float,
) -> str | None:
    """Commit `files` as they are on disk, and `edits`, on whatever is checked out.

    They are staged by git in an index of their own, so that filters, modes, links and deletions are git's, and that
    the cost does not grow with what else is tracked. The branch moves by compare-and-swap: a commit of another process
    is never lost. Hooks do not run: DVC's own pre-commit hook would wait for the lock that our caller holds.

    Args:
        top: The checkout.
        files: Paths below `top`. A deleted one is removed; one that git ignores and does not track is left out.
        edits: By path below `top`, changes of the content in git, for a file of which only a part is to be committed.
        message: Message of the commit.
        author: Variables such as ``GIT_AUTHOR_NAME``.
        wait: Seconds to wait for git's locks.

    Returns:
        The new commit, or None when HEAD holds all of it already.

    Raises:
        DatasetError: a merge left one of the files in conflict, git refuses, or its index or branch stays locked for
            `wait` seconds.
    """
    change = _Change(top, sorted(set(files)), edits, ignored(top, files))
    # The user's index first: a kill between the two steps then leaves the edit staged. In the other order, its reversal
    # would be staged, and the user's next commit would undo ours.
    _patiently(change.stage_for_user, f"git's index of {top} cannot be updated", wait)
    return _patiently(lambda: change.commit(message, author), f"git cannot move HEAD of {top}", wait)


def refuse_unmerged(top: Path, entries: Mapping[str, str]) -> None:
    """Refuse files that a merge left in conflict: staging them would say that it is resolved.

    `entries` are those of :func:`entries`.

    Raises:
        DatasetError: there are such files.
    """
    if names := [path for path, entry in entries.items() if not entry.endswith(" 0")]:
        raise DatasetError(
            f"A merge left a conflict in {', '.join(names)} of {top}. Resolve it (keep the entries of both sides) and "
            f"`git add {' '.join(names)}`, then re-run."
        )


def _patiently(action: Callable[[], _T], problem: str, wait: float) -> _T:
    """The result of an action that has to wait while another git process holds a lock."""
    try:
        return retry(action, is_transient=_is_locked, timeout=wait)
    except DatasetError as error:
        if not _is_locked(error):
            raise
        reason = str(error).partition("\n")[0]
        raise DatasetError(f"{problem} within {wait:g} s: {reason} {_KILLED}") from error


def _is_locked(error: Exception) -> bool:
    return re.search(r"Unable to create '.*\.lock'", str(error)) is not None


def _head(top: Path) -> str:
    return git(top, "rev-parse", "--verify", "-q", "HEAD").stdout.decode().strip()


def ignored(top: Path, files: Iterable[str]) -> set[str]:
    process = git(top, "check-ignore", "-z", "--stdin", stdin=os.fsencode("\0".join(files)))
    if process.returncode not in (0, 1):  # or data that git ignores would be committed
        raise DatasetError(
            f"git cannot tell what it ignores in {top}: {process.stderr.decode(errors='replace').strip()}"
        )
    return {os.fsdecode(name) for name in process.stdout.split(b"\0")}


@lazy_dataclass()
class _Change:
    """A change to be committed to the checkout `top`, and its results on top of what git has."""

    top: Path
    files: Sequence[str]
    edits: Mapping[str, Edit]
    ignored: Collection[str]
    results: list[tuple[Entries, Entries]] = field(default_factory=list)  # before and after

    @property
    def paths(self) -> list[str]:
        """The paths that may change, and those of the attributes that apply to them, which git may have to read."""
        changed = [*self.files, *self.edits]
        folders = {folder for path in changed for folder in PurePosixPath(path).parents}
        return list(dict.fromkeys([*changed, *(str(folder / _ATTRIBUTES) for folder in folders)]))

    def stage_for_user(self) -> None:
        """Stage it in the user's index. If all of it is there, that needs no lock, which a dead process may hold."""
        before = entries(self.top, self.paths)
        refuse_unmerged(self.top, {path: entry for path, entry in before.items() if not path.endswith(_ATTRIBUTES)})
        if changed := _differences(before, self.upon(before)):
            # On disk are the files, with the times by which git sees that they are unchanged; an edit is only in git.
            edited = {path: changed[path] for path in self.edits if path in changed}
            _update_index(self.top, edited, [path for path in changed if path not in edited])

    def commit(self, message: str, author: Mapping[str, str]) -> str | None:
        """Commit it, unless HEAD has all of it."""
        while True:
            head = _head(self.top)
            before = _entries_at(self.top, head, self.paths) if head else {}
            if not (changed := _differences(before, self.upon(before))):
                return None
            with tempfile.TemporaryDirectory() as folder:
                index = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
                run(self.top, "read-tree", head or "--empty", env=index)
                removal = f"0 {'0' * len(head)}"
                rows = "".join(f"{entry or removal}\t{path}\0" for path, entry in changed.items())
                run(self.top, *_REPLACING, "-z", "--index-info", stdin=os.fsencode(rows), env=index)
                tree = run(self.top, "write-tree", env=index).decode().strip()
            parents = ["-p", head] if head else []
            sha = run(self.top, "commit-tree", tree, *parents, stdin=message.encode(), env=author).decode().strip()
            try:
                run(self.top, "update-ref", "-m", message.splitlines()[0], "HEAD", sha, head or "0" * len(sha))
            except DatasetError:
                if head == _head(self.top):  # else another process has committed meanwhile
                    raise
            else:
                return sha

    def upon(self, before: Entries) -> Entries:
        """The entries that `before` becomes."""
        for earlier, after in self.results:
            if earlier == before:
                return after
        files = [
            file
            for file in self.files
            if file in before or (os.path.lexists(self.top / file) and file not in self.ignored)
        ]
        after = dict(before)
        if files:
            with tempfile.TemporaryDirectory() as folder:
                index = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
                _update_index(self.top, before, files, index)
                after = entries(self.top, self.paths, index)
        tracked = [path for path in self.edits if path in before]
        contents = dict(zip(tracked, blobs(self.top, [before[path].split()[1] for path in tracked]), strict=True))
        for path, edit in self.edits.items():
            old = contents.get(path)
            if (content := edit(old or b"")) != old:
                blob = run(self.top, "hash-object", "-w", "--stdin", "--path", path, stdin=content).decode().strip()
                after[path] = f"{before.get(path, '100644').partition(' ')[0]} {blob} 0"
        self.results.append((before, after))
        return after


def _differences(before: Entries, after: Entries) -> dict[str, str]:
    """The entries of `after` that are not in `before`; empty ones for what is gone."""
    return {path: after.get(path, "") for path in {**before, **after} if after.get(path) != before.get(path)}


def _update_index(top: Path, entries: Entries, files: Sequence[str], env: Mapping[str, str] | None = None) -> None:
    """Stage `entries`, then `files` as they are on disk, in the index that `env` names, or the user's."""
    options = ["--remove", "--ignore-skip-worktree-entries"]  # what a sparse checkout leaves out is not deleted
    for path, entry in entries.items():
        mode, blob, stage = entry.split()
        options += ["--cacheinfo", f"{mode},{blob},{path}"] if stage == "0" else []
    names = os.fsencode("".join(f"{file}\0" for file in files))
    run(top, *_REPLACING, *options, "-z", "--stdin", stdin=names, env=env)


def run(folder: Path, *arguments: str, problem: str = "", hint: str = "", **options: Any) -> bytes:
    """The output of git; `options` are those of :func:`git`.

    Raises:
        DatasetError: git fails: the `problem`, what git says, and a `hint`.
    """
    process = git(folder, *_ON_DISK, *arguments, **options)
    if process.returncode:
        problem = problem or f"`git {' '.join(arguments)}` failed in {folder}"
        raise DatasetError(f"{problem}: {mask_credentials(process.stderr.decode().strip())} {hint}".rstrip())
    return process.stdout


def entries(top: Path, paths: Sequence[str], env: Mapping[str, str] | None = None) -> Entries:
    """The entries of `paths` in an index: ``mode blob stage`` by path."""
    listing = run(top, "--literal-pathspecs", "ls-files", "-s", "-z", "--", *paths, env=env) if paths else b""
    rows = (os.fsdecode(line).partition("\t") for line in listing.split(b"\0") if line)
    return {path: entry for entry, _, path in rows}


def _entries_at(top: Path, commit: str, paths: Sequence[str]) -> Entries:
    """The entries of `paths` in a commit, as those of an index that was read from it."""
    listing = run(top, "--literal-pathspecs", "ls-tree", "-z", "--full-tree", commit, "--", *paths)
    rows = (os.fsdecode(line).split(maxsplit=3) for line in listing.split(b"\0") if line)
    return {path: f"{mode} {blob} 0" for mode, kind, blob, path in rows if kind != "tree"}


def message(subject: str, facts: Mapping[str, Any]) -> str:
    """The message of a commit, with the Dagster run that a record's `facts` name."""
    trailers = {"Asset": "dagster_asset", "Partition": "dagster_partition", "Run": "dagster_run_id"}
    lines = [f"Dagster-{name}: {facts[fact]}" for name, fact in trailers.items() if facts[fact]]
    return "\n".join([subject, "", *lines]).rstrip() + "\n"
