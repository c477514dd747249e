"""What a tool can do for this library, so that the next tool is a folder.

A tool joins by one entry point in the group ``dagster_mlops.tools``: a class, or a function, that takes no argument and
returns a :class:`Tool`. Importing it must be cheap; the tool itself is imported where it is used.

    [project.entry-points."dagster_mlops.tools"]
    wandb = "acme.wandb.tool:WandbTool"

Every tool answers for its refs. What else it can do it says by having the methods of a capability, one of the protocols
below; there is nothing to register and no base class. These are the methods that *this library* calls: users are given
the tool's own objects by its resource.

    tool = tool_for("wandb", KeepsRuns)
    tool.files(ref, "code")

:mod:`dagster_mlops.testing` has a check for each capability that a new tool can be held against.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import yaml

from dagster_mlops.errors import ToolError
from dagster_mlops.provenance import Answer, Deleted, Faulty, Inaccessible, ModelVersion, Ref

GROUP = "dagster_mlops.tools"
_C = TypeVar("_C")


@runtime_checkable
class Tool(Protocol):
    """Anything that keeps what a ref names. It is known by the name of its entry point, which is `Ref.tool`."""

    def resolve(self, ref: Ref) -> Answer:
        """Answer for one ref: never raise for a thing that is missing, never block longer than some seconds."""
        ...


@runtime_checkable
class KeepsRuns(Tool, Protocol):
    """A tracker that keeps files and a model with each training run; a DagsterMlopsError says why not.

    `rerun` is the Python script that runs a training step again, in the environment that the run recorded.
    """

    rerun: Path

    def files(self, ref: Ref, folder: str) -> dict[str, bytes]:
        """The files right below `folder`, by name."""
        ...

    def find_model(self, ref: Ref) -> Inaccessible | Deleted | Faulty | None:
        """The reason why the run's one model is not there; None when it is."""
        ...

    def fetch_model(self, ref: Ref, folder: Path) -> Path:
        """Copy the model below `folder`; returns where it is."""
        ...


class Datasets(Protocol):
    """Reads any version of the datasets of one place back; a ``DvcResource`` does. A DagsterMlopsError says why not."""

    def load(self, path: str, kind: Any = None, *, md5: str | None = None) -> Any:
        """The content as a `kind`: a frame or table type, ``bytes``, ``str`` or ``Path``."""
        ...

    def read_path(self, path: str, *, md5: str | None = None) -> Path:
        """A local file or folder with the content."""
        ...


@runtime_checkable
class KeepsDatasets(Tool, Protocol):
    """A tool that keeps every version of a dataset."""

    def datasets(self, at: str) -> Datasets:
        """The datasets that are kept at `at`: a repository, a bucket, a branch."""
        ...


@runtime_checkable
class RebuildsData(Tool, Protocol):
    """A tool that can make the data behind a ref again; a DagsterMlopsError says why not."""

    def rebuild(self, ref: Ref, folder: Path) -> Path:
        """Write a Parquet file below `folder` that is proven to hold what the ref's record says."""
        ...


@dataclass(frozen=True)
class StoredModel:
    """The files of a model version: an MLmodel folder, which any registry can hold."""

    folder: Path
    version: ModelVersion
    flavors: Mapping[str, Mapping[str, Any]]
    signature: Mapping[str, Any]
    requirements: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path, version: ModelVersion) -> "StoredModel":
        """Describe a folder by its MLmodel file and its ``requirements.txt``.

        Raises:
            OSError: there is no MLmodel file.
        """
        described = yaml.safe_load((folder / "MLmodel").read_text()) or {}
        file = folder / "requirements.txt"
        lines = file.read_text().splitlines() if file.exists() else []
        return cls(
            folder=folder,
            version=version,
            flavors=described.get("flavors") or {},
            signature=described.get("signature") or {},
            requirements=tuple(line.strip() for line in lines if line.strip()),
        )


