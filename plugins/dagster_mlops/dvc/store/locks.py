"""Waits for the locks of a repository, at most as long as told, and names who holds them."""

import hashlib
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dagster_mlops.core.extras import extra
from dagster_mlops.core.files import exclusive
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
    deadline = time.monotonic() + timeout
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(lock_repo(repo))  # waits for 3 s by itself
                break
            except lock_error as error:
                if time.monotonic() > deadline:
                    file = Path(repo.lock.lockfile)
                    # The file itself is the lock then, and outlives its holder.
                    dead = " If it died, delete that file." if repo.config["core"].get("hardlink_lock") else ""
                    raise DatasetError(
                        f"{file} has been held by process {_holder(file)} for {timeout:g} s. "
                        f"Wait for that process, stop it, or raise lock_timeout.{dead}"
                    ) from error
        yield


def alone(root: Path, timeout: float) -> AbstractContextManager[None]:
    """Be the only process that creates the repository `root`: before it exists, there is no lock of DVC's in it.

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
