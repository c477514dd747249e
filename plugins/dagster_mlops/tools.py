"""The capabilities of tools, which make the next tool a folder of its own.

A tool joins by one entry point in the group ``dagster_mlops.tools``: a class, or a function, that takes no argument and
returns a :class:`Tool`. Importing it must be cheap; the tool itself is imported where it is used.

    [project.entry-points."dagster_mlops.tools"]
    wandb = "acme.wandb.tool:WandbTool"

Every tool answers for its refs. Beyond that it has the methods of the capabilities that it offers: the protocols below.
There is nothing to register and no base class. These are the methods that *this library* calls: a resource gives users
the tool's own objects.

    tool = tool_for("wandb", KeepsRuns)
    tool.files(ref, "code")

:mod:`dagster_mlops.testing` has contract tests of the capabilities.
"""

import functools
import threading
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar, copy_context
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import yaml

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.places import Places
from dagster_mlops.errors import ToolError
from dagster_mlops.provenance import Answer, Deleted, Faulty, Inaccessible, ModelVersion, Ref, TrainingRun

GROUP = "dagster_mlops.tools"
_C = TypeVar("_C")


@runtime_checkable
class Tool(Protocol):
    """A tool that keeps the things of its refs. Its name, `Ref.tool`, is that of its entry point."""

    def resolve(self, ref: Ref) -> Answer:
        """Answer for one ref within seconds; a missing thing is an answer, not an exception."""
        ...


@runtime_checkable
class KeepsRuns(Tool, Protocol):
    """A tracker that keeps files and a model with each training run; otherwise it raises a DagsterMlopsError.

    `rerun` is the Python script that runs a training step again, in the recorded environment.
    """

    rerun: Path

    def files(self, ref: Ref, folder: str) -> dict[str, bytes]:
        """The files right below `folder`, by name."""
        ...

    def find_model(self, ref: Ref) -> Inaccessible | Deleted | Faulty | None:
        """The reason if the run's model is not there; None if it is."""
        ...

    def fetch_model(self, ref: Ref, folder: Path) -> Path:
        """Copy the model below `folder`, and return its path."""
        ...


class Datasets(Protocol):
    """Reads any version of the datasets in one place, as a ``DvcResource`` does, or raises a DagsterMlopsError."""

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
        """The datasets at `at`: a repository, a bucket, a branch."""
        ...


@runtime_checkable
class TracksFiles(KeepsDatasets, Protocol):
    """A tool that tracks large files in a git checkout, beside git, as DVC does."""

    def tracked_at(self, repository: Path, path: str, commit: str) -> Ref | None:
        """The dataset version that holds the file `path` of the checkout at a commit; None if none does."""
        ...


@runtime_checkable
class RebuildsData(Tool, Protocol):
    """A tool that can rebuild the data of a ref, or raises a DagsterMlopsError."""

    def rebuild(self, ref: Ref, folder: Path) -> Path:
        """Write a Parquet file below `folder`, verified against the ref's record."""
        ...


