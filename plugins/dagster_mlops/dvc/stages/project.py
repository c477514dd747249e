"""The stages and tracked data of a DVC project, read without importing DVC."""

import hashlib
import json
import os
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from dagster_mlops.core.child import ChildError, run_child
from dagster_mlops.core.environment import child_environment
from dagster_mlops.core.extras import extra
from dagster_mlops.core.files import digest, write_atomically
from dagster_mlops.core.git import git
from dagster_mlops.core.site_cache import site_cache_variables
from dagster_mlops.errors import DatasetError

_FORMAT = 3  # of the description; part of its key
_CACHE = "dagster_mlops/project.json"


@dataclass(frozen=True)
class Out:
    """One output of a stage.

    `path` is relative to the repository; `cached` is false where git tracks it instead. `push` is false where it stays
    on this machine, `remote` the DVC remote that it names.
    """

    path: str
    cached: bool = True
    desc: str = ""
    type: str = ""
    labels: tuple[str, ...] = ()
    push: bool = True
    remote: str | None = None


@dataclass(frozen=True)
class Stage:
    """One stage of a ``dvc.yaml``, with ``foreach``, ``matrix`` and templates resolved by DVC.

    `wdir` is the folder, relative to the repository, in which the command runs. `deps` are paths relative to the
    repository, or URLs; `code` those of them that git tracks and no stage or pointer produces. `params` are the values
    by file and key. `code_version` hashes command, code and parameters.
    """

    name: str
    file: str
    wdir: str = "."
    cmd: tuple[str, ...] = ()
    desc: str = ""
    frozen: bool = False
    deps: tuple[str, ...] = ()
    outs: tuple[Out, ...] = ()
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    code: tuple[str, ...] = ()
    code_version: str = ""

    @property
    def address(self) -> str:
        """Its name in DVC's command line: ``train``, or ``models/dvc.yaml:train``."""
        return self.name if self.file == "dvc.yaml" else f"{self.file}:{self.name}"

    @property
    def paths(self) -> list[str]:
        """The paths of its outputs."""
        return [out.path for out in self.outs]

    def in_repo(self, path: str) -> str:
        """A path of the stage's ``dvc.lock``, which is relative to `wdir`, relative to the repository."""
        return path if "://" in path else os.path.normpath(Path(self.wdir, path)).replace(os.sep, "/")


@dataclass(frozen=True)
class TrackedData:
    """A file or folder that a ``.dvc`` file tracks: added, or imported from elsewhere."""

    path: str
    file: str
    desc: str = ""
    imported: bool = False

    @property
    def address(self) -> str:
        """A name of it that no stage has."""
        return f"{self.path} ({self.file})"

    @property
    def paths(self) -> list[str]:
        """Its only path."""
        return [self.path]


@dataclass(frozen=True)
class Project:
    """The stages and tracked data of a DVC repository.

    `metrics` and `plots` are the files that it defines beside those of stages, `read` the files that define it.
    """

    root: Path
    stages: tuple[Stage, ...]
    data: tuple[TrackedData, ...]
    metrics: tuple[str, ...] = ()
    plots: tuple[str, ...] = ()
    read: tuple[str, ...] = ()

    def makers(self, path: str) -> list[Stage | TrackedData]:
        """The stages and tracked data whose paths are the file or folder `path`, contain it, or are in it."""
        above = ["/".join(path.split("/")[:count]) for count in range(1, path.count("/") + 1)]
        names = [name for name in (*above, ".") if name in self._by_path] + below(self._paths, path)
        return [*{id(maker): maker for name in names for maker in self._by_path[name]}.values()]

    @cached_property
    def tracked(self) -> Set[str]:
        """The paths of all outputs and tracked data."""
        return self._by_path.keys()

    @cached_property
    def _by_path(self) -> dict[str, list[Stage | TrackedData]]:
        makers: dict[str, list[Stage | TrackedData]] = defaultdict(list)
        for maker in (*self.stages, *self.data):
            for path in maker.paths:
                makers[path].append(maker)
        return dict(makers)

    @cached_property
    def _paths(self) -> list[str]:
        return sorted(self._by_path)


def below(names: Sequence[str], path: str) -> list[str]:
    """Those of the sorted `names` that are `path` or are in it."""
    if path == ".":
        return list(names)
    first = bisect_left(names, path)
    same = [path] if names[first : first + 1] == [path] else []
    return [*same, *names[bisect_left(names, f"{path}/") : bisect_left(names, f"{path}0")]]  # "0" follows "/"


