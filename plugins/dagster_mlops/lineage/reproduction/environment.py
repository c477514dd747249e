"""The environment that a training ran in: what is known of its packages, and how they are installed again."""

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from dagster_mlops.core.child import ChildError, run_program
from dagster_mlops.core.code_state import LOCK_FILES
from dagster_mlops.core.git import git
from dagster_mlops.core.run_files import PACKAGES
from dagster_mlops.errors import ReproductionError
from dagster_mlops.provenance import TrainingRun

Environment = Literal["new", "current"]
_TIMEOUT = 1800.0  # seconds: PyTorch with CUDA over a slow line
# Nothing here installs Poetry's, which names no address for most packages.
_INSTALLABLE = tuple(name for name in LOCK_FILES if name != "poetry.lock")


def find_requirements(
    run: TrainingRun, files: Mapping[str, bytes], repository: Path | None
) -> tuple[str, bytes] | None:
    """Name and content of what the environment of `run` can be installed from; None when nothing is left of it.

    That is the lock file of then, which the run keeps, or else its commit. A run without one that can be installed
    keeps the versions that were there.
    """
    for name in _INSTALLABLE if run.lock_hash else ():
        kept = [files[name]] if name in files else []
        if repository is not None:
            shown = git(repository, "show", f"{run.code_commit}:{name}")
            kept += [shown.stdout] if shown.returncode == 0 else []
        for content in kept:
            if hashlib.sha256(content).hexdigest() == run.lock_hash:
                return name, content
    by_version = not run.lock_hash or _locked_by_poetry(run, files, repository)
    return (PACKAGES, files[PACKAGES]) if by_version and PACKAGES in files else None


def _locked_by_poetry(run: TrainingRun, files: Mapping[str, bytes], repository: Path | None) -> bool:
    name = "poetry.lock"
    return name in files or (
        repository is not None and git(repository, "cat-file", "-e", f"{run.code_commit}:{name}").returncode == 0
    )


def packages(listed: bytes | str) -> dict[str, str]:
    """The version, or the address, of each package by name.

    >>> packages("numpy==2.3.0\\nshop @ git+https://host/shop@1a2b\\n# own==0.1 from file:///srv/own\\n")
    {'numpy': '2.3.0', 'shop': 'git+https://host/shop@1a2b', 'own': '0.1'}
    """
    text = listed.decode(errors="replace") if isinstance(listed, bytes) else listed
    found = {}
    for line in text.splitlines():
        stripped = line.removeprefix("# ").partition(" from file:")[0]
        name, between, version = stripped.partition(" @ " if " @ " in stripped else "==")
        if between:
            found[name] = version
    return found


def install(name: str, content: bytes, *, python: str, folder: Path, code: Path) -> Path:
    """Make a new environment in `folder` with what the file says, and the checkout `code` where it is a package.

    Returns its Python.

    Raises:
        ReproductionError: uv is not there, or a package or this version of Python cannot be had any more.
    """
    file = folder.parent / name
    file.write_bytes(content)
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        raise ReproductionError("the environment of then is installed by uv, which is not here. Run: pip install uv")
    installed = folder / "bin" / "python"
    into = ["--quiet", "--python", str(installed)]
    commands = [[uv, "venv", "--quiet", "--python", python, str(folder)]]
    if name == "uv.lock":
        (code / name).write_bytes(content)
        commands.append([uv, "sync", "--quiet", "--frozen", "--all-extras", "--project", str(code)])
    else:
        # What was installed side by side is installed so again, also where the packages say that it does not fit.
        how = ["install", "--no-deps", "--requirements"] if name == PACKAGES else ["sync"]
        commands.append([uv, "pip", *how, str(file), *into])
        if _is_package(code):
            commands.append([uv, "pip", "install", "--no-deps", *into, "--editable", str(code)])
    before = _untracked(code)
    for command in commands:
        try:
            done = run_program(
                command, cwd=code, env={**ambient(), "UV_PROJECT_ENVIRONMENT": str(folder)}, timeout=_TIMEOUT
            )
        except ChildError as late:
            raise ReproductionError(
                f"the environment of then was not installed from {name} in {_TIMEOUT:.0f} s."
            ) from late
        if done.returncode:
            problem = done.stderr.decode(errors="replace").strip()[-1500:]
            raise ReproductionError(f"the environment of then cannot be installed from {name}: {problem}")
    if built := _untracked(code) - before:
        # What the build has left there is no change of the code.
        excluded = code / ".git" / "info" / "exclude"
        excluded.parent.mkdir(exist_ok=True)
        with excluded.open("a") as file:
            file.writelines("/" + re.sub(r"([\\*?[ ])", r"\\\1", path) + "\n" for path in sorted(built))
    return installed


def _is_package(code: Path) -> bool:
    """Whether a checkout can be installed: many a pyproject.toml only has the settings of tools, or dependencies."""
    if (code / "setup.py").exists():
        return True
    project = code / "pyproject.toml"
    return project.exists() and bool(re.search(r"(?m)^\s*\[build-system\]", project.read_text(encoding="utf-8")))


def _untracked(code: Path) -> set[str]:
    listed = git(code, "ls-files", "--others", "--exclude-standard", "-z").stdout
    return set(filter(None, os.fsdecode(listed).split("\0")))


def ambient() -> dict[str, str]:
    """This process's environment without what ties it to its own Python."""
    return {
        name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")
    }
