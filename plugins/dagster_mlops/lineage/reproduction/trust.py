"""Limits to a record's word: others can write it, so that it is judged before anything runs.

Of a run's files, only a commit that this repository has is taken as it is. The rest is data: a record names things by
hash, by version and by path in the checkout.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dagster_mlops.core.git import git
from dagster_mlops.core.inside import plain_name
from dagster_mlops.core.run_files import DECISIVE
from dagster_mlops.errors import ReproductionError

COMMIT = re.compile(r"[0-9a-f]{4,64}")
PYTHON = re.compile(r"\d+\.\d+(\.\d+)?([a-z]+\d+)?\+?")
# Numbers, names of GPUs and of modes.
_VALUE = re.compile(r"[\w.,:-]*")
_ZONE = re.compile(r"\w[\w+-]*(/\w[\w+-]*)*")  # as `Europe/Berlin`: one that begins with a slash or a colon is a file
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
# `name==version`, with extras, a marker and hashes: https://packaging.python.org/specifications/version-specifiers/
_REQUIREMENT = re.compile(
    r"[A-Za-z0-9][\w.-]*(\[[\w.,\s-]*\])?\s*==\s*[\w.!+-]+\s*(;((?!--)[^#@:/])*)?(\s+--hash=\w+:[0-9a-f]+)*"
)
_NAMES_PLACE = {"path", "directory", "editable", "virtual", "git", "url", "registry", "index", "subdirectory"}
_PYPI = {"pypi.org", "files.pythonhosted.org"}


def switches(system: Mapping[str, Any]) -> dict[str, str]:
    """The variables of the recorded machine that a rerun sets: those that a training keeps, and no others."""
    recorded = system.get("environment")
    values = recorded if isinstance(recorded, dict) else {}
    texts = {name: value for name in DECISIVE if isinstance(value := values.get(name), str)}
    return {name: value for name, value in texts.items() if (_ZONE if name == "TZ" else _VALUE).fullmatch(value)}


def step_problem(step: Mapping[str, Any], *, definitions: Path | None = None) -> str:
    """The first thing in a recorded step that leads out of the checkout, or is not a name; empty where there is none.

    `definitions` is the file that the caller names for definitions outside of the checkout.
    """
    location, code = step.get("location") or {}, step.get("code") or {}
    for field in ("module", "fn_name", "attribute"):
        if (name := location.get(field)) and not _NAME.fullmatch(str(name)):
            return f"its {field} {name!r} is not a name in Python."
    file = location.get("python_file", "")
    if Path(file).is_absolute() and definitions is None:
        return (
            f"the definitions are in {file}, outside of the checkout. A record may have been written by others: if it "
            "is a file of yours, name it with --definitions."
        )
    paths = [code.get("cwd", ""), *code.get("path", ()), *code.get("submodules", {})]
    for path in filter(None, [*paths, "" if Path(file).is_absolute() else file]):
        if path != "." and leads_out(path):
            return f"it names the path {path!r}, which is outside of the checkout."
    for path, commit in code.get("submodules", {}).items():
        if not COMMIT.fullmatch(str(commit)):
            return f"of the submodule {path}, {str(commit)[:60]!r} is not a commit."
    return ""


def safe_step(step: Mapping[str, Any], *, definitions: Path | None = None) -> dict[str, Any]:
    """The step with the caller's `definitions`, and without a working directory outside of the checkout.

    Python would import from that folder whatever is there today.
    """
    location = dict(step.get("location") or {})
    if definitions is not None and Path(location.get("python_file", "")).is_absolute():
        location["python_file"] = str(definitions.absolute())
    folder = location.get("working_directory", ".")
    if Path(folder).is_absolute() or ".." in Path(folder).parts:
        del location["working_directory"]
    return {**step, "location": location}


def requirements_problem(name: str, content: bytes) -> str:
    """The first line, or address, of a run's lock file that names more than versions; empty where there is none."""
    if name in ("uv.lock", "pylock.toml"):
        try:
            described = tomllib.loads(content.decode(errors="replace"))
        except tomllib.TOMLDecodeError as error:
            return f"it is not TOML: {error}"
        return next((f"it names {place!r}" for place in _places(described)), "")
    for requirement in requirement_lines(content):
        if not _REQUIREMENT.fullmatch(requirement):
            return f"it has the line {requirement[:200]!r}"
    return ""


def requirement_lines(content: bytes) -> list[str]:
    """The lines of a file of requirements, without comments, and with those that are continued as one."""
    text = re.sub(r"\\\r?\n", " ", content.decode(errors="replace"))
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())
    return [line for line in lines if line]


def _places(value: Any, name: str = "") -> Iterator[str]:
    """The addresses that are not of PyPI, and the paths that lead out of the project."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _places(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _places(inner, name)
    elif isinstance(value, str):
        if "//" in value or (name in _NAMES_PLACE and ":" in value):  # installers take https:host for https://host
            is_foreign = urlsplit(value).hostname not in _PYPI
        else:
            is_foreign = name in _NAMES_PLACE and value != "." and leads_out(value)
        if is_foreign:
            yield value


def leads_out(path: str) -> bool:
    """True for a recorded path that is not below the folder that it is relative to."""
    try:
        plain_name(path, error=ReproductionError)
    except ReproductionError:
        return True
    return False


def branch_of(repository: Path, commit: str, branches: Sequence[str]) -> str:
    """A branch, local or of a remote, whose name fits one of the patterns and whose history has the commit, or ""."""
    command = ("for-each-ref", "--contains", commit, "--format=%(refname)", "refs/heads", "refs/remotes")
    for ref in git(repository, *command).stdout.decode(errors="replace").splitlines():
        name = ref.removeprefix("refs/heads/")
        name = name if name != ref else ref.removeprefix("refs/remotes/").partition("/")[2]
        if any(fnmatchcase(name, pattern) for pattern in branches):
            return name
    return ""
