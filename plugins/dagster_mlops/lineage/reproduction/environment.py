"""The environment that a training ran in, from its recorded packages, and its installation."""

import hashlib
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from importlib.metadata import distributions
from pathlib import Path
from typing import Literal

from dagster_mlops.core.child import ChildError, run_program
from dagster_mlops.core.code_state import LOCK_FILES
from dagster_mlops.core.git import git
from dagster_mlops.core.run_files import DECISIVE, PACKAGES
from dagster_mlops.errors import ReproductionError
from dagster_mlops.lineage.reproduction.trust import COMMIT, requirement_lines
from dagster_mlops.provenance import TrainingRun

Environment = Literal["new", "current"]
_TIMEOUT = 1800.0  # seconds: PyTorch with CUDA over a slow line
NO_UV = "the recorded environment is installed by uv, which is not here. Run: pip install uv"
# The rest of an environment holds the passwords and tokens of whoever runs the command.
_OF_MACHINE = (
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "LC_*", "TZ", "TMPDIR", "TMP", "TEMP"),
    *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"),
    *("CUDA_HOME", "CUDA_PATH", "NVIDIA_VISIBLE_DEVICES"),
)
_OF_PYTHON = {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME"}
_OF_UV = ("UV_*",)  # the addresses of package indexes, with the passwords for them
_TOML = ("uv.lock", "pylock.toml")
_POETRY = "poetry.lock"  # has no address for most packages, so that uv cannot install from it


def find_requirements(
    run: TrainingRun, files: Mapping[str, bytes], repository: Path | None
) -> tuple[str, bytes] | None:
    """Name and content of the file from which the environment of `run` can be installed; None if there is none.

    That is the recorded lock file, kept by the run or else by its commit. A run without one that can be installed keeps
    the versions of its packages.
    """

    def contents(name: str) -> Iterator[bytes]:
        if name in files:
            yield files[name]
        if (content := committed(name, run, repository)) is not None:
            yield content

    for name in (name for name in LOCK_FILES if run.lock_hash and name != _POETRY):
        for content in contents(name):
            if hashlib.sha256(content).hexdigest() == run.lock_hash:
                return name, content
    by_version = not run.lock_hash or any(True for _ in contents(_POETRY))
    return (PACKAGES, files[PACKAGES]) if by_version and PACKAGES in files else None


def committed(name: str, run: TrainingRun, repository: Path | None) -> bytes | None:
    """The content of a file at the top of the checkout, in the commit of `run`; None if it has none."""
    if repository is None or not COMMIT.fullmatch(run.code_commit):
        return None
    answer = git(repository, "show", f"{run.code_commit}:{name}")
    return answer.stdout if answer.returncode == 0 else None


def packages(text: bytes | str) -> dict[str, str]:
    """The version, or the address, of each package by name.

    >>> packages("numpy==2.3.0\\nshop @ git+https://host/shop@1a2b\\n# own==0.1 from file:///srv/own\\n")
    {'numpy': '2.3.0', 'shop': 'git+https://host/shop@1a2b', 'own': '0.1'}
    """
    versions = {}
    for line in (text.decode(errors="replace") if isinstance(text, bytes) else text).splitlines():
        stripped = line.removeprefix("# ").partition(" from file:")[0]
        name, between, version = stripped.partition(" @ " if " @ " in stripped else "==")
        if between:
            versions[name] = version
    return versions


def locked_versions(name: str, content: bytes) -> dict[str, str]:
    """The version of each package, by normalized name, in a lock file of this name; empty for one that is damaged.

    >>> locked_versions("requirements.lock", b"Scikit_Learn[all] ==1.7.0 --hash=sha256:1a")
    {'scikit-learn': '1.7.0'}
    """
    if name in (*_TOML, _POETRY):
        try:
            described = tomllib.loads(content.decode(errors="replace"))
        except tomllib.TOMLDecodeError:
            return {}
        packages = [*described.get("package", ()), *described.get("packages", ())]
        versions = [(str(package.get("name")), str(package.get("version", ""))) for package in packages]
    else:
        matches = (
            re.match(r"([\w.-]+)\s*(?:\[[^\]]*\])?\s*==\s*([\w.!+-]+)", line) for line in requirement_lines(content)
        )
        versions = [match.group(1, 2) for match in matches if match]
    return {_normalized(package): version for package, version in versions}


def installed_versions() -> dict[str, str]:
    """The version of each package that is installed here, by normalized name."""
    return {_normalized(package.metadata["Name"]): package.version for package in distributions()}


def _normalized(package: str) -> str:
    """https://packaging.python.org/specifications/name-normalization"""
    return re.sub(r"[-_.]+", "-", package).lower()


def find_uv() -> str | None:
    """The command that installs environments: the one beside this Python, else the one on the path."""
    neighbour = Path(sys.executable).with_name("uv")
    return str(neighbour) if neighbour.exists() else shutil.which("uv")


def install(name: str, content: bytes, *, python: str, folder: Path, code: Path) -> Path:
    """Make a new environment in `folder` from a file of packages, and with the checkout `code` if it is a package.

    Returns its Python.

    Raises:
        ReproductionError: uv is missing, or a package or this version of Python can no longer be installed.
    """
    file = folder.parent / name
    file.write_bytes(content)
    uv = find_uv()
    if uv is None:
        raise ReproductionError(NO_UV)
    interpreter = folder / "bin" / "python"
    target = ["--quiet", "--python", str(interpreter)]
    commands = [[uv, "venv", "--quiet", "--python", python, str(folder)]]
    if name == "uv.lock":
        (code / name).unlink(missing_ok=True)  # a link of that name would be written through
        (code / name).write_bytes(content)
        commands.append([uv, "sync", "--quiet", "--frozen", "--all-extras", "--project", str(code)])
    else:
        # No resolution: versions that were installed together are, also if their own requirements conflict.
        command = ["install", "--no-deps", "--requirements"] if name == PACKAGES else ["sync"]
        commands.append([uv, "pip", *command, str(file), *target])
        if _is_package(code):
            commands.append([uv, "pip", "install", "--no-deps", *target, "--editable", str(code)])
    before, environment = _untracked(code), {**child_variables(_OF_UV), "UV_PROJECT_ENVIRONMENT": str(folder)}
    for command in commands:
        try:
            result = run_program(command, cwd=code, env=environment, timeout=_TIMEOUT)
        except ChildError as error:
            message = f"the recorded environment was not installed from {name} in {_TIMEOUT:.0f} s."
            raise ReproductionError(message) from error
        if result.returncode:
            problem = result.stderr.decode(errors="replace").strip()[-1500:]
            raise ReproductionError(f"the recorded environment cannot be installed from {name}: {problem}")
    if built := _untracked(code) - before:
        # Files that the build has left there are not changes of the code.
        exclude = code / ".git" / "info" / "exclude"
        exclude.parent.mkdir(exist_ok=True)
        with exclude.open("a") as file:
            file.writelines("/" + re.sub(r"([\\*?[ ])", r"\\\1", path) + "\n" for path in sorted(built))
    return interpreter


def _is_package(code: Path) -> bool:
    """True if a checkout can be installed: many a pyproject.toml has only settings of tools, or dependencies."""
    if (code / "setup.py").exists():
        return True
    project = code / "pyproject.toml"
    return project.exists() and bool(re.search(r"(?m)^\s*\[build-system\]", project.read_text(encoding="utf-8")))


def _untracked(code: Path) -> set[str]:
    paths = git(code, "ls-files", "--others", "--exclude-standard", "-z").stdout
    return set(filter(None, os.fsdecode(paths).split("\0")))


def child_variables(names: Iterable[str] = ()) -> dict[str, str]:
    """This process's environment variables that a rerun sees: those of the machine, and those that `names` allow.

    The names may be patterns, such as ``AWS_*``. What would tie the child to this process's Python is never passed.
    """
    patterns = (*_OF_MACHINE, *DECISIVE, *names)
    return {
        name: value
        for name, value in os.environ.items()
        if name not in _OF_PYTHON and any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def names_not_passed(recorded: Iterable[str], names: Iterable[str]) -> list[str]:
    """The variables that are set here and that the recorded run has read, but that a rerun does not see."""
    passed = child_variables(names)
    return sorted(name for name in recorded if name in os.environ and name not in passed)
