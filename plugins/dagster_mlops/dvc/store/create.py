"""Makes a folder a DVC repository, or gives one a remote, in one step: other processes see all of it or nothing.

``dvc init`` writes its files into the final folder one by one, and deletes caches that another process, which has seen
the first of these files, may have opened already.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dagster_mlops.core.extras import extra

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
            _write_remote(new, *remote)
        extra("dvc.ignore").init(str(root))
        new.rename(folder)


def set_remote(root: Path, name: str, url: str) -> None:
    """Make `url` the default remote in ``.dvc/config.local``. Call it under the repository's lock."""
    local = root / ".dvc" / "config.local"
    with _beside(root) as new:
        if local.exists():
            shutil.copyfile(local, new / local.name)
        _write_remote(new, name, url)
        os.replace(new / local.name, local)


def _write_remote(folder: Path, name: str, url: str) -> None:
    with extra("dvc.config").Config(str(folder)).edit("local") as config:
        config["remote"].setdefault(name, {})["url"] = url
        config["core"]["remote"] = name


@contextmanager
def _beside(root: Path) -> Iterator[Path]:
    """A scratch folder in `root`: relative paths in a configuration mean the same there as in ``.dvc``."""
    new = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
    new.chmod(0o755)
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)
