"""Reads and writes of a Feast registry: hashes of its definitions, and provenance records."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dagster_mlops.core.extras import extra
from dagster_mlops.core.files import exclusive
from dagster_mlops.core.memory import state_dir
from dagster_mlops.core.waits import retry
from dagster_mlops.errors import FeatureError, ProvenanceError
from dagster_mlops.feast.lazy import BaseFeatureView, FeatureService, FeatureStore
from dagster_mlops.provenance import Record, Ref

RECORD_TAG = "dagster_mlops.record"
_LOCK_TIMEOUT = 60.0  # seconds
_CREATION_TIMEOUT = 30.0  # seconds
_NOISE = {"meta", "uri", "project", "body", "ibisFunction"}  # the last two are pickles, which differ between applies


def create_tables(store: FeatureStore) -> None:
    """Create the tables of a SQL registry, even while other processes create them.

    Feast checks which tables are missing and then creates them, so that of two processes at the same time one fails.
    """
    if getattr(store.config.registry, "registry_type", None) != "sql":
        return
    retry(
        lambda: store.registry,  # Feast opens the registry at the first access
        is_transient=lambda error: "already exists" in str(getattr(error, "orig", "")),  # SQLAlchemy's DBAPIError
        timeout=_CREATION_TIMEOUT,
    )


def feature_service(store: FeatureStore, name: str) -> "FeatureService":
    """The feature service of that name, as the registry has it now.

    Raises:
        FeatureError: The registry has no such service.
    """
    registry = store.registry
    try:
        return registry.get_feature_service(name, store.project)
    except extra("feast.errors").FeatureServiceNotFoundException:
        raise _unknown(store, registry.list_feature_services(store.project), name, "service") from None


def feature_view(store: FeatureStore, name: str) -> "BaseFeatureView":
    """The feature view of that name and any kind, as the registry has it now.

    Raises:
        FeatureError: The registry has no such view.
    """
    registry = store.registry
    try:
        return registry.get_any_feature_view(name, store.project)
    except extra("feast.errors").FeatureViewNotFoundException:
        raise _unknown(store, registry.list_all_feature_views(store.project), name, "view") from None


def _unknown(store: FeatureStore, definitions: Iterable[Any], name: str, noun: str) -> FeatureError:
    names = sorted(definition.name for definition in definitions)
    return FeatureError(
        f"project {store.project!r} has no feature {noun} {name!r} (it has: {', '.join(names) or 'none'}). Define it "
        "in the Feast repository and apply it."
    )


def view_hash(store: FeatureStore, name: str) -> str:
    """A hash of one feature view's definition: see :func:`registry_hash`."""
    return _digest([_definition(feature_view(store, name))])


def view_hashes(store: FeatureStore) -> dict[str, str]:
    """Hashes of the definitions of all feature views and services, by name: see `registry_hash`."""
    views = store.registry.list_all_feature_views(store.project)
    return definition_hashes(views, store.registry.list_feature_services(store.project))


def definition_hashes(views: Iterable[BaseFeatureView], services: Iterable[FeatureService]) -> dict[str, str]:
    """Hashes of the definitions of given views and services, by name."""
    return {
        **{view.name: _digest([_definition(view)]) for view in views},
        **{f"feature service {service.name}": _digest([_definition(service)]) for service in services},
    }


def registry_hash(store: FeatureStore, service: str) -> str:
    """A hash of the meaning of a feature service, its feature views with their sources, and their entities.

    Left out is what may change while the meaning stays: timestamps, materialized intervals, and paths of files, which
    differ between machines.
    """
    definition, views, entities = parts_of(store, service)
    parts = sorted([*views, *entities], key=lambda part: (type(part).__name__, part.name))
    return _digest([_definition(part) for part in [definition, *parts]])


def parts_of(store: FeatureStore, service: str) -> tuple[FeatureService, list[Any], list[Any]]:
    """A feature service; its views and those that its on-demand views use, each once; and their entities.

    Raises:
        FeatureError: The registry has no such service.
    """
    definition, views = feature_service(store, service), {}
    for projection in definition.feature_view_projections:
        view: Any = feature_view(store, projection.name)
        views[view.name] = view
        for source in getattr(view, "source_feature_view_projections", {}).values():
            views.setdefault(source.name, feature_view(store, source.name))
    used = {name for view in views.values() for name in getattr(view, "entities", ())}
    entities = [entity for entity in store.registry.list_entities(store.project) if entity.name in used]
    return definition, list(views.values()), entities