@runtime_checkable
class HoldsModels(Protocol):
    """An open model registry, which a resource hands out. `tool` is its name in records and metadata keys.

    Whatever is missing (a model, a version, an alias) is a ModelVersionError.
    """

    tool: str

    def version(self, name: str, which: str = "") -> ModelVersion:
        """The record of a version: its number, ``@alias``, or the newest one."""
        ...

    def metrics(self, version: ModelVersion) -> Mapping[str, float]:
        """All metrics of a version, also those that are not finite."""
        ...

    def move(self, name: str, alias: str, to: str, *, expected: str) -> bool:
        """Move `alias` to version `to`, if version `expected` holds it (empty: no version); False if another does."""
        ...

    def notes(self, version: ModelVersion) -> Mapping[str, str]:
        """The texts that were noted on a version, by key."""
        ...

    def note(self, version: ModelVersion, key: str, text: str) -> None:
        """Keep a text on a version, in place of an earlier one with this key."""
        ...

    def fetch(self, version: ModelVersion, folder: Path) -> StoredModel:
        """Copy the files of a version below `folder`, once it is sure that they are those that were stored."""
        ...

    def url(self, version: ModelVersion) -> str:
        """The version's page in the registry's UI; empty where there is none."""
        ...


@runtime_checkable
class KeepsFiles(Protocol):
    """A registry that keeps files beside the model of a version; a missing file is a ModelVersionError."""

    def write_file(self, version: ModelVersion, path: str, content: bytes) -> None:
        """Keep a file with a version."""
        ...

    def read_file(self, version: ModelVersion, path: str) -> bytes:
        """A file that was kept with a version."""
        ...


class ModelRegistry(Protocol):
    """A Dagster resource that opens a model registry."""

    def models(self) -> AbstractContextManager[HoldsModels]:
        """The registry, connected for the length of a ``with`` block."""
        ...


class BrokenTool:
    """Stands in for an installed tool that cannot be loaded: every answer is the reason.

    >>> BrokenTool("wandb cannot be loaded: no module 'acme'").resolve(Ref("wandb", "training_run", "1")).bucket
    'inaccessible'
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def resolve(self, ref: Ref) -> Answer:
        return Inaccessible(self.reason)


class _Installed(Mapping[str, Tool]):
    """The tools behind entry points, each loaded when it is first asked for."""

    def __init__(self, entries: Mapping[str, EntryPoint]) -> None:
        self._entries = entries
        self._loaded: dict[str, Tool] = {}

    def __getitem__(self, name: str) -> Tool:
        if name not in self._loaded:
            self._loaded[name] = _load(self._entries[name])
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)


def _load(entry: EntryPoint) -> Tool:
    try:
        tool = entry.load()()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - one package that is broken must not end what asks the others
        return BrokenTool(f"the tool {entry.name!r} ({entry.value}) cannot be loaded: {type(error).__name__}: {error}")
    if not isinstance(tool, Tool):
        return BrokenTool(f"the tool {entry.name!r} ({entry.value}) has no method resolve(ref).")
    return tool


def installed_tools() -> Mapping[str, Tool]:
    """The installed tools by name. Each is loaded when it is first looked up; one that fails is a :class:`BrokenTool`.

    >>> sorted(installed_tools())
    ['bentoml', 'dvc', 'feast', 'git', 'gto', 'mlflow']
    """
    return _Installed({entry.name: entry for entry in entry_points(group=GROUP)})


def tool_for(name: str, capability: type[_C], tools: Mapping[str, Tool] | None = None) -> _C:
    """The tool of that name, which has a capability.

        registry = tool_for("mlflow", HoldsModels)

    Args:
        name: Name of the tool, as in `Ref.tool`.
        capability: One of the protocols of this module.
        tools: Tools to choose from; default: the installed ones.

    Raises:
        ToolError: No such tool is installed, it cannot be loaded, or it lacks the capability.
    """
    tools = installed_tools() if tools is None else tools
    if name not in tools:
        raise ToolError(f"No tool {name!r} is installed; known: {', '.join(tools) or 'none'}.")
    tool = tools[name]
    if isinstance(tool, capability):
        return tool
    if isinstance(tool, BrokenTool):
        raise ToolError(tool.reason)
    others = [other for other in tools if isinstance(tools[other], capability)]
    raise ToolError(f"{name!r} is not a tool that {_words(capability)}; such tools: {', '.join(others) or 'none'}.")


def answer_within(seconds: float, ask: Callable[[], Answer]) -> Answer | None:
    """The answer of `ask`, or None when it does not return in time.

    It runs in a daemon thread: no database driver can be told from outside to give up, but a thread can be left behind.
    An exception of `ask` is raised here.
    """
    outcome: list[Answer | BaseException] = []

    def work() -> None:
        try:
            outcome.append(ask())
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            outcome.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        return None
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _words(capability: type) -> str:
    """The name of a capability in words: ``KeepsRuns`` is ``keeps runs``."""
    return "".join(f" {char.lower()}" if char.isupper() else char for char in capability.__name__).strip()
