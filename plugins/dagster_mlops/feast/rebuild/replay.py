"""Makes a training set of the past again, bit for bit, whatever became of its sources and definitions since."""

import copy
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster_mlops.core.extras import extra
from dagster_mlops.core.files import digest
from dagster_mlops.core.table_hash import content_hash
from dagster_mlops.core.tables import as_table, sql_name
from dagster_mlops.core.timestamps import to_microseconds
from dagster_mlops.errors import DagsterMlopsError, FeatureError, ToolError
from dagster_mlops.feast.offline import retrieval
from dagster_mlops.feast.rebuild import snapshot
from dagster_mlops.feast.rebuild.snapshot import Snapshot, SourceFile, SourceVersion
from dagster_mlops.feast.repository import registry
from dagster_mlops.feast.resource import FeastResource
from dagster_mlops.provenance import TrainingSet
from dagster_mlops.tools import Datasets, KeepsDatasets, tool_for

if TYPE_CHECKING:
    from feast import FeatureStore


def rebuild(feast: FeastResource, record: TrainingSet, *, datasets: Datasets | None = None) -> Any:
    """The training set that `record` describes, made again, and proven to hold the same rows and columns.

    The entity dataframe and the files of the feature views' sources are read at the versions that were joined then; the
    definitions of the feature service, its views and entities are those of then, on-demand code included. A source
    without versions is taken as it is when nothing in it changed, or else up to the moment it was read then, by its
    created timestamp.

        record = find_record(feast, "flights/arrival_delay@0c9f…")
        frame = rebuild(feast, record)

    Args:
        feast: The repository whose registry keeps what the training set was made from.
        datasets: Reads datasets (a ``DvcResource``), in place of the repositories that the record names: for one that
            has moved, or whose remote needs credentials.

    Returns:
        A pandas dataframe, or an Arrow table where the entity dataframe was one.

    Raises:
        FeatureError: what is missing, or that the result is not the same.
        DagsterMlopsError: a dataset cannot be read back.
    """
    kept = _snapshot(feast.store(), record)
    readers: dict[tuple[str, str], Datasets] = {}

    def reader(repo: str, tool: str = "dvc") -> Datasets:
        if datasets is not None:
            return datasets
        if (tool, repo) not in readers:
            readers[tool, repo] = datasets_of(repo, tool)
        return readers[tool, repo]

    entities = _entities(kept, record, reader)
    with tempfile.TemporaryDirectory(prefix="dagster-mlops-rebuild-") as scratch:
        sources = {
            source.name: _file_options(feast, kept, source, Path(scratch), record, reader) for source in kept.sources
        }
        store = _store_of_then(kept, record, sources, Path(scratch))
        frame = retrieval.historical_features(
            store, entities, record.feature_service, timestamp_column=kept.timestamp_column
        )
    found = content_hash(frame, tool="feast")
    if found != record.content_hash:
        cut = [source.name for source in kept.sources if not source.versioned]
        loose = f" Sources without versions, read as they are now up to {kept.known_at}: {', '.join(cut)}." * bool(cut)
        raise FeatureError(
            f"{record.ref} was rebuilt from what the registry keeps of it, and is not the same: its content is "
            f"{found[:12]}, and was {record.content_hash[:12]}.{loose} Otherwise, compare the versions of Feast and "
            "pandas with those of then."
        )
    return frame


def rebuild_file(feast: FeastResource, ref: str, out: Path, *, datasets: Datasets | None = None) -> TrainingSet:
    """Write the training set that `ref` names to the Parquet file `out`, made again by :func:`rebuild`.

    Raises:
        FeatureError: nothing or too much goes by that name; what is missing; or the result is not the same.
        DagsterMlopsError: a dataset cannot be read back.
    """
    record = find_record(feast, ref)
    table = as_table(rebuild(feast, record, datasets=datasets), tool="feast")
    out.parent.mkdir(parents=True, exist_ok=True)
    extra("pyarrow.parquet", extra="feast").write_table(table, out)
    return record


