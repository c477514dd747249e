"""git, with a time limit, without the environment variables that would change its answers, and hardened against data.

No one else here starts git. A checkout's own configuration can name programs for almost any command, so what is only
read is read without them: see :func:`runs_no_code_of_checkouts`.
"""

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from dagster_mlops.core.child import ChildError, run_program
from dagster_mlops.errors import DagsterMlopsError

_TIMEOUT = 20.0  # seconds; a huge checkout on a slow disk
LATE = 124
"""The return code of a git that did not answer in time."""
# Set by git for the children of its hooks; they would point at another repository.
_AMBIENT = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY"}
_QUIET = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
# A program that watches the files only makes git faster.
_SETTINGS = {"core.fsmonitor": "false"}
_READ_ONLY = {"core.hooksPath": os.devnull, "log.showSignature": "false", "protocol.allow": "never"}
# In a submodule, git is started anew, by the submodule's own settings: its filters, text converters and so on.
_READ_ONLY |= {"diff.submodule": "short", "status.submoduleSummary": "false", "submodule.recurse": "false"}
_LOOKS_INTO_SUBMODULES = {"status", "diff", "diff-files", "diff-index"}
# Without a protocol, nothing runs that a remote needs: ssh, proxies, credential helpers. A partial clone is not filled.
_NO_REMOTES = {"GIT_ALLOW_PROTOCOL": "", "GIT_NO_LAZY_FETCH": "1", "GIT_EXTERNAL_DIFF": "", "GIT_ASKPASS": "true"}
_LIST_FILTERS = ("config", "--includes", "--name-only", "-z", "--get-regexp", r"^filter\.")
_SHOW_CHANGES = {"log", "show", "diff", "diff-tree", "diff-index", "diff-files"}
_NO_PROGRAMS = ("--no-textconv", "--no-ext-diff")
# While a checkout is not trusted: the filters that git would run in each folder, without a program.
_FILTERS_BY_FOLDER: ContextVar[dict[Path, dict[str, str]] | None] = ContextVar("filters_by_folder", default=None)


def git(
    folder: Path, *arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None, timeout: float = _TIMEOUT
) -> "subprocess.CompletedProcess[bytes]":
    """Run git in `folder`. One that is missing (127) or late (:data:`LATE`) fails like any other, by return code.

    An argument that comes from data has to follow ``--``, or to be a revision that :func:`plain_revision` has checked.
    """
    command = ["git", *_without_programs(arguments)]
    environment = {name: value for name, value in os.environ.items() if name not in _AMBIENT} | _QUIET
    settings = dict(_SETTINGS)
    try:
        if (filters := _FILTERS_BY_FOLDER.get()) is not None:
            environment, settings = {**environment, **_NO_REMOTES}, {**settings, **_READ_ONLY}
            if folder not in filters:
                filters[folder] = dict.fromkeys(_filters(folder, _with(environment, settings), timeout), "")
            settings |= filters[folder]
        environment = _with({**environment, **(env or {})}, settings)
        return run_program(command, cwd=folder, env=environment, stdin=stdin, timeout=timeout)
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, b"", f"git cannot be started: {error}".encode())
    except ChildError:
        return subprocess.CompletedProcess(command, LATE, b"", f"git did not answer within {timeout:g} s".encode())


@contextmanager
def runs_no_code_of_checkouts() -> Iterator[None]:
    """In the body, git only reads, and runs no program that a checkout names: no hook, filter, ssh command or pager.

    For a place that a record names. The user's own repository, in which datasets are stored, keeps its filters, and
    the hooks and the ssh command of a push. What git-lfs keeps counts as its pointer here, and of a submodule only the
    commit that it is on: what has changed in it is not looked at.
    """
    token = _FILTERS_BY_FOLDER.set({})
    try:
        yield
    finally:
        _FILTERS_BY_FOLDER.reset(token)


def plain_revision(revision: str, *, error: type[DagsterMlopsError] = DagsterMlopsError) -> str:
    """The revision, if git cannot take it for an option.

    >>> plain_revision("v1.0~2")
    'v1.0~2'

    Raises:
        DagsterMlopsError: as `error`: it is ``--output=FILE``, with which git would write a file, or the like.
    """
    if not revision or revision.startswith("-") or any(char in revision for char in "\0\r\n"):
        raise error(f"{revision!r} is not a git revision. Name a branch, a tag or a commit.")
    return revision


def _without_programs(arguments: Sequence[str]) -> list[str]:
    """The arguments with the options that keep a command from starting other programs."""
    place = next(n for n, word in enumerate(arguments) if not word.startswith("-") and arguments[n - 1 : n] != ("-c",))
    command, options = arguments[place], list(arguments[place + 1 :])
    if command in _LOOKS_INTO_SUBMODULES and _FILTERS_BY_FOLDER.get() is not None:
        # The repository's `submodule.<name>.ignore` goes before a setting, and not before an option.
        options = [option for option in options if not option.startswith(("--ignore-submodules", "--submodule"))]
        options = ["--ignore-submodules=dirty", *options]
    return [*arguments[: place + 1], *(_NO_PROGRAMS if command in _SHOW_CHANGES else ()), *options]


def _filters(folder: Path, environment: Mapping[str, str], timeout: float) -> list[str]:
    """The settings of all filters: a checkout's attributes name those to run, and its settings what git-lfs runs."""
    names = run_program(["git", *_LIST_FILTERS], cwd=folder, env=environment, timeout=timeout).stdout.split(b"\0")
    return [os.fsdecode(name) for name in names if name]


def _with(environment: Mapping[str, str], settings: Mapping[str, str]) -> dict[str, str]:
    """The environment in which these settings of git come after those that it has."""
    first = int(environment.get("GIT_CONFIG_COUNT") or 0)
    pairs = {}
    for number, (name, value) in enumerate(settings.items(), first):
        pairs |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    return {**environment, **pairs, "GIT_CONFIG_COUNT": str(first + len(settings))}