@lazy_dataclass(frozen=True)
class StoredModel:
    """The files of a model version: an MLmodel folder, which any registry can hold.

    `sha256` is the hash of the files as the registry has it, empty where it has none. `allow_pickle` and `trust` are
    what the resource that fetched them lets such files do when they are loaded.
    """

    folder: Path
    version: ModelVersion
    flavors: Mapping[str, Mapping[str, Any]]
    signature: Mapping[str, Any]
    requirements: tuple[str, ...]
    sha256: str = ""
    allow_pickle: bool = False
    trust: tuple[str, ...] = ()

    @classmethod
    def read(
        cls,
        folder: Path,
        version: ModelVersion,
        *,
        sha256: str = "",
        allow_pickle: bool = False,
        trust: Sequence[str] = (),
    ) -> "StoredModel":
        """Describe a folder by its MLmodel file and its ``requirements.txt``.

        Raises:
            OSError: There is no MLmodel file.
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
            sha256=sha256,
            allow_pickle=allow_pickle,
            trust=tuple(trust),
        )


@runtime_checkable
class HoldsModels(Protocol):
    """An open model registry, which a resource hands out. `tool` is its name in records and metadata keys.

    A missing model, version or alias is a ModelVersionError.
    """

    tool: str

    def version(self, name: str, which: str = "") -> ModelVersion:
        """The record of the version `which`: a number, ``@alias``, or empty for the newest.

        Its `tracking_uri` is where it was read, whatever a stored record says: lineage goes there.
        """
        ...

    def metrics(self, version: ModelVersion) -> Mapping[str, float]:
        """All metrics of a version, including those that are not finite."""
        ...

    def move(self, name: str, alias: str, to: str, *, expected: str) -> bool:
        """Move `alias` to version `to`, if version `expected` holds it (empty: no version); False if another does."""
        ...

    def notes(self, version: ModelVersion) -> Mapping[str, str]:
        """The notes on a version, by key."""
        ...

    def note(self, version: ModelVersion, key: str, text: str) -> None:
        """Write a note on a version, in place of an earlier one with this key."""
        ...

    def fetch(self, version: ModelVersion, folder: Path) -> StoredModel:
        """Copy the files of a version below `folder`, if they are unchanged since they were stored."""
        ...

    def url(self, version: ModelVersion) -> str:
        """The version's page in the registry's UI; empty if there is none."""
        ...


@runtime_checkable
class TakesTurns(Protocol):
    """A registry that cannot compare and set an alias in one step: its promoters take turns instead."""

    def turn(self, name: str) -> AbstractContextManager[None]:
        """Wait until no other promoter of the model `name` is at it, and keep others waiting inside the block."""
        ...


def turn_of(registry: object, name: str) -> AbstractContextManager[None]:
    """The turn of a promoter of the model `name`; without a wait where a registry compares and sets in one step."""
    return registry.turn(name) if isinstance(registry, TakesTurns) else nullcontext()


@runtime_checkable
class SetsAliases(Protocol):
    """A registry in which an alias is a pointer: it can be set and removed at any time."""

    def set_alias(self, name: str, alias: str, to: str) -> None:
        """Set `alias` to version `to`, whatever version holds it; remove it where `to` is empty."""
        ...


@runtime_checkable
class KeepsHistory(Protocol):
    """A registry that keeps the history of each model: numbered texts that nothing here replaces, and a head."""

    def history(self, name: str) -> Mapping[int, str]:
        """The texts of the model `name` by their number, from 0: entries, and whatever others wrote in their place."""
        ...

    def append(self, name: str, number: int, entry: str) -> bool:
        """Keep an entry under a number, in one step; False if another entry has it."""
        ...

    def head(self, name: str) -> str:
        """The head that was kept last; empty for none."""
        ...

    def keep_head(self, name: str, head: str) -> None:
        """Keep a short text about the whole history, in another place than its entries."""
        ...


@runtime_checkable
class RenewsHistory(Protocol):
    """A registry in which the place of a history can be deleted, so that its entries have to be written again."""

    def renew_history(self, name: str) -> None:
        """Take the deleted place of the history of the model `name` back, or else a new one, which is empty."""
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


@lazy_dataclass(frozen=True)
class ModelCopy:
    """A version from elsewhere: its record without number and place, and what belongs to it.

    `sha256` of the record is the hash of the files, and the one ref in its `upstream` is the version that they are of.
    The MLmodel `folder` may be changed. `files` are kept with the version: see :class:`KeepsFiles`. `training` is the
    record of the training, where there is one.
    """

    record: ModelVersion
    folder: Path
    metrics: Mapping[str, float]
    files: Mapping[str, bytes]
    training: TrainingRun | None = None


@runtime_checkable
class TakesModels(Protocol):
    """A registry in which files of a version from elsewhere become a version."""

    def take(self, copy: ModelCopy) -> ModelVersion:
        """Make a copy a version, and give its complete record. The same copy again is the same version.

        Raises:
            ModelVersionError: the files, where they lie in the end, are not those on record.
        """
        ...


@runtime_checkable
class ModelRegistry(Protocol):
    """A Dagster resource that opens a model registry."""

    def models(self) -> AbstractContextManager[HoldsModels]:
        """The registry, connected for the length of a ``with`` block."""
        ...


@runtime_checkable
class OpensModels(Tool, Protocol):
    """A tool that opens its model registry at a place, for commands, which have no resource."""

    def has_registry(self, at: str) -> bool:
        """True for a place that is one of this tool's registries by its form; nothing is asked there."""
        ...

    def models_at(self, at: str) -> AbstractContextManager[HoldsModels]:
        """The registry at a place, connected for the length of a ``with`` block, or a DagsterMlopsError."""
        ...


