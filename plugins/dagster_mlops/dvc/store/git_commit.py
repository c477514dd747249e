"""Commits a few files to git without touching anything else that the user has staged, edited or left untracked."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dagster_mlops.core.code_state import git
from dagster_mlops.errors import DatasetError

Edit = Callable[[bytes], bytes]

_KILLED = "If a .lock file is named and no git process runs there, one was killed: delete that file, then re-run."


def toplevel(folder: Path) -> Path | None:
    """The checkout that holds `folder`, or None where there is no git."""
    done = git(folder, "rev-parse", "--show-toplevel")
    return Path(done.stdout.decode().strip()) if done.returncode == 0 else None


def blobs(top: Path, names: Sequence[str]) -> list[bytes | None]:
    """The contents of objects such as ``HEAD:path`` or, staged, ``:path``; None for each that git does not have."""
    raw = run(top, "cat-file", "--batch", stdin="".join(f"{name}\n" for name in names).encode())
    found: list[bytes | None] = []
    for _ in names:
        header, _, raw = raw.partition(b"\n")
        if header.endswith(b" missing"):
            found.append(None)
            continue
        size = int(header.rsplit(b" ", 1)[1])
        found.append(raw[:size])
        raw = raw[size + 1 :]
    return found


def commit(top: Path, edits: Mapping[str, Edit], *, message: str, author: Mapping[str, str], wait: float) -> str | None:
    """Commit `edits` (path below `top` → function from the old content to the new) on whatever is checked out.

    The commit is built beside the user's index and the branch moves by compare-and-swap, so a commit made meanwhile is
    never lost. Hooks do not run: DVC's own pre-commit hook would wait for the lock that our caller holds.

    Returns:
        The new commit, or None when every edit is in HEAD already.

    Raises:
        DatasetError: git refuses, or its index or branch stays locked for `wait` seconds.
    """
    # The user's index first: a kill between the two steps then leaves the edit staged. The other way round, it would
    # be staged for reversal, and the user's next commit would undo ours.
    _edit_index(top, edits, wait=wait)
    deadline = time.monotonic() + wait
    while True:
        head = git(top, "rev-parse", "--verify", "-q", "HEAD").stdout.decode().strip()
        new = _pending(top, edits, "HEAD:")
        if not new:
            return None
        with tempfile.TemporaryDirectory() as scratch:
            beside = {"GIT_INDEX_FILE": str(Path(scratch, "index"))}
            run(top, "read-tree", head or "--empty", env=beside)
            run(top, "update-index", "--add", "--index-info", stdin=_index_info(top, new), env=beside)
            tree = run(top, "write-tree", env=beside).decode().strip()
        parents = ["-p", head] if head else []
        made = run(top, "commit-tree", tree, *parents, stdin=message.encode(), env=author).decode().strip()
        moved = git(top, "update-ref", "-m", message.splitlines()[0], "HEAD", made, head or "0" * len(made))
        if moved.returncode == 0:
            return made
        if head != git(top, "rev-parse", "--verify", "-q", "HEAD").stdout.decode().strip():
            continue
        reason = moved.stderr.decode().strip().partition("\n")[0]
        if ".lock" not in reason or time.monotonic() > deadline:
            raise DatasetError(f"git cannot move HEAD of {top} within {wait:g} s: {reason} {_KILLED}")
        time.sleep(0.1)


def run(top: Path, *arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> bytes:
    """What git prints.

    Raises:
        DatasetError: git fails.
    """
    done = git(top, *arguments, stdin=stdin, env=env)
    if done.returncode:
        raise DatasetError(f"`git {' '.join(arguments)}` failed in {top}: {done.stderr.decode().strip()}")
    return done.stdout


def _edit_index(top: Path, edits: Mapping[str, Edit], *, wait: float) -> None:
    deadline = time.monotonic() + wait
    while True:
        new = _pending(top, edits, ":")
        if not new:
            return
        done = git(top, "update-index", "--add", "--index-info", stdin=_index_info(top, new))
        if done.returncode == 0:
            return
        reason = done.stderr.decode().strip().partition("\n")[0]
        if "index.lock" not in reason or time.monotonic() > deadline:
            raise DatasetError(f"git's index of {top} cannot be updated within {wait:g} s: {reason} {_KILLED}")
        time.sleep(0.1)


def _pending(top: Path, edits: Mapping[str, Edit], where: str) -> dict[str, bytes]:
    old = blobs(top, [f"{where}{path}" for path in edits])
    new = {path: edit(before or b"") for (path, edit), before in zip(edits.items(), old, strict=True)}
    return {path: content for (path, content), before in zip(new.items(), old, strict=True) if content != before}


def _index_info(top: Path, contents: Mapping[str, bytes]) -> bytes:
    lines = []
    for path, content in contents.items():
        blob = run(top, "hash-object", "-w", "--stdin", stdin=content).decode().strip()
        lines.append(f"100644 {blob}\t{path}\n")
    return "".join(lines).encode()
