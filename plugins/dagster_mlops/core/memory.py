"""Answers that took a tool seconds to give, remembered in a repository's state folder until something changes."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dagster_mlops.core.files import exclusive, write_atomically
from dagster_mlops.errors import DagsterMlopsError

_STATE = ".dagster_mlops"
_KEPT = 4  # descriptions: one per deployment that takes turns, e.g. by an environment variable


def remembered(
    root: Path,
    name: str,
    key: str,
    describe: Callable[[], dict[str, Any]],
    *,
    timeout: float,
    error: type[DagsterMlopsError] = DagsterMlopsError,
) -> dict[str, Any]:
    """The JSON object that `describe` gave for `key`, from the state folder of `root`; else `describe` is called once.

        remembered(repo, "feature_views", content_key(repo), lambda: parse(repo), timeout=180)

    Args:
        root: The repository that is described.
        name: Name of the file, without ``.json``, that remembers the answers.
        key: A hash of everything that decides the answer.
        describe: Called once. Of several processes one calls it, the others wait.
        timeout: Seconds to wait for another process.
        error: What is raised when that took longer.
    """
    for folder in (root / _STATE, _user_state(root)):
        known = _read(folder / f"{name}.json").get(key)
        if known is not None:
            return known
    folder = state_dir(root)
    with exclusive(folder / f"{name}.lock", timeout, error=error):  # whoever waits here finds the first one's answer
        known = _read(folder / f"{name}.json").get(key)
        if known is None:
            known = describe()
            kept = [*_read(folder / f"{name}.json").items()][1 - _KEPT :]
            write_atomically(folder / f"{name}.json", json.dumps(dict([*kept, (key, known)])))
    return known


def state_dir(root: Path) -> Path:
    """A folder for caches and locks: inside the repository and ignored by git, or the user's cache when read-only."""
    inside = root / _STATE
    try:
        inside.mkdir(exist_ok=True)
        if not (inside / ".gitignore").exists():
            write_atomically(inside / ".gitignore", "*\n")
    except OSError:
        inside = _user_state(root)
        inside.mkdir(parents=True, exist_ok=True)
    return inside


def _read(file: Path) -> Mapping[str, dict[str, Any]]:
    """What is remembered, by key; nothing when it is not there or damaged."""
    try:
        answers = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return answers if isinstance(answers, dict) else {}


def _user_state(root: Path) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "dagster-mlops" / hashlib.sha256(str(root).encode()).hexdigest()[:16]
