"""Commits a few files to git without touching anything else that the user has staged, edited or left untracked."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dagster_mlops.core.git import git
from dagster_mlops.core.waits import retry
from dagster_mlops.errors import DatasetError
from dagster_mlops.provenance import mask_credentials

Edit = Callable[[bytes], bytes]
"""A function from the content of a file in git to the new content."""


_T = TypeVar("_T")
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

    The commit is built in a separate index by ``git add``, so that filters, modes, links, deletions and ignore rules
    are git's. The branch moves by compare-and-swap: a commit of another process is never lost. Hooks do not run: DVC's
    own pre-commit hook would wait for the lock that our caller holds.

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
    files = sorted(set(files))
    # The user's index first: a kill between the two steps then leaves the edit staged. In the other order, its reversal
    # would be staged, and the user's next commit would undo ours.
    _patiently(lambda: _stage_for_user(top, files, edits), f"git's index of {top} cannot be updated", wait)
    return _patiently(lambda: _commit(top, files, edits, message, author), f"git cannot move HEAD of {top}", wait)


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


def _commit(
    top: Path, files: Sequence[str], edits: Mapping[str, Edit], message: str, author: Mapping[str, str]
) -> str | None:
    while True:
        head = _head(top)
        with tempfile.TemporaryDirectory() as folder:
            index = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
            run(top, "read-tree", head or "--empty", env=index)
            tree_before = run(top, "write-tree", env=index)
            _stage(top, files, edits, index)
            tree = run(top, "write-tree", env=index)
        if tree == tree_before:
            return None
        parents = ["-p", head] if head else []
        new = run(top, "commit-tree", tree.decode().strip(), *parents, stdin=message.encode(), env=author)
        sha = new.decode().strip()
        try:
            run(top, "update-ref", "-m", message.splitlines()[0], "HEAD", sha, head or "0" * len(sha))
        except DatasetError:
            if head == _head(top):  # else another process has committed meanwhile
                raise
        else:
            return sha


def run(folder: Path, *arguments: str, problem: str = "", hint: str = "", **options: Any) -> bytes:
    """The output of git; `options` are those of :func:`git`.

    Raises:
        DatasetError: git fails: the `problem`, what git says, and a `hint`.
    """
    process = git(folder, *arguments, **options)
    if process.returncode:
        problem = problem or f"`git {' '.join(arguments)}` failed in {folder}"
        raise DatasetError(f"{problem}: {mask_credentials(process.stderr.decode().strip())} {hint}".rstrip())
    return process.stdout


def _stage_for_user(top: Path, files: Sequence[str], edits: Mapping[str, Edit]) -> None:
    paths = [*files, *edits]
    index = Path(top, run(top, "rev-parse", "--git-path", "index").decode().strip())
    with tempfile.TemporaryDirectory() as folder:
        # On a copy first: if all is staged already, the lock is not needed, which a dead process may hold.
        copy = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
        if index.exists():
            shutil.copy2(index, copy["GIT_INDEX_FILE"])
        before = entries(top, paths, copy)
        refuse_unmerged(top, before)
        _stage(top, files, edits, copy)
        if entries(top, paths, copy) == before:
            return
    _stage(top, files, edits)


def _stage(top: Path, files: Sequence[str], edits: Mapping[str, Edit], env: Mapping[str, str] | None = None) -> None:
    """Stage in the index that `env` names, or the user's."""
    tracked = entries(top, [*files, *edits], env)
    ignored = git(top, "check-ignore", "-z", "--stdin", stdin="\0".join(files).encode(), env=env)
    if ignored.returncode not in (0, 1):  # or data that git ignores would be committed
        raise DatasetError(
            f"git cannot tell what it ignores in {top}: {ignored.stderr.decode(errors='replace').strip()}"
        )
    left_out = {os.fsdecode(name) for name in ignored.stdout.split(b"\0")}
    paths = [file for file in files if file in tracked or (os.path.lexists(top / file) and file not in left_out)]
    if paths:
        # Outside of a sparse checkout git would refuse to add.
        add = ("--literal-pathspecs", "-c", "core.sparseCheckout=false", "add", "-A", "--pathspec-from-file=-")
        run(top, *add, "--pathspec-file-nul", stdin="\0".join(paths).encode(), env=env)
    lines = []
    for (path, edit), old in zip(edits.items(), blobs(top, [f":{path}" for path in edits], env), strict=True):
        if (content := edit(old or b"")) != old:
            blob = run(top, "hash-object", "-w", "--stdin", "--path", path, stdin=content).decode().strip()
            lines.append(f"{tracked.get(path, '100644').partition(' ')[0]} {blob}\t{path}\n")
    if lines:
        run(top, "update-index", "--add", "--index-info", stdin="".join(lines).encode(), env=env)


def entries(top: Path, paths: Sequence[str], env: Mapping[str, str] | None = None) -> dict[str, str]:
    """The entries of `paths` in an index: ``mode blob stage`` by path."""
    listing = run(top, "--literal-pathspecs", "ls-files", "-s", "-z", "--", *paths, env=env) if paths else b""
    rows = (os.fsdecode(line).partition("\t") for line in listing.split(b"\0") if line)
    return {path: entry for entry, _, path in rows}


def message(subject: str, facts: Mapping[str, Any]) -> str:
    """The message of a commit, with the Dagster run that a record's `facts` name."""
    trailers = {"Asset": "dagster_asset", "Partition": "dagster_partition", "Run": "dagster_run_id"}
    lines = [f"Dagster-{name}: {facts[fact]}" for name, fact in trailers.items() if facts[fact]]
    return "\n".join([subject, "", *lines]).rstrip() + "\n"