def definition(thing: Any) -> dict[str, Any]:
    """The spec of a definition as JSON, without Feast's records of its use."""
    proto = thing.to_proto()
    to_dict = extra("google.protobuf.json_format", extra="feast").MessageToDict
    return {"type": proto.DESCRIPTOR.name, "spec": to_dict(proto.spec, preserving_proto_field_name=True)}


def restored(definition: Mapping[str, Any]) -> Any:
    """The Feast object of a result of :func:`definition`. Code of on-demand views is loaded by dill, as Feast does."""
    name = definition["type"]
    proto = getattr(extra(f"feast.protos.feast.core.{name}_pb2", extra="feast"), name)()
    extra("google.protobuf.json_format", extra="feast").ParseDict({"spec": definition["spec"]}, proto)
    return getattr(extra("feast"), name).from_proto(proto)


def put_record(store: FeatureStore, record: Record) -> None:
    """Store `record` in the registry, in a saved dataset's tags.

    A saved dataset is Feast's noun for a materialized training set. ``feast apply`` keeps it, whereas it removes tags
    that the repository's files do not have. Each training set and each materialized version of a feature view's window
    has its own, not only the latest.
    """
    put_tags(store, _name(record.ref), {RECORD_TAG: record.to_json()}, service=getattr(record, "feature_service", None))


def get_record(store: FeatureStore, ref: Ref) -> Record | None:
    """The record of `ref` in the registry, or None.

    Raises:
        ProvenanceError: The record cannot be read.
    """
    text = get_tags(store, _name(ref)).get(RECORD_TAG)
    return None if text is None else Record.from_json(text)


def records(store: FeatureStore) -> Iterator[Record]:
    """Every record in the registry that can be read."""
    for saved in store.registry.list_saved_datasets(store.project, allow_cache=False):
        text = saved.tags.get(RECORD_TAG)
        try:
            if text is not None:
                yield Record.from_json(text)
        except ProvenanceError:
            continue  # resolving its ref reports a damaged record; the others are still listed


def put_tags(store: FeatureStore, name: str, tags: dict[str, str], *, service: str | None = None) -> None:
    """Create or replace the saved dataset `name`, which has only tags."""
    saved = extra("feast.saved_dataset")
    storage = extra("feast.infra.offline_stores.file_source").SavedDatasetFileStorage(path=f"dagster://{name}")
    dataset = saved.SavedDataset(
        name=name, features=[], join_keys=[], storage=storage, tags=tags, feature_service_name=service
    )
    if getattr(store.config.registry, "registry_type", None) != "file":
        store.registry.apply_saved_dataset(dataset, store.project)
        return
    # A file registry is read, changed and written as a whole, from a cache: one of two writes would be lost.
    with exclusive(state_dir(Path(store.repo_path)) / "records.lock", _LOCK_TIMEOUT, error=FeatureError):
        store.refresh_registry()
        store.registry.apply_saved_dataset(dataset, store.project)


def get_tags(store: FeatureStore, name: str) -> dict[str, str]:
    """The tags that :func:`put_tags` stored; empty if there are none."""
    try:
        return dict(store.registry.get_saved_dataset(name, store.project, allow_cache=False).tags)
    except extra("feast.errors").SavedDatasetNotFound:
        return {}


def _name(ref: Ref) -> str:
    return f"dagster_mlops/{ref.role}/{ref.id}"


def _definition(thing: Any) -> dict[str, Any]:
    spec = extra("google.protobuf.json_format", extra="feast").MessageToDict(thing.to_proto().spec)
    if "entityColumns" in spec or "sources" in spec:  # a view, whose columns Feast orders differently in each process
        for columns in {"features", "entityColumns"} & {*spec}:
            spec[columns] = sorted(spec[columns], key=lambda column: column["name"])
    return _without_noise(spec)


def _without_noise(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_noise(v) for k, v in value.items() if k not in _NOISE}
    if isinstance(value, list):
        return [_without_noise(item) for item in value]
    return value


def _digest(definitions: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(definitions, sort_keys=True).encode()).hexdigest()
