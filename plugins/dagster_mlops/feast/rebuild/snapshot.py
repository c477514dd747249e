"""Snapshots of a training set's inputs in the registry: definitions, and versions of source files and entities."""

import base64
import dataclasses
import glob
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from dagster_mlops.core.failures import raised_as
from dagster_mlops.core.files import digest
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.lazy import FeatureStore
from dagster_mlops.feast.repository import registry
from dagster_mlops.provenance import Ref

_TAG = "dagster_mlops.snapshot"


@dataclass(frozen=True)
class SourceFile:
    """A file that a feature view was read from.

    Attributes:
        name: Path below the source's path; empty if the source is one file, the full path if it is a pattern.
        md5: MD5 of its bytes.
        dataset: DVC dataset that holds it, ``path@md5``; empty if none holds exactly these bytes.
        repo: Folder of that dataset's repository.
        within: Path of the file in a dataset that is a folder; otherwise empty.
    """

    name: str
    md5: str
    dataset: str = ""
    repo: str = ""
    within: str = ""


@dataclass(frozen=True)
class SourceVersion:
    """A batch source at the time it was read; `files` is empty unless it is local, `created` is its created column."""

    name: str
    path: str
    created: str = ""
    files: tuple[SourceFile, ...] = ()

    @property
    def versioned(self) -> bool:
        """True if a dataset holds each file."""
        return bool(self.files) and all(file.dataset for file in self.files)


@dataclass(frozen=True)
class Snapshot:
    """The inputs that determine a training set's content.

    Attributes:
        definitions: Specs of the feature service, its views and their entities, as Feast's JSON.
        sources: Sources of the views.
        entities: Datasets of the entity dataframe, to be concatenated.
        timestamp_column: Timestamp column of the entity dataframe.
        frame: ``pandas`` or ``pyarrow``, as which the entity dataframe was loaded.
        known_at: Time at which the sources were read, ISO 8601, UTC.
        full_feature_names: Features are named ``view__feature``.
    """

    definitions: Mapping[str, Any]
    sources: tuple[SourceVersion, ...]
    entities: tuple[Ref, ...]
    timestamp_column: str
    frame: str
    known_at: str
    full_feature_names: bool = False


def take(
    store: FeatureStore,
    service: str,
    *,
    entities: Iterable[Ref],
    timestamp_column: str,
    frame: str = "pandas",
    full_feature_names: bool = False,
    datasets: Iterable[Ref] = (),
) -> Snapshot:
    """The inputs of a training set of `service` before they are read.

    Args:
        entities: Datasets of the entity dataframe.
        datasets: Further datasets, in which source files without a ``.dvc`` file beside them are looked up by hash.
    """
    at = datetime.now(UTC).isoformat()
    feature_service, views, used = registry.parts_of(store, service)
    definitions = {
        "service": registry.definition(feature_service),
        "views": [registry.definition(view) for view in views],
        "entities": [registry.definition(entity) for entity in sorted(used, key=lambda entity: entity.name)],
    }
    sources = {view.batch_source.name: view.batch_source for view in views if getattr(view, "batch_source", None)}
    by_md5 = {ref.id.rpartition("@")[2]: ref for ref in datasets if ref.role == "dataset"}
    versions = tuple(_version(store, source, by_md5) for _, source in sorted(sources.items()))
    return Snapshot(definitions, versions, tuple(entities), timestamp_column, frame, at, full_feature_names)


def settled(snapshot: Snapshot) -> Snapshot:
    """The snapshot after its sources were read; files that changed meanwhile count as in no dataset."""
    # A file system's timestamps are coarse.
    since = datetime.fromisoformat(snapshot.known_at).timestamp() - 0.1
    sources = [
        dataclasses.replace(source, files=tuple(SourceFile(file.name, file.md5) for file in source.files))
        if _touched(source, since) and not unchanged(source)
        else source
        for source in snapshot.sources
    ]
    return dataclasses.replace(snapshot, sources=tuple(sources))


def put(store: FeatureStore, snapshot: Snapshot) -> str:
    """Store a snapshot in the registry and return its name; snapshots share equal definitions."""
    facts = dataclasses.asdict(snapshot)
    return _save(store, {**facts, "definitions": _save(store, facts["definitions"])})


