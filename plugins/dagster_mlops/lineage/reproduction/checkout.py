"""The code of a commit in a clone of its own, with its submodules and uncommitted changes."""

import os
from collections.abc import Mapping
from pathlib import Path

from dagster_mlops.core.code_state import APPLY
from dagster_mlops.core.git import git
from dagster_mlops.errors import ReproductionError

GIT_TIMEOUT = 900.0  # seconds: a large repository, of which git may have to fetch files

# The user's own hooks and line-end conversions would change the files.
_AS_IS = ("-c", "core.hooksPath=/dev/null", "-c", "core.autocrlf=false")


def top_level(folder: Path) -> Path:
    """The top of the checkout that `folder` is in; a bare repository is its own."""
    answer = git(folder, "rev-parse", "--show-toplevel")
    return Path(os.fsdecode(answer.stdout.strip())) if answer.returncode == 0 else folder.absolute()


def submodule(repository: Path, path: str, commit: str) -> Path | None:
    """The repository that has this commit of a submodule: its checkout, or git's own copy if it is not checked out."""
    common = git(repository, "rev-parse", "--path-format=absolute", "--git-common-dir").stdout.strip()
    for folder in (repository / path, Path(os.fsdecode(common), "modules", path)):
        # Without a git directory of its own, git would answer for the repository around it.
        is_repository = (folder / ".git").exists() or (folder / "HEAD").exists()
        if is_repository and git(folder, "cat-file", "-e", f"{commit}^{{commit}}").returncode == 0:
            return folder
    return None


def check_out(repository: Path, commit: str, folder: Path, *, submodules: Mapping[str, str], diff: bytes = b"") -> None:
    """Clone `repository` into `folder` at `commit`; `repository` itself does not change.

    Raises:
        ReproductionError: A file or submodule is missing, or the diff does not apply.
    """
    _clone(repository, commit, folder)
    for path, revision in submodules.items():
        source = submodule(repository, path, revision)
        if source is None:
            raise ReproductionError(f"no checkout here has the submodule {path} at commit {revision[:10]}.")
        _clone(source, revision, folder / path)
    if diff:
        _git(folder, *APPLY, "-", stdin=diff)


def _clone(repository: Path, commit: str, folder: Path) -> None:
    options = ("--quiet", "--shared", "--no-checkout", "--template=", *_AS_IS)
    _git(repository, "clone", *options, str(repository), str(folder))
    promised = git(repository, "config", "--get-regexp", r"^remote\..*\.promisor$").stdout.decode()
    if promised:
        # Objects that a partial clone lacks are fetched from its own remote.
        address = git(repository, "remote", "get-url", promised[7:].split(".promisor")[0]).stdout.decode().strip()
        settings = {"remote.origin.url": address, "remote.origin.promisor": "true", "extensions.partialClone": "origin"}
        for name, value in {"core.repositoryFormatVersion": "1", **settings}.items():
            _git(folder, "config", name, value)
    _git(folder, "checkout", "--quiet", "--detach", commit)
    missing = _git(folder, "ls-files", "--deleted")
    if missing:
        raise ReproductionError(
            f"the recorded code cannot be checked out: {repository} is a partial clone that lacks "
            f"{len(missing.splitlines())} files, such as {missing.splitlines()[0]}. Name a full clone with --repo."
        )


def _git(folder: Path, *arguments: str, stdin: bytes = b"") -> str:
    answer = git(folder, *_AS_IS, *arguments, stdin=stdin, timeout=GIT_TIMEOUT)
    if answer.returncode:
        problem = answer.stderr.decode(errors="replace").strip()
        raise ReproductionError(f"the recorded code cannot be checked out: {problem}")
    return os.fsdecode(answer.stdout)
