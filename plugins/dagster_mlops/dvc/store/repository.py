"""A DVC repository as a whole: made in one step, and locked with a time limit."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import repeat
from pathlib import Path

from dagster_mlops.core.extras import extra
from dagster_mlops.core.files import exclusive
from dagster_mlops.core.private_files import open_private
from dagster_mlops.core.waits import retry
from dagster_mlops.dvc.lazy import Repo
from dagster_mlops.errors import DatasetError

_PREFIX = ".dvc-new-"
# The lines that DVC itself writes when it first opens a repository.
_IGNORED = "/config.local\n/tmp\n/cache\n"


def create(root: Path, *, versioned: bool, remote: tuple[str, str] | None) -> None:
    """Put a ``.dvc`` folder into `root`, with `remote` (name, URL) as the default, unless there is one.

    Call it under a lock: the remains of a killed call are removed. `versioned` says whether git tracks `root`.
    """
    folder = root / ".dvc"
    if (folder / "config").exists():
        return
    for remains in root.glob(f"{_PREFIX}*"):
        shutil.rmtree(remains, ignore_errors=True)
    if folder.exists():
        shutil.rmtree(folder)  # without a config there is nothing in it yet
    with _beside(root) as new:
        config = extra("dvc.config").Config.init(str(new))
        if versioned:
            (new / ".gitignore").write_text(_IGNORED)
        else:
            with config.edit() as settings:
                settings["core"]["no_scm"] = True
        if remote:
            _write_remote(new, *remote, place=folder)
        extra("dvc.ignore").init(str(root))
        new.chmod(0o755)
        new.rename(folder)


def set_remote(root: Path, name: str, url: str) -> None:
    """Make `url` the default remote in ``.dvc/config.local``. Call it under the repository's lock."""
    local = root / ".dvc" / "config.local"
    with _beside(root) as new:
        _write_remote(new, name, url, place=local.parent)
        os.replace(new / local.name, local)


def _write_remote(folder: Path, name: str, url: str, *, place: Path) -> None:
    """Write the ``config.local`` that moves from `folder` to `place`, whose own it replaces."""
    local = folder / "config.local"
    like = place if place.exists() else place.parent
    os.close(open_private(local, os.O_WRONLY, like=like))  # the URL may hold a password
    if (before := place / local.name).exists():
        shutil.copyfile(before, local)
    with extra("dvc.config").Config(str(folder)).edit("local") as config:
        config["remote"].setdefault(name, {})["url"] = url
        config["core"]["remote"] = name


@contextmanager
def _beside(root: Path) -> Iterator[Path]:
    """A scratch folder in `root`: relative paths in a configuration mean the same there as in ``.dvc``."""
    new = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextmanager
def locked(repo: Repo, timeout: float) -> Iterator[None]:
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
