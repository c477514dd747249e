"""git, with a time limit and without the environment variables that would change its answers."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from dagster_mlops.core.child import ChildError, run_program

_TIMEOUT = 20.0  # seconds; a huge checkout on a slow disk
LATE = 124
"""The return code of a git that did not answer in time."""
# Set by git for the children of its hooks; they would point at another repository.
_AMBIENT = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"}
_QUIET = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}


def git(
    folder: Path, *arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None, timeout: float = _TIMEOUT
) -> "subprocess.CompletedProcess[bytes]":
    """Run git in `folder`. One that is missing (127) or late (:data:`LATE`) fails like any other, by return code."""
    command = ["git", *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in _AMBIENT} | _QUIET
    try:
        return run_program(command, cwd=folder, env={**environment, **(env or {})}, stdin=stdin, timeout=timeout)
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, b"", f"git cannot be started: {error}".encode())
    except ChildError:
        return subprocess.CompletedProcess(command, LATE, b"", f"git did not answer within {timeout:g} s".encode())
