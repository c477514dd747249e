"""Which code made this: the git commit that is checked out, and what was changed since."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

_TIMEOUT = 20.0
# Untracked files above this size are data rather than code, and stay out of the diff.
_UNTRACKED_LIMIT = 1_000_000


@dataclass(frozen=True)
class CodeState:
    """The state of a git checkout. Every field is empty where there is no git, no commit or no checkout.

    `commit` is the full hash, `branch` is empty on a detached head, and `toplevel` the checkout's folder. `diff` is
    everything that differs from `commit`, untracked files included, as a patch for ``git apply``, and `dirty_hash` its
    SHA-256. A diff may hold secrets: log it only where the code itself may go, and put the hash everywhere else.
    """

    commit: str = ""
    branch: str = ""
    dirty_hash: str = ""
    diff: str = ""
    toplevel: str = ""


def code_state(path: Path | None = None) -> CodeState:
    """The state of the checkout that holds `path` (a file or a folder), else of the one around the working directory.

    Never raises for a missing git or checkout (a tarball, a container image): then the state is empty, i.e. unknown. A
    file that the checkout ignores, such as a package installed below it, is unknown, too.

        state = code_state(Path(__file__))
        print(state.commit, "dirty" if state.dirty_hash else "clean")
    """
    folder = Path.cwd() if path is None else path if path.is_dir() else path.parent
    if not folder.is_dir():
        return CodeState()
    if path is not None and _git(folder, "check-ignore", "-q", "--", str(path.absolute())) is not None:
        return CodeState()
    where = _git(folder, "rev-parse", "--show-toplevel", "HEAD", "--abbrev-ref", "HEAD")
    if where is None:
        return CodeState()
    toplevel, commit, branch = where.decode(errors="replace").splitlines()
    diff = _diff(Path(toplevel))
    return CodeState(
        commit=commit,
        branch="" if branch == "HEAD" else branch,
        dirty_hash=hashlib.sha256(diff).hexdigest() if diff else "",
        diff=diff.decode(errors="replace"),
        toplevel=toplevel,
    )


def _diff(toplevel: Path) -> bytes:
    listed = _git(toplevel, "ls-files", "--others", "--exclude-standard", "-z") or b""
    small = [
        name
        for name in listed.split(b"\0")
        if name and (file := toplevel / os.fsdecode(name)).is_file() and file.stat().st_size <= _UNTRACKED_LIMIT
    ]
    # What the user configured must not change the text, and with it the hash.
    show = ("diff", "--binary", "--no-ext-diff", "--no-textconv", "--no-color", "--no-relative", "--src-prefix=a/")
    show = (*show, "--dst-prefix=b/", "HEAD")
    if not small:
        return _git(toplevel, *show) or b""
    index = _git(toplevel, "rev-parse", "--git-path", "index") or b""
    with tempfile.TemporaryDirectory() as scratch:
        # A copy of the index, so that untracked files can be marked for the diff without touching the user's own.
        copy = Path(scratch, "index")
        shutil.copyfile(toplevel / os.fsdecode(index.strip()), copy)
        mark = ("add", "--intent-to-add", "--pathspec-from-file=-", "--pathspec-file-nul")
        _git(toplevel, *mark, index=copy, stdin=b"\0".join(b":(literal)" + name for name in small))
        return _git(toplevel, *show, index=copy) or b""


def _git(folder: Path, *arguments: str, index: Path | None = None, stdin: bytes | None = None) -> bytes | None:
    """What git prints, or None when it fails, is not installed or does not answer."""
    # Set by git when we run below one of its hooks; they would point at another repository.
    ambient = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"}
    environment = {k: v for k, v in os.environ.items() if k not in ambient}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    if index:
        environment["GIT_INDEX_FILE"] = str(index)
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, env=environment, input=stdin, capture_output=True, timeout=_TIMEOUT
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