def get(store: FeatureStore, name: str) -> Snapshot | None:
    """The snapshot of that name; None if the registry has none.

    Raises:
        FeatureError: The snapshot in the registry is damaged or incomplete.
    """
    facts = _load(store, name)
    if facts is None:
        return None
    definitions = _load(store, facts["definitions"])
    if definitions is None:
        raise FeatureError(f"the registry of project {store.project!r} has lost the definitions of snapshot {name}.")
    entities = [Ref.from_dict(ref) for ref in facts["entities"]]  # also of an earlier schema
    return TypeAdapter(Snapshot).validate_python({**facts, "definitions": definitions, "entities": entities})


def unchanged(source: SourceVersion) -> bool:
    """True if the source's files are the recorded ones."""
    files = _files_of(source.path) if source.files else {}
    return bool(files) and {f.name: f.md5 for f in source.files} == {n: digest(f, "md5") for n, f in files.items()}


def _touched(source: SourceVersion, since: float) -> bool:
    files = _files_of(source.path) if source.files else {}
    has_newer = any(file.stat().st_ctime >= since for file in files.values())
    return has_newer or files.keys() != {file.name for file in source.files}


def _save(store: FeatureStore, facts: Mapping[str, Any]) -> str:
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    name = hashlib.sha256(text.encode()).hexdigest()[:32]
    packed = base64.b64encode(zlib.compress(text.encode(), 9)).decode()
    if not registry.get_tags(store, f"dagster_mlops/snapshot/{name}"):
        registry.put_tags(store, f"dagster_mlops/snapshot/{name}", {_TAG: packed})
    return name


def _load(store: FeatureStore, name: str) -> dict[str, Any] | None:
    packed = registry.get_tags(store, f"dagster_mlops/snapshot/{name}").get(_TAG)
    if packed is None:
        return None
    damaged = f"snapshot {name} in the registry of {store.project!r} is damaged"
    with raised_as(FeatureError, damaged, ValueError, zlib.error):
        text = zlib.decompress(base64.b64decode(packed))
    if hashlib.sha256(text).hexdigest()[:32] != name:
        raise FeatureError(f"{damaged}: its hash differs.")
    return json.loads(text)


def _version(store: FeatureStore, source: Any, datasets: Mapping[str, Ref]) -> SourceVersion:
    path = str(getattr(source, "path", "") or "")
    created = str(source.created_timestamp_column or "")
    if not path or ("://" in path and not path.startswith("file://")):
        return SourceVersion(source.name, path, created)
    place = str((Path(store.repo_path or ".") / path.removeprefix("file://")).absolute())
    files = tuple(_file(name, file, datasets) for name, file in _files_of(place).items())
    return SourceVersion(source.name, place, created, files)


def _files_of(place: str) -> dict[str, Path]:
    """The files of a source by their names below it: empty for a single file, the path for files of a pattern."""
    path = Path(place)
    if path.is_file():
        return {"": path}
    paths = path.rglob("*") if path.is_dir() else map(Path, glob.glob(place, recursive=True))
    files = sorted(f for f in paths if f.is_file() and not f.name.startswith(".") and f.suffix != ".dvc")
    return {str(file.relative_to(path if path.is_dir() else path.anchor)): file for file in files}


def _file(name: str, file: Path, datasets: Mapping[str, Ref]) -> SourceFile:
    md5 = digest(file, "md5")
    for part in (file, *file.parents):
        pointer = part.parent / f"{part.name}.dvc"
        if pointer.is_file():
            holder = str(yaml.safe_load(pointer.read_text())["outs"][0]["md5"])
            # A pointer with another hash than the file on disk was not updated: no dataset holds these bytes.
            if holder == md5 or holder.endswith(".dir"):
                root = next(parent for parent in part.parents if (parent / ".dvc").is_dir())
                within = "" if part == file else str(file.relative_to(part))
                return SourceFile(name, md5, f"{part.relative_to(root).as_posix()}@{holder}", str(root), within)
            break
        if (part / ".dvc").is_dir():
            break
    holder = datasets.get(md5)
    return SourceFile(name, md5, holder.id, holder.at) if holder else SourceFile(name, md5)
