"""A record of the last apply in the registry, which guards it against an apply from an older checkout."""

import json
import os
import socket
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg

from dagster_mlops.core.files import write_atomically
from dagster_mlops.core.git import git
from dagster_mlops.core.memory import state_dir
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.lazy import FeatureStore
from dagster_mlops.feast.repository import registry
from dagster_mlops.feast.repository.load import run_feast

_NAME = "dagster_mlops/applied"
_REMEDY = "Bring that change into the repository, or overwrite the registry with FeastResource.apply(force=True)."


def is_applied(store: FeatureStore, repo: Path, key: str) -> bool:
    """True if the registry has the definitions of `repo`; `key` is the hash of its files.

    Raises:
        FeatureError: Something else was applied after `repo`; or another checkout was applied, and `repo` is not known
            to be newer.
    """
    last = registry.get_tags(store, _NAME)
    if not last:
        return False
    applied_hashes, current_hashes = json.loads(last.get("views", "{}")), registry.view_hashes(store)
    changed = _differing(applied_hashes, current_hashes)
    if last["key"] == key:
        if changed:
            raise FeatureError(
                f"the registry of project {store.project!r} no longer has the definitions of {repo}: a `feast apply` "
                f"from elsewhere changed {', '.join(changed)}. {_REMEDY}"
            )
        return True
    if changed:
        failure = f"Feast cannot compare {repo} with its registry"
        if differing := _differing(run_feast("hashes", repo, timeout=180, failure=failure), current_hashes):
            raise FeatureError(
                f"someone ran `feast apply` on the registry of project {store.project!r}: {', '.join(changed)} "
                f"changed. {repo} defines {', '.join(differing)} differently. {_REMEDY}"
            )
        note(store, repo, key)
        return True
    if last.get("checkout") == _checkout(repo) or _is_newer(repo, last):
        return False
    raise FeatureError(
        f"the registry of project {store.project!r} has what another checkout applied at {last.get('at')}: "
        f"{last.get('by')}, commit {last.get('commit') or 'unknown'}{' with changes' if last.get('dirty') else ''}. "
        f"{repo} differs from them, and is not known to be newer. {_REMEDY}"
    )


def note(store: FeatureStore, repo: Path, key: str) -> None:
    """Record in the registry that `repo` has been applied, with process and commit."""
    if not _checkout(repo):
        write_atomically(state_dir(repo) / "checkout", uuid.uuid4().hex)
    commit, dirty = _commit(repo)
    facts = {"commit": commit, "dirty": "yes" if dirty else "", "checkout": _checkout(repo)}
    by = f"{socket.gethostname()}:{repo} (process {os.getpid()})"
    at = datetime.now(UTC).isoformat(timespec="seconds")
    views = json.dumps(registry.view_hashes(store))
    registry.put_tags(store, _NAME, {"key": key, "views": views, "by": by, "at": at, **facts})


def _is_newer(repo: Path, last: Mapping[str, str]) -> bool:
    """True if the last applied commit is an ancestor of ours; without git, if this checkout was never applied."""
    commit, dirty = _commit(repo)
    if commit and last.get("commit") and git(repo, "rev-parse", "--is-shallow-repository").stdout.strip() == b"false":
        if last.get("dirty"):
            return False
        if commit == last["commit"]:
            return dirty
        return git(repo, "merge-base", "--is-ancestor", "--", last["commit"], commit).returncode == 0
    if _checkout(repo):
        return False
    dg.get_dagster_logger().warning(f"replacing the definitions that {last.get('by')} applied at {last.get('at')}")
    return True


def _commit(repo: Path) -> tuple[str, bool]:
    """The current commit, empty if unknown, and whether definitions of `repo` differ from it."""
    head = git(repo, "rev-parse", "HEAD")
    if head.returncode:
        return "", False
    changed = git(repo, "status", "--porcelain", "--", "*.py", "feature_store.yaml").stdout
    return head.stdout.decode().strip(), bool(changed.strip())


def _checkout(repo: Path) -> str:
    """A name of this checkout that differs from that of a copy; empty if it was never applied."""
    file = state_dir(repo) / "checkout"
    return f"{file.read_text()} {repo}" if file.exists() else ""


def _differing(hashes: Mapping[str, str], second: Mapping[str, str]) -> list[str]:
    return sorted({name for name, _ in hashes.items() ^ second.items()})
