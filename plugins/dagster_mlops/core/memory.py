"""A cache for slow answers of tools, in a repository's state folder."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dagster_mlops.core.files import STATE, exclusive, write_atomically
from dagster_mlops.errors import DagsterMlopsError

_SIZE = 4  # answers by name: deployments may take turns, e.g. by an environment variable


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
        root: Repository that is described.
        name: Name of the file with the answers, without ``.json``.
        key: Hash of everything that decides the answer.
        describe: Function for a missing answer. Of several processes one calls it, the others wait.
        timeout: Seconds to wait for another process.
        error: Error when that takes longer.
    """
    for folder in (root / STATE, _user_state(root)):
        answer = _read(folder / f"{name}.json").get(key)
        if answer is not None:
            return answer
    folder = state_dir(root)
    with exclusive(folder / f"{name}.lock", timeout, error=error):
        answer = _read(folder / f"{name}.json").get(key)  # of the process that this one has waited for
        if answer is None:
            answer = describe()
            newest = [*_read(folder / f"{name}.json").items()][1 - _SIZE :]
            write_atomically(folder / f"{name}.json", json.dumps(dict([*newest, (key, answer)])))
    return answer


def state_dir(root: Path) -> Path:
    """A folder for caches and locks: in the repository, ignored by git, or in the user's cache if that is read-only."""
    inside = root / STATE
    try:
        inside.mkdir(exist_ok=True)
        if not (inside / ".gitignore").exists():
            write_atomically(inside / ".gitignore", "*\n")
    except OSError:
        inside = _user_state(root)
        inside.mkdir(parents=True, exist_ok=True)
    return inside


def _read(file: Path) -> Mapping[str, dict[str, Any]]:
    """The answers in a file, by key; none if it is missing or damaged."""
    try:
        answers = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return answers if isinstance(answers, dict) else {}


def _user_state(root: Path) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "dagster-mlops" / hashlib.sha256(str(root).encode()).hexdigest()[:16]
