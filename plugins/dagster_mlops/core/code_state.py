"""The state of the code: the git commit that is checked out, and the changes since."""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Literal

from dagster_mlops.core.git import git
from dagster_mlops.core.keys import MARK, holds_private_key, names_key, without_keys
from dagster_mlops.core.lazy_dataclass import lazy_dataclass

LOCK_FILES = ("uv.lock", "requirements.lock", "pylock.toml", "poetry.lock")
"""Names of the files, at the top of a checkout, that lock its environment; the first one that is there counts."""
# Untracked files above this size are data rather than code, and stay out of the diff.
_UNTRACKED_LIMIT = 1_000_000
# Source, and settings that can change what it does. Data and results are for a tool that versions them.
_CODE = {
    *(".py", ".pyi", ".pyx", ".pxd", ".c", ".h", ".cc", ".cpp", ".cxx", ".hh", ".hpp", ".cu", ".cuh", ".rs", ".go"),
    *(
        ".java",
        ".scala",
        ".kt",
        ".f",
        ".f90",
        ".r",
        ".jl",
        ".lua",
        ".sh",
        ".bash",
        ".sql",
        ".proto",
        ".graphql",
        ".mako",
    ),
    *(".toml", ".yaml", ".yml", ".json", ".json5", ".cfg", ".ini", ".conf", ".properties", ".xml", ".hcl", ".gin"),
    *(".txt", ".md", ".rst", ".in", ".lock", ".jinja", ".jinja2", ".j2", ".tmpl"),
    *(".dvc", ".dvcignore", ".gitignore", ".gitattributes", ".gitmodules"),
}
_CODE_NAMES = {
    "makefile",
    "dockerfile",
    "mlproject",
    "snakefile",
    "pipfile",
    "justfile",
    "procfile",
    "py.typed",
    "config",
}
Untracked = Literal["code", "all"]
LARGE, NOT_CODE, KEY, OF_SUBMODULE = (
    "it is large, or a repository",
    "it is not code",
    "it looks like a key",
    "of a submodule",
)
"""Reasons that an uncommitted change is left out."""
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
    SHA-256. Log it only where the code itself may go, and put the hash everywhere else.
    Untracked files are in it if they are code by their suffix. `left_out` has what is not committed and not in it, by
    path, with the reason: untracked files that are not code or large, what looks like a key, other repositories below
    this one, and submodules with changes of their own. Untracked SQLite databases are state, and in neither.
    `without_keys` names files of code whose changes are not in it to the byte, because they hold what looks like a key.
    `submodules` has the commit of each that is checked out, by path.
    """

    commit: str = ""
    branch: str = ""
    dirty_hash: str = ""
    diff: bytes = b""
    toplevel: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)
    without_keys: tuple[str, ...] = ()
    submodules: Mapping[str, str] = field(default_factory=dict)


def code_state(path: Path | None = None, *, made: Sequence[Path] = (), untracked: Untracked = "code") -> CodeState:
    """The state of the checkout that holds `path` (a file or a folder), else of the one around the working directory.

    Never raises for a missing git or checkout (a tarball, a container image): then the state is empty, i.e. unknown. A
    file that the checkout ignores, such as a package installed below it, is unknown, too.

        state = code_state(Path(__file__))
        print(state.commit, "dirty" if state.dirty_hash else "clean")

    Args:
        path: A file or folder of the checkout.
        made: Files and folders that the code makes, such as results that git tracks: they are not changes of it.
        untracked: The untracked files that count: ``code`` by its suffix, or ``all`` that are small.
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
    included, left_out = _untracked(Path(toplevel), selection, untracked)
    diff, removed, masked = _without_keys(_diff(Path(toplevel), included, selection), untracked)
    has_submodules = Path(toplevel, ".gitmodules").is_file()
    return CodeState(
        commit=commit,
        branch="" if branch == "HEAD" else branch,
        dirty_hash=hashlib.sha256(diff).hexdigest() if diff else "",
        diff=diff,
        toplevel=toplevel,
        left_out={
            **left_out,
            **removed,
            **dict.fromkeys(_changed_submodules(Path(toplevel)) if has_submodules else (), OF_SUBMODULE),
        },
        without_keys=(*(name for name, reason in removed.items() if reason == KEY), *masked),
        submodules=_submodules(Path(toplevel)) if has_submodules else {},
    )


def _untracked(toplevel: Path, selection: Sequence[str], choice: Untracked) -> tuple[list[bytes], dict[str, str]]:
    """The untracked files: those that go into the diff, as git names them, and the others, with the reason."""
    # Not the bytecode that Python writes beside the code as it runs: many a repository does not ignore it.
    # Nor databases, such as MLflow's: they change as they are read.
    options = ("--others", "--exclude-standard", "--exclude=__pycache__/", "-z")
    listing = _ask(toplevel, "ls-files", *options, *selection) or b""
    included: list[bytes] = []
    left_out: dict[str, str] = {}
    for encoded in filter(None, listing.split(b"\0")):
        name = os.fsdecode(encoded)
        file = toplevel / name
        if _is_database(file):
            continue
        if names_key(name):
            left_out[name] = KEY
        elif choice == "code" and not file.is_symlink() and not _is_code(name):
            left_out[name] = NOT_CODE
        # A link is kept as a link, whatever it leads to; a folder is another repository.
        elif file.is_symlink() or (file.is_file() and file.stat().st_size <= _UNTRACKED_LIMIT):
            included.append(encoded)
        else:
            left_out[name] = LARGE
    return included, left_out


def _is_code(name: str) -> bool:
    if name.endswith("/"):  # another repository
        return True
    last = name.rpartition("/")[2].lower()
    return last in _CODE_NAMES or f".{last.rpartition('.')[2]}" in _CODE


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


def _without_keys(diff: bytes, untracked: Untracked) -> tuple[bytes, dict[str, str], list[str]]:
    """The diff without what looks like a key, the files that are not in it, with reasons, and those with marks in it.

    The hash of a marked file's content is zeroed: the code of a rerun has the mark instead, and thus the same diff.
    """
    parts = re.split(rb"(?m)^(?=diff --git )", diff) if diff else []
    rest: list[bytes] = []
    removed: dict[str, str] = {}
    marked: list[str] = []
    for part in parts:
        name = _name_of(part)
        is_binary = b"\nGIT binary patch" in part
        if names_key(name) or (not is_binary and holds_private_key(part)):
            removed[name] = KEY
            continue
        if is_binary and b"\nnew file mode 1" in part and untracked == "code":
            # Such as text in UTF-16, in which no key would be found.
            removed[name] = NOT_CODE
            continue
        if (clean := without_keys(part, name, diff=True)) is not part or MARK in part:
            marked.append(name)
            part = re.sub(rb"(?m)^(index [0-9a-f]+\.\.)([0-9a-f]+)", lambda m: m[1] + b"0" * len(m[2]), clean, count=1)
        rest.append(part)
    return b"".join(rest), removed, marked


def _name_of(part: bytes) -> str:
    """The file that one part of a diff is of: without renames, both of its names are the same one."""
    names = part[len(b"diff --git ") :].partition(b"\n")[0]
    name = names[: len(names) // 2]
    if name.startswith(b'"'):  # quoted as in C
        name = name[1:-1].decode("unicode_escape").encode("latin-1")
    return os.fsdecode(name.removeprefix(b"a/"))


def _ask(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> bytes | None:
    process = git(folder, *arguments, env=env)
    return process.stdout if process.returncode == 0 else None