def load_project(repo: str | Path, *, timeout: float = 120) -> Project:
    """The project in the DVC repository `repo`, without importing DVC here.

    DVC resolves the project in a separate process. Its answer is stored below ``.dvc/tmp``, together with the hashes of
    the files it read, so that a call takes more than a few milliseconds only after one of them changed. Code files are
    hashed each time.

    Raises:
        DatasetError: there is no DVC repository, or DVC cannot read it within `timeout` seconds.
        MissingExtraError: DVC is not installed.
    """
    root = Path(repo).expanduser().resolve()
    if not (root / ".dvc").is_dir():
        raise DatasetError(f"{root} is not a DVC repository: it has no .dvc folder. Run `dvc init` or correct repo=.")
    files = _files(root)
    definitions = sorted(name for name in files if _defines(name))
    cache_file = root / ".dvc" / "tmp" / _CACHE
    description = _cached(cache_file, root, definitions)
    if description is None:
        description = _described(root, timeout)
        hashes = _hashes(root, sorted({*definitions, *description["read"]}))
        entry = {"version": _version(), "definitions": definitions, "read": hashes, "project": description}
        with suppress(OSError):  # in a read-only checkout, the project is described each time
            write_atomically(cache_file, json.dumps(entry))
    project = TypeAdapter(Project).validate_python({"root": root, **description})
    files = sorted({*files, *_beside(root, project)})
    hash_of = cache(lambda name: _hash(root / name))  # many stages may run the same code
    return replace(project, stages=tuple(_with_code(project, stage, files, hash_of) for stage in project.stages))


def _defines(name: str) -> bool:
    file = name.rpartition("/")[2]
    return file in ("dvc.yaml", ".dvcignore") or (file.endswith(".dvc") and file != ".dvc")


def _files(root: Path) -> list[str]:
    """The files that are not ignored, relative to the repository. Data that DVC tracks is ignored by git."""
    if (names := _listed(root)) is not None:
        return sorted(names)
    paths: list[str] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        paths.extend(Path(folder, name).relative_to(root).as_posix() for name in names)
    return sorted(paths)


def _listed(root: Path, *paths: str) -> list[str] | None:
    """The files below `root`, or at `paths`, that git does not ignore; None without git."""
    options = ("--cached", "--others", "--exclude-standard", "-z", "--")
    listing = git(root, "--literal-pathspecs", "ls-files", *options, *paths)
    if listing.returncode:
        return None
    return list({os.fsdecode(name) for name in listing.stdout.split(b"\0") if name})


def _beside(root: Path, project: Project) -> list[str]:
    """The files beside a project in a subfolder of its checkout that its stages read."""
    deps = {dep for stage in project.stages for dep in stage.deps if dep.startswith("../")}
    return _listed(root, *deps) or [] if deps else []


def _described(root: Path, timeout: float) -> dict[str, Any]:
    try:
        script = Path(__file__).with_name("_describe_script.py")
        variables = {**child_environment("DVC_*", "GIT_*"), **site_cache_variables(root)}
        answer = run_child(script, str(root), cwd=root, env=variables, timeout=timeout)
    except ChildError as failure:
        _version()  # raises MissingExtraError if DVC is not installed
        answer = {"error": failure.reason}
    if "error" in answer:
        raise DatasetError(
            f"DVC cannot read the project {root}: {answer['error'].rstrip('.')}. Fix it (`dvc dag` shows the same), "
            "then reload."
        )
    return answer


def _cached(file: Path, root: Path, definitions: Sequence[str]) -> dict[str, Any] | None:
    try:
        entry = json.loads(file.read_text())
        same = entry["version"] == _version() and entry["definitions"] == list(definitions)
        return entry["project"] if same and _hashes(root, entry["read"]) == entry["read"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none yet, or damaged


def _hashes(root: Path, names: Any) -> dict[str, str]:
    return {name: _hash(root / name) for name in names}


def _hash(file: Path) -> str:
    return digest(file) if file.is_file() else ""


def _with_code(project: Project, stage: Stage, files: Sequence[str], hash_of: Callable[[str], str]) -> Stage:
    code = tuple(dep for dep in stage.deps if "://" not in dep and not project.makers(dep))
    files_by_dep = {dep: below(files, dep) for dep in code}
    code_hashes = {name: hash_of(name) for names in files_by_dep.values() for name in names}
    content = {"cmd": stage.cmd, "params": stage.params, "code": code_hashes}
    code_version = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    return replace(stage, code=tuple(dep for dep, names in files_by_dep.items() if names), code_version=code_version)


def _version() -> str:
    try:
        return f"{version('dvc')}/{_FORMAT}"
    except PackageNotFoundError:
        extra("dvc")
        raise
