"""What a registry was last given, by which checkout, and whether another one may replace it."""

import json
import os
import socket
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops.core.files import write_atomically
from dagster_mlops.core.git import git
from dagster_mlops.core.memory import state_dir
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.repository import registry
from dagster_mlops.feast.repository.load import run_feast

if TYPE_CHECKING:
    from feast import FeatureStore

_NAME = "dagster_mlops/applied"
_REMEDY = "Bring that change into the repository, or put the registry back with FeastResource.apply(force=True)."


def is_applied(store: "FeatureStore", repo: Path, key: str) -> bool:
    """Whether the registry has what the files of `repo` define, `key` being their hash.

    Raises:
        FeatureError: it had, and something else was applied since; or it has what another checkout applied, and
            nothing says that ours is the newer one.
    """
    last = registry.get_tags(store, _NAME)
    if not last:
        return False
    then, now = json.loads(last.get("views", "{}")), registry.view_hashes(store)
    moved = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
    if last["key"] == key:
        if moved:
            raise FeatureError(
                f"the registry of project {store.project!r} no longer has what {repo} defines: {', '.join(moved)} "
                f"changed since this repository was applied, by a `feast apply` from elsewhere. {_REMEDY}"
            )
        return True
    if moved:
        wanted = _wanted(repo)
        if differing := sorted(name for name in {*wanted, *now} if wanted.get(name) != now.get(name)):
            raise FeatureError(
                f"somebody ran `feast apply` on the registry of project {store.project!r}: {', '.join(moved)} changed. "
                f"{repo} defines {', '.join(differing)} otherwise. {_REMEDY}"
            )
        note(store, repo, key)
        return True
    if last.get("checkout") == _checkout(repo) or _is_newer(repo, last):
        return False
    raise FeatureError(
        f"the registry of project {store.project!r} has what another checkout applied at {last.get('at')}: "
        f"{last.get('by')}, commit {last.get('commit') or 'unknown'}{' with changes' if last.get('dirty') else ''}. "
        f"{repo} defines something else, and is not known to be newer. {_REMEDY}"
    )


def note(store: "FeatureStore", repo: Path, key: str) -> None:
    """Remember in the registry that `repo` has been applied, by whom and from which commit."""
    if not _checkout(repo):
        write_atomically(state_dir(repo) / "checkout", uuid.uuid4().hex)
    commit, dirty = _commit(repo)
    facts = {"commit": commit, "dirty": "yes" if dirty else "", "checkout": _checkout(repo)}
    by = f"{socket.gethostname()}:{repo} (process {os.getpid()})"
    at = datetime.now(UTC).isoformat(timespec="seconds")
    views = json.dumps(registry.view_hashes(store))
    registry.put_tags(store, _NAME, {"key": key, "views": views, "by": by, "at": at, **facts})


def _is_newer(repo: Path, last: Mapping[str, str]) -> bool:
    """Whether git knows the commit that was applied as one of our past. Where it cannot tell, who is new here is."""
    commit, dirty = _commit(repo)
    if commit and last.get("commit") and git(repo, "rev-parse", "--is-shallow-repository").stdout.strip() == b"false":
        if last.get("dirty"):
            return False
        if commit == last["commit"]:
            return dirty
        return git(repo, "merge-base", "--is-ancestor", last["commit"], commit).returncode == 0
    if _checkout(repo):
        return False
    dg.get_dagster_logger().warning(f"replacing what {last.get('by')} applied at {last.get('at')}")
    return True


def _commit(repo: Path) -> tuple[str, bool]:
    """The commit that is checked out, empty when unknown, and whether definitions of `repo` differ from it."""
    head = git(repo, "rev-parse", "HEAD")
    if head.returncode:
        return "", False
    changed = git(repo, "status", "--porcelain", "--", "*.py", "feature_store.yaml").stdout
    return head.stdout.decode().strip(), bool(changed.strip())


def _checkout(repo: Path) -> str:
    """A name of this checkout that no copy of it shares; empty when it was never applied."""
    file = state_dir(repo) / "checkout"
    return f"{file.read_text()} {repo}" if file.exists() else ""


def _wanted(repo: Path) -> dict[str, Any]:
    return run_feast("hashes", repo, timeout=180, failure=f"Feast cannot compare {repo} with its registry")