def find_record(feast: FeastResource, ref: str) -> TrainingSet:
    """The record in the registry for a ref, its id, or the beginning of a content hash.

    Raises:
        FeatureError: the registry has none, or several.
    """
    store = feast.store()
    wanted = ref.removeprefix("feast:training_set:")
    records = [record for record in registry.records(store) if isinstance(record, TrainingSet)]
    found = [record for record in records if record.ref.id == wanted or (record.content_hash + " ").startswith(wanted)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(sorted(record.ref.id for record in records)[-5:]) or "none"
    raise FeatureError(
        f"{ref!r} names {len(found) or 'no'} training sets in the registry of project {store.project!r} (it has "
        f"{len(records)}, such as: {known}). Give a ref, its id, or the content hash that the asset's metadata shows."
    )


def _snapshot(store: "FeatureStore", record: TrainingSet) -> Snapshot:
    if not record.snapshot or not record.content_hash:
        raise FeatureError(
            f"{record.ref} was made before training sets kept what they were made from, so it cannot be rebuilt. "
            "Read it back from where it was stored."
        )
    kept = snapshot.get(store, record.snapshot)
    if kept is None:
        raise FeatureError(
            f"the registry of project {store.project!r} has no snapshot {record.snapshot}, which keeps what "
            f"{record.ref} was made from. Restore the registry from a backup."
        )
    return kept


def datasets_of(repo: str, tool: str = "dvc") -> Datasets:
    """The datasets of a repository, with the remotes that it is configured with.

    Raises:
        FeatureError: No tool of that name that keeps datasets is installed.
    """
    try:
        return tool_for(tool, KeepsDatasets).datasets(repo)
    except ToolError as error:
        raise FeatureError(f"The datasets of {repo} cannot be read: {error} Or pass datasets=.") from error


def _entities(kept: Snapshot, record: TrainingSet, reader: Any) -> Any:
    if not kept.entities:
        raise FeatureError(
            f"the entity dataframe of {record.ref} was no versioned dataset, so it is not known any more. Store the "
            "entities by the DVC IO manager to be able to rebuild training sets."
        )
    arrow = kept.frame == "pyarrow"
    kind = extra("pyarrow", extra="feast").Table if arrow else None
    parts = []
    for ref in kept.entities:
        path, _, md5 = ref.id.rpartition("@")
        try:
            parts.append(reader(ref.at, ref.tool).load(path, kind, md5=md5))
        except DagsterMlopsError as error:
            raise FeatureError(f"{record.ref} cannot be rebuilt without its entities {ref.id}: {error}") from error
    if len(parts) == 1:
        return parts[0]
    if arrow:
        return extra("pyarrow", extra="feast").concat_tables(parts)
    return extra("pandas", extra="feast").concat(parts, ignore_index=True)


def _file_options(
    feast: FeastResource, kept: Snapshot, source: SourceVersion, scratch: Path, record: TrainingSet, reader: Any
) -> dict[str, Any]:
    """Where a source is as it was then, as Feast's specs say it."""
    definition = next(
        view for view in kept.definitions["views"] if view["spec"].get("batch_source", {}).get("name") == source.name
    )
    options = definition["spec"]["batch_source"].get("file_options", {})
    folder = scratch / "sources" / source.name.replace("/", "_")
    if source.versioned:
        for file in source.files:
            target = folder / (file.name or Path(source.path).name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(_held(source, file, record, reader))
        return {**options, "uri": str(folder if source.files[0].name else folder / Path(source.path).name)}
    if snapshot.unchanged(source):
        return {**options, "uri": source.path}
    if not source.created:
        loose = [file.name or source.path for file in source.files if not file.dataset] or [source.path]
        raise FeatureError(
            f"{record.ref} cannot be rebuilt: source {source.name!r} ({', '.join(loose[:3])}) was in no dataset as it "
            "was then, it is different now, and it has no created timestamp column. Keep it as a DVC dataset, or give "
            "it a created_timestamp_column."
        )
    folder.mkdir(parents=True)
    _write_known(feast.store(), registry.restored(definition).batch_source, kept.known_at, folder / "known.parquet")
    return {"uri": str(folder), "file_format": {"parquet_format": {}}}


def _held(source: SourceVersion, file: SourceFile, record: TrainingSet, reader: Any) -> Path:
    path, _, md5 = file.dataset.rpartition("@")
    try:
        held = reader(file.repo).read_path(path, md5=md5) / file.within
    except DagsterMlopsError as error:
        raise FeatureError(
            f"{record.ref} cannot be rebuilt without source {source.name!r} as it was, {file.dataset}: {error}"
        ) from error
    if not held.is_file() or digest(held, "md5") != file.md5:
        raise FeatureError(
            f"source {source.name!r}: {file.dataset} of {file.repo} no longer holds {file.within or 'the bytes'} that "
            f"{record.ref} was made from. Restore it from another copy of the DVC remote."
        )
    return held


def _write_known(store: "FeatureStore", source: Any, until: str, file: Path) -> None:
    """A copy of a source without the rows that were created later."""
    from dagster_mlops.feast.point_in_time import asof, files, job  # they import Feast

    try:
        with job.duckdb_connection() as connection:
            relation = files.scan(connection, source, store.repo_path)
            kinds = asof.described(connection, relation)
            renamed = {new: old for old, new in source.field_mapping.items() if old in kinds}
            created = renamed.get(source.created_timestamp_column, source.created_timestamp_column)
            known = asof.within(sql_name(created), kinds[created], None, to_microseconds(datetime.fromisoformat(until)))
            connection.execute(f"COPY (SELECT * FROM {relation} WHERE {known}) TO '{file}' (FORMAT parquet)")
    except (extra("duckdb", extra="feast").Error, FeatureError, KeyError, OSError) as error:
        raise FeatureError(f"source {source.name!r} cannot be read any more as of {until}: {error}") from error


def _store_of_then(
    kept: Snapshot, record: TrainingSet, sources: Mapping[str, Mapping[str, Any]], scratch: Path
) -> "FeatureStore":
    """A feature store in `scratch` with the definitions of then, whose sources are files."""
    config = extra("feast.repo_config", extra="feast").RepoConfig(
        project=record.project,
        provider="local",
        registry=str(scratch / "registry.db"),
        online_store={"type": "sqlite", "path": str(scratch / "online.db")},
        offline_store={"type": retrieval.ENGINE},
        entity_key_serialization_version=3,
    )
    config.repo_path = scratch
    store = extra("feast").FeatureStore(config=config)
    for entity in kept.definitions["entities"]:
        store.registry.apply_entity(registry.restored(entity), record.project, commit=False)
    for definition in copy.deepcopy(kept.definitions["views"]):
        if source := definition["spec"].get("batch_source"):
            for name in [name for name in source if name.endswith("_options") or name == "data_source_class_type"]:
                del source[name]
            source.update(type="BATCH_FILE", file_options=sources[source["name"]])
        try:
            view = registry.restored(definition)
        except Exception as error:
            raise FeatureError(
                f"the code of {definition['spec']['name']!r} cannot be loaded with this Python and Feast: {error}. "
                "Rebuild in an environment like that of then."
            ) from error
        store.registry.apply_feature_view(view, record.project, commit=False)
    store.registry.apply_feature_service(registry.restored(kept.definitions["service"]), record.project)
    return store