class BrokenTool:
    """Replaces an installed tool that cannot be loaded: every answer is the reason.

    >>> BrokenTool("wandb cannot be loaded: no module 'acme'").resolve(Ref("wandb", "training_run", "1")).bucket
    'inaccessible'
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def resolve(self, ref: Ref) -> Answer:
        return Inaccessible(self.reason)


class _Installed(UserDict[str, Any]):
    """Functions that load the tools of entry points, by name; each tool is loaded when it is first read."""

    def __getitem__(self, name: str) -> Tool:
        return self.data[name]()


def _load(entry: EntryPoint) -> Tool:
    try:
        tool = entry.load()()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - one broken package must not stop the others
        return BrokenTool(f"the tool {entry.name!r} ({entry.value}) cannot be loaded: {type(error).__name__}: {error}")
    if not isinstance(tool, Tool):
        return BrokenTool(f"the tool {entry.name!r} ({entry.value}) has no method resolve(ref).")
    return tool


def installed_tools() -> Mapping[str, Tool]:
    """The installed tools by name. Each is loaded on first use; one that fails is a :class:`BrokenTool`.

    >>> sorted(installed_tools())
    ['bentoml', 'dvc', 'feast', 'git', 'gto', 'mlflow']
    """
    loaders = {entry.name: functools.cache(functools.partial(_load, entry)) for entry in entry_points(group=GROUP)}
    return _Installed(sorted(loaders.items()))


def tool_for(name: str, capability: type[_C], tools: Mapping[str, Tool] | None = None) -> _C:
    """The tool of a name, if it has a capability.

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
    capable = [other for other in tools if isinstance(tools[other], capability)]
    words = "".join(f" {char.lower()}" if char.isupper() else char for char in capability.__name__).strip()
    raise ToolError(f"{name!r} is not a tool that {words}; such tools: {', '.join(capable) or 'none'}.")


_REFUSAL: ContextVar[Callable[[Ref], Inaccessible | None] | None] = ContextVar("refusal", default=None)


@contextmanager
def datasets_only_where(refusal: Callable[[Ref], Inaccessible | None]) -> Iterator[None]:
    """In the body, :func:`datasets_at` refuses the places for which `refusal` has a reason, and no others."""
    token = _REFUSAL.set(refusal)
    try:
        yield
    finally:
        _REFUSAL.reset(token)


def datasets_at(tool: str, at: str, *, allow: Iterable[str] = ()) -> Datasets:
    """The datasets that a tool keeps at a place which data names, such as the snapshot of a training set.

    Args:
        tool: Name of the tool.
        at: The place.
        allow: Places that the caller has named, beside those of every caller; see :class:`Places`.

    Raises:
        ToolError: No such tool is installed, or the place is not one that the caller has named.
    """
    refuse = _REFUSAL.get() or Places(allow).refusal
    if refusal := refuse(Ref(tool, "dataset", "", at=at)):
        raise ToolError(refusal.reason)
    return tool_for(tool, KeepsDatasets).datasets(at)


_LIMIT: ContextVar[float | None] = ContextVar("limit", default=None)


def time_limit(default: float) -> float:
    """The seconds that a tool may take for an answer: what the caller of a trace has asked for, else `default`."""
    return _LIMIT.get() or default


def answer_within(seconds: float, ask: Callable[[], _C], *, limit: float | None = None) -> _C | None:
    """The answer of `ask`, or None when it does not return in time; `limit` is its :func:`time_limit`, if given.

    It runs in a daemon thread: a database driver cannot be interrupted, but a thread can be left behind. An exception
    of `ask` is raised here.
    """
    future: Future[_C] = Future()

    def work() -> None:
        try:
            future.set_result(ask())
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            future.set_exception(error)

    context = copy_context()
    if limit is not None:
        context.run(_LIMIT.set, limit)
    threading.Thread(target=context.run, args=(work,), daemon=True).start()
    wait([future], seconds)
    return future.result() if future.done() else None
