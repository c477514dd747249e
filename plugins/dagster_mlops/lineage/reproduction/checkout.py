"""The code of a commit in a clone of its own, with its submodules and what was uncommitted."""

import os
from collections.abc import Mapping
from pathlib import Path

from dagster_mlops.core.code_state import APPLY
from dagster_mlops.core.git import git
from dagster_mlops.errors import ReproductionError

GIT_TIMEOUT = 900.0  # seconds: a large repository, of which git may have to fetch files

# Hooks and conversions are those of this user and of today.
_AS_IS = ("-c", "core.hooksPath=/dev/null", "-c", "core.autocrlf=false")


def top_level(folder: Path) -> Path:
    """The top of the checkout that `folder` is in; a bare repository is its own."""
    found = git(folder, "rev-parse", "--show-toplevel")
    return Path(os.fsdecode(found.stdout.strip())) if found.returncode == 0 else folder.absolute()


def submodule(repository: Path, path: str, commit: str) -> Path | None:
    """What has this commit of a submodule here: its checkout, or what git keeps of it when another commit has none."""
    common = git(repository, "rev-parse", "--path-format=absolute", "--git-common-dir").stdout.strip()
    for folder in (repository / path, Path(os.fsdecode(common), "modules", path)):
        # Without a git directory of its own, git would answer for the repository around it.
        own = (folder / ".git").exists() or (folder / "HEAD").exists()
        if own and git(folder, "cat-file", "-e", f"{commit}^{{commit}}").returncode == 0:
            return folder
    return None


def check_out(repository: Path, commit: str, folder: Path, *, submodules: Mapping[str, str], diff: bytes = b"") -> None:
    """Clone `repository` into `folder` at `commit`: whatever happens there, the user's own stays as it is.

    Raises:
        ReproductionError: something of it is not there, or the diff does not apply.
    """
    _clone(repository, commit, folder)
    for path, revision in submodules.items():
        found = submodule(repository, path, revision)
        if found is None:
            raise ReproductionError(f"no checkout here has the submodule {path} at commit {revision[:10]}.")
        _clone(found, revision, folder / path)
    if diff:
        _git(folder, *APPLY, "-", stdin=diff)


def _clone(repository: Path, commit: str, folder: Path) -> None:
    _git(
        repository,
        "clone",
        "--quiet",
        "--shared",
        "--no-checkout",
        "--template=",
        *_AS_IS,
        str(repository),
        str(folder),
    )
    promised = git(repository, "config", "--get-regexp", r"^remote\..*\.promisor$").stdout.decode()
    if promised:
        # A partial clone: what it has not fetched is fetched from where it would fetch it.
        address = git(repository, "remote", "get-url", promised[7:].split(".promisor")[0]).stdout.decode().strip()
        settings = {"remote.origin.url": address, "remote.origin.promisor": "true", "extensions.partialClone": "origin"}
        for name, value in {"core.repositoryFormatVersion": "1", **settings}.items():
            _git(folder, "config", name, value)
    _git(folder, "checkout", "--quiet", "--detach", commit)
    missing = _git(folder, "ls-files", "--deleted")
    if missing:
        raise ReproductionError(
            f"the code of then cannot be checked out: {repository} is a partial clone without {missing.splitlines()[0]}"
            f" and more, {len(missing.splitlines())} in all. Name a full one with --repo."
        )


def _git(folder: Path, *arguments: str, stdin: bytes = b"") -> str:
    done = git(folder, *_AS_IS, *arguments, stdin=stdin, timeout=GIT_TIMEOUT)
    if done.returncode:
        raise ReproductionError(
            f"the code of then cannot be checked out: {done.stderr.decode(errors='replace').strip()}"
        )
    return os.fsdecode(done.stdout)
