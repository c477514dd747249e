"""Waits for the locks of a repository up to a time limit, and names the process that holds them."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING

from dagster_mlops.core.extras import extra
from dagster_mlops.core.files import exclusive
from dagster_mlops.core.waits import retry
from dagster_mlops.errors import DatasetError

if TYPE_CHECKING:
    from dvc.repo import Repo


@contextmanager
def locked(repo: "Repo", timeout: float) -> Iterator[None]:
    """Hold DVC's lock on a repository.

    Raises:
        DatasetError: another process holds it for `timeout` seconds.
    """
    lock_repo, lock_error = extra("dvc.repo").lock_repo, extra("dvc.lock").LockError
    with ExitStack() as stack:
        try:
            retry(
                lambda: stack.enter_context(lock_repo(repo)),
                is_transient=lambda error: isinstance(error, lock_error),
                timeout=timeout,
                pauses=repeat(0),  # `lock_repo` itself waits for 3 s
            )
        except lock_error as error:
            file = Path(repo.lock.lockfile)
            # With this option the file itself is the lock, and stays when its holder dies.
            hint = " If it died, delete that file." if repo.config["core"].get("hardlink_lock") else ""
            raise DatasetError(
                f"{file} has been held by process {_holder(file)} for {timeout:g} s. "
                f"Wait for that process, stop it, or raise lock_timeout.{hint}"
            ) from error
        yield


def alone(root: Path, timeout: float) -> AbstractContextManager[None]:
    """Be the only process that creates the repository `root`, which has no DVC lock before it exists.

    Raises:
        DatasetError: another process has been creating it for `timeout` seconds.
    """
    name = f"dagster-mlops-{hashlib.sha256(str(root).encode()).hexdigest()[:16]}.lock"
    return exclusive(Path(tempfile.gettempdir(), name), timeout, error=DatasetError)


def _holder(file: Path) -> str:
    pid = file.read_text(errors="replace").strip()
    psutil = extra("psutil", extra="dvc")
    try:
        return f"{pid} ({psutil.Process(int(pid)).name()})"
    except (ValueError, psutil.Error):
        return pid or "unknown"
