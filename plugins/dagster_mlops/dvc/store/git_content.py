"""Versions of outputs that git keeps instead of DVC (``cache: false``)."""

import hashlib
from pathlib import Path

from dagster_mlops.core.files import write_atomically
from dagster_mlops.core.git import git
from dagster_mlops.dvc.lazy import Repo
from dagster_mlops.provenance import NAMESPACE

_MOST_COMMITS = 50  # in which a content is sought, newest first


def in_git(root: Path, path: str, md5: str) -> bytes | None:
    """The content of a file, as a checkout would write it, from whichever commit has it; None if none does."""
    log = git(root, "log", "--all", f"-{_MOST_COMMITS}", "--format=%H", "--", f"./{path}")
    for commit in log.stdout.decode().split():
        content = git(root, "cat-file", "--filters", f"{commit}:./{path}")
        if content.returncode == 0 and hashlib.md5(content.stdout, usedforsecurity=False).hexdigest() == md5:
            return content.stdout
    return None


def checkout_from_git(repo: Repo, path: str, md5: str) -> Path | None:
    """A copy of a version that git keeps, outside the workspace; None if no commit has it."""
    content = in_git(Path(repo.root_dir), path, md5)
    if content is None:
        return None
    copy = Path(repo.tmp_dir or "", NAMESPACE, "versions", md5, Path(path).name)
    write_atomically(copy, content, private=True)
    return copy
