"""The state of the code: the git commit that is checked out, and the changes since."""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path

from dagster_mlops.core.git import git
from dagster_mlops.core.lazy_dataclass import lazy_dataclass

LOCK_FILES = ("uv.lock", "requirements.lock", "pylock.toml", "poetry.lock")
"""Names of the files, at the top of a checkout, that lock its environment; the first one that is there counts."""
# Untracked files above this size are data rather than code, and stay out of the diff.
_UNTRACKED_LIMIT = 1_000_000
_SQLITE = b"SQLite format 3\0"  # https://www.sqlite.org/fileformat.html#the_database_header
_BESIDE_DATABASE = re.compile("-(wal|shm|journal)$")
# The user's configuration and the size of the repository must not change the text, and with it the hash.
_SHOW = (
    *("-c", "core.quotePath=true", "-c", "diff.suppressBlankEmpty=false"),
    *("diff", "--binary", "--full-index", "--no-ext-diff", "--no-textconv", "--no-color", "--no-relative"),
    *("--no-renames", "--unified=3", "--inter-hunk-context=0", "--diff-algorithm=myers", "--indent-heuristic"),
    *("--submodule=short", "--ignore-submodules=dirty", "-O/dev/null", "--src-prefix=a/", "--dst-prefix=b/", "HEAD"),
)
APPLY = ("apply", "--whitespace=nowarn", "--no-ignore-whitespace")
"""The arguments with which git applies a diff exactly, whatever the user configured."""


@lazy_dataclass(frozen=True)
class CodeState:
    """The state of a git checkout. Every field is empty if there is no git, no commit or no checkout.

    `commit` is the full hash, `branch` is empty on a detached head, and `toplevel` the checkout's folder. `diff` is
    everything that differs from `commit`, untracked files included, as a patch for ``git apply``, and `dirty_hash` its
    SHA-256. A diff may hold secrets: log it only where the code itself may go, and put the hash everywhere else.
    `left_out` names what is not committed and not in it: large files that are untracked, other repositories below this
    one, and submodules with changes of their own. Untracked SQLite databases are state, and in neither. `submodules`
    has the commit of each that is checked out, by path.
    """

    commit: str = ""
    branch: str = ""
    dirty_hash: str = ""
    diff: bytes = b""
    toplevel: str = ""
    left_out: tuple[str, ...] = ()
    submodules: Mapping[str, str] = field(default_factory=dict)


def code_state(path: Path | None = None, *, made: Sequence[Path] = ()) -> CodeState:
    """The state of the checkout that holds `path` (a file or a folder), else of the one around the working directory.

    Never raises for a missing git or checkout (a tarball, a container image): then the state is empty, i.e. unknown. A
    file that the checkout ignores, such as a package installed below it, is unknown, too.

        state = code_state(Path(__file__))
        print(state.commit, "dirty" if state.dirty_hash else "clean")

    Files and folders that are `made` by the code, such as results that git tracks, are left out of the changes.
    """
    folder = Path.cwd() if path is None else path if path.is_dir() else path.parent
    if not folder.is_dir():
        return CodeState()
    if path is not None and _ask(folder, "check-ignore", "-q", "--", str(path.absolute())) is not None:
        return CodeState()
    where = _ask(folder, "rev-parse", "--show-toplevel", "HEAD", "--abbrev-ref", "HEAD")
    if where is None:
        return CodeState()
    toplevel, commit, branch = where.decode(errors="replace").splitlines()
    below = [os.path.relpath(file, toplevel) for file in made if file.is_relative_to(toplevel)]
    selection = ("--", ":(top)", *(f":(top,exclude,literal){name}" for name in below)) if below else ()
    included, left_out = _untracked(Path(toplevel), selection)
    diff = _diff(Path(toplevel), included, selection)
    has_submodules = Path(toplevel, ".gitmodules").is_file()
    return CodeState(
        commit=commit,
        branch="" if branch == "HEAD" else branch,
        dirty_hash=hashlib.sha256(diff).hexdigest() if diff else "",
        diff=diff,
        toplevel=toplevel,
        left_out=(*left_out, *(_changed_submodules(Path(toplevel)) if has_submodules else ())),
        submodules=_submodules(Path(toplevel)) if has_submodules else {},
    )


def _untracked(toplevel: Path, selection: Sequence[str]) -> tuple[list[bytes], list[str]]:
    """The untracked files: those that go into the diff, as git names them, and the others."""
    # Not the bytecode that Python writes beside the code as it runs: many a repository does not ignore it.
    # Nor databases, such as MLflow's: they change as they are read.
    options = ("--others", "--exclude-standard", "--exclude=__pycache__/", "-z")
    listing = _ask(toplevel, "ls-files", *options, *selection) or b""
    included, left_out = [], []
    for name in filter(None, listing.split(b"\0")):
        file = toplevel / os.fsdecode(name)
        if _is_database(file):
            continue
        # A link is kept as a link, whatever it leads to; a folder is another repository.
        if file.is_symlink() or (file.is_file() and file.stat().st_size <= _UNTRACKED_LIMIT):
            included.append(name)
        else:
            left_out.append(os.fsdecode(name))
    return included, left_out


def _is_database(file: Path) -> bool:
    """True for a SQLite database and for what SQLite writes beside one."""
    try:
        with file.with_name(_BESIDE_DATABASE.sub("", file.name)).open("rb") as stream:
            return stream.read(len(_SQLITE)) == _SQLITE
    except OSError:
        return False


def _changed_submodules(toplevel: Path) -> list[str]:
    status = _ask(toplevel, "status", "--porcelain=v2", "-z", "--ignore-submodules=none", "--untracked-files=no") or b""
    # "1 .M S.MU …": a submodule in which files are modified or untracked.
    rows = [os.fsdecode(line).split(" ", 8) for line in status.split(b"\0") if line.startswith(b"1 ")]
    return [row[8] for row in rows if row[2].startswith("S") and row[2][2:] != ".."]


def _submodules(toplevel: Path) -> dict[str, str]:
    status = _ask(toplevel, "submodule", "status", "--recursive") or b""
    # " commit path (branch)", or "-commit path" for one that is not checked out.
    rows = re.findall(r"^[ +U]([0-9a-f]+) (.+?)(?: \([^()]*\))?$", os.fsdecode(status), re.MULTILINE)
    return {path: commit for commit, path in rows}


def _diff(toplevel: Path, untracked: list[bytes], selection: Sequence[str]) -> bytes:
    if not untracked:
        return _ask(toplevel, *_SHOW, *selection) or b""
    index = _ask(toplevel, "rev-parse", "--git-path", "index") or b""
    with tempfile.TemporaryDirectory() as scratch:
        # A copy of the index, so that untracked files can be marked for the diff without changing the user's index.
        # With its time, by which git sees that a file of the same size may have changed within the second.
        copy = Path(scratch, "index")
        shutil.copy2(toplevel / os.fsdecode(index.strip()), copy)
        beside = {"GIT_INDEX_FILE": str(copy)}
        mark = ("add", "--intent-to-add", "--pathspec-from-file=-", "--pathspec-file-nul")
        git(toplevel, *mark, stdin=b"\0".join(b":(literal)" + name for name in untracked), env=beside)
        return _ask(toplevel, *_SHOW, *selection, env=beside) or b""


def _ask(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> bytes | None:
    process = git(folder, *arguments, env=env)
    return process.stdout if process.returncode == 0 else None
