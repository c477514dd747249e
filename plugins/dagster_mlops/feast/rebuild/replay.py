"""Rebuilds an earlier training set bit for bit, although its sources and definitions have changed since."""

import copy
import functools
import tempfile
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from dagster_mlops.core.extras import extra
from dagster_mlops.core.failures import raised_as
from dagster_mlops.core.files import digest
from dagster_mlops.core.inside import inside, plain_name
from dagster_mlops.core.places import checkout_of
from dagster_mlops.core.table_hash import content_hash
from dagster_mlops.core.tables import as_table, sql_name
from dagster_mlops.core.timestamps import to_microseconds
from dagster_mlops.errors import DagsterMlopsError, FeatureError, ToolError
from dagster_mlops.feast.lazy import FeatureStore, pa, pd
from dagster_mlops.feast.offline import retrieval
from dagster_mlops.feast.offline.sql import described
from dagster_mlops.feast.rebuild import snapshot
from dagster_mlops.feast.rebuild.snapshot import Snapshot, SourceFile, SourceVersion
from dagster_mlops.feast.repository import registry
from dagster_mlops.feast.resource import FeastResource
from dagster_mlops.provenance import TrainingSet
from dagster_mlops.tools import Datasets, datasets_at


def rebuild(
    feast: FeastResource, record: TrainingSet, *, datasets: Datasets | None = None, allow: Iterable[str] = ()
) -> Any:
    """The training set of `record`, rebuilt and verified to hold the same rows and columns.

    The entity dataframe and the files of the feature views' sources are read at their recorded versions; the feature
    service, its views and entities have their recorded definitions, including on-demand code. A source without versions
    is read unchanged if none of its files changed; otherwise rows that were created later are left out, by the source's
    created timestamp.

        record = find_record(feast, "flights/arrival_delay@0c9f…")
        frame = rebuild(feast, record)

    Args:
        feast: Repository whose registry has the training set's snapshot.
        record: Record of the training set.
        datasets: Reader of datasets (a ``DvcResource``) instead of the repositories in the record, for one that has
            moved, or whose remote needs credentials.
        allow: Repositories of the record that may be opened, or folders above them, beside the checkout of `feast`, the
            working directory's, and those in ``DAGSTER_MLOPS_ALLOW``: whoever can write to the registry names others.

    Returns:
        A pandas dataframe, or an Arrow table if the entity dataframe was one.

    Raises:
        FeatureError: Something is missing, or the result is not the same.
        DagsterMlopsError: A dataset cannot be read back.
    """
    inputs, places = _snapshot(feast.store(), record), [checkout_of(Path(feast.repo).resolve()) or feast.repo, *allow]

    @functools.cache
    def reader(repo: str, tool: str = "dvc") -> Datasets:
        return datasets_of(repo, tool, allow=places) if datasets is None else datasets

    entities = _entities(inputs, record, reader)
    with tempfile.TemporaryDirectory(prefix="dagster-mlops-rebuild-") as scratch:
        options = [_file_options(feast, inputs, source, Path(scratch), record, reader) for source in inputs.sources]
        sources = dict(zip([source.name for source in inputs.sources], options, strict=True))
        store = _recorded_store(inputs, record, sources, Path(scratch))
        frame = retrieval.historical_features(
            store,
            entities,
            record.feature_service,
            timestamp_column=inputs.timestamp_column,
            full_feature_names=inputs.full_feature_names,
        )
    rebuilt_hash = content_hash(frame, tool="feast")
    if rebuilt_hash != record.content_hash:
        cut = [source.name for source in inputs.sources if not source.versioned]
        loose = f" Sources without versions, read up to {inputs.known_at}: {', '.join(cut)}." * bool(cut)
        raise FeatureError(
            f"{record.ref} was rebuilt from its snapshot in the registry, and is not the same: its content hash is "
            f"{rebuilt_hash[:12]}, and was {record.content_hash[:12]}.{loose} Otherwise, compare the versions of Feast "
            "and pandas with the recorded ones."
        )
    return frame


def rebuild_file(
    feast: FeastResource, ref: str, out: Path, *, datasets: Datasets | None = None, allow: Iterable[str] = ()
) -> TrainingSet:
    """Rebuild the training set that `ref` names by :func:`rebuild`, and write it to the Parquet file `out`.

    Raises:
        FeatureError: No or several training sets match; something is missing; or the result is not the same.
        DagsterMlopsError: A dataset cannot be read back.
    """
    record = find_record(feast, ref)
    table = as_table(rebuild(feast, record, datasets=datasets, allow=allow), tool="feast")
    out.parent.mkdir(parents=True, exist_ok=True)
    extra("pyarrow.parquet", extra="feast").write_table(table, out)
    return record


def find_record(feast: FeastResource, ref: str) -> TrainingSet:
    """The record in the registry for a ref, its id, or the beginning of a content hash.

    Raises:
        FeatureError: The registry has none, or several.
    """
    store = feast.store()
    name = ref.removeprefix("feast:training_set:")
    records = [record for record in registry.records(store) if isinstance(record, TrainingSet)]
    matches = [record for record in records if record.ref.id == name or (record.content_hash + " ").startswith(name)]
    if len(matches) == 1:
        return matches[0]
    examples = ", ".join(sorted(record.ref.id for record in records)[-5:]) or "none"
    raise FeatureError(
        f"{ref!r} matches {len(matches) or 'no'} training sets in the registry of project {store.project!r} (it has "
        f"{len(records)}, such as: {examples}). Give a ref, its id, or the content hash in the asset's metadata."
    )


def _snapshot(store: FeatureStore, record: TrainingSet) -> Snapshot:
    if not record.snapshot or not record.content_hash:
        raise FeatureError(
            f"{record.ref} was made before training sets had snapshots, so it cannot be rebuilt. Read it back from "
            "where it was stored."
        )
    inputs = snapshot.get(store, record.snapshot)
    if inputs is None:
        raise FeatureError(
            f"the registry of project {store.project!r} has no snapshot {record.snapshot}, from which "
            f"{record.ref} could be rebuilt. Restore the registry from a backup."
        )
    return inputs


def datasets_of(repo: str, tool: str = "dvc", *, allow: Iterable[str] = ()) -> Datasets:
    """The datasets of a repository, with its configured remotes.

    Raises:
        FeatureError: No tool of that name that keeps datasets is installed, or the caller has not named the place.
    """
    try:
        return datasets_at(tool, repo, allow=allow)
    except ToolError as error:
        raise FeatureError(f"The datasets of {repo} cannot be read: {error} Or pass datasets=.") from error


def _entities(inputs: Snapshot, record: TrainingSet, reader: Any) -> Any:
    if not inputs.entities:
        raise FeatureError(
            f"the entity dataframe of {record.ref} was not a versioned dataset, so it is not available. Store the "
            "entities by the DVC IO manager to be able to rebuild training sets."
        )
    arrow = inputs.frame == "pyarrow"
    kind = pa.Table if arrow else None
    parts = []
    for ref in inputs.entities:
        path, _, md5 = ref.id.rpartition("@")
        what = f"{record.ref} cannot be rebuilt without its entities {ref.id}"
        with raised_as(FeatureError, what, DagsterMlopsError):
            parts.append(reader(ref.at, ref.tool).load(path, kind, md5=md5))
    if len(parts) == 1:
        return parts[0]
    if arrow:
        return pa.concat_tables(parts)
    return pd.concat(parts, ignore_index=True)


def _file_options(
    feast: FeastResource, inputs: Snapshot, source: SourceVersion, scratch: Path, record: TrainingSet, reader: Any
) -> dict[str, Any]:
    """Feast's file options for the recorded version of a source."""
    definition = next(
        view for view in inputs.definitions["views"] if view["spec"].get("batch_source", {}).get("name") == source.name
    )
    options = definition["spec"]["batch_source"].get("file_options", {})
    folder = inside(scratch / "sources", source.name.replace("/", "_"), error=FeatureError)
    if source.versioned:
        for file in source.files:
            target = inside(folder, file.name or Path(source.path).name, error=FeatureError)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(_stored_file(source, file, record, reader))
        return {**options, "uri": str(folder if source.files[0].name else folder / Path(source.path).name)}
    if snapshot.unchanged(source):
        return {**options, "uri": source.path}
    if not source.created:
        loose = [file.name or source.path for file in source.files if not file.dataset] or [source.path]
        raise FeatureError(
            f"{record.ref} cannot be rebuilt: source {source.name!r} ({', '.join(loose[:3])}) was in no dataset, "
            "has changed since, and has no created timestamp column. Keep it as a DVC dataset, or give it a "
            "created_timestamp_column."
        )
    folder.mkdir(parents=True)
    _write_as_of(feast.store(), registry.restored(definition).batch_source, inputs.known_at, folder / "known.parquet")
    return {"uri": str(folder), "file_format": {"parquet_format": {}}}


def _stored_file(source: SourceVersion, file: SourceFile, record: TrainingSet, reader: Any) -> Path:
    path, _, md5 = file.dataset.rpartition("@")
    what = f"{record.ref} cannot be rebuilt without the recorded source {source.name!r}, {file.dataset}"
    with raised_as(FeatureError, what, DagsterMlopsError):
        stored = reader(file.repo).read_path(path, md5=md5)
        stored_file = stored / plain_name(file.within, error=FeatureError) if file.within else stored
    if not stored_file.is_file() or digest(stored_file, "md5") != file.md5:
        raise FeatureError(
            f"source {source.name!r}: {file.dataset} of {file.repo} no longer holds {file.within or 'the bytes'} that "
            f"{record.ref} was made from. Restore it from another copy of the DVC remote."
        )
    return stored_file


def _write_as_of(store: FeatureStore, source: Any, until: str, file: Path) -> None:
    """Write a copy of a source without rows that were created after `until`."""
    from dagster_mlops.feast.point_in_time import asof, files, job  # they import Feast

    errors = (extra("duckdb", extra="feast").Error, FeatureError, KeyError, OSError)
    what = f"source {source.name!r} cannot be read as of {until}"
    with raised_as(FeatureError, what, *errors), job.duckdb_connection() as connection:
        relation = files.scan(connection, source, store.repo_path)
        kinds = described(connection, relation)
        renamed = {new: old for old, new in source.field_mapping.items() if old in kinds}
        created = renamed.get(source.created_timestamp_column, source.created_timestamp_column)
        last = to_microseconds(datetime.fromisoformat(until))
        condition = asof.within(sql_name(created), kinds[created], None, last)
        connection.execute(f"COPY (SELECT * FROM {relation} WHERE {condition}) TO '{file}' (FORMAT parquet)")


def _recorded_store(
    inputs: Snapshot, record: TrainingSet, sources: Mapping[str, Mapping[str, Any]], scratch: Path
) -> "FeatureStore":
    """A feature store in `scratch` with the recorded definitions, whose sources are files."""
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
    for entity in inputs.definitions["entities"]:
        store.registry.apply_entity(registry.restored(entity), record.project, commit=False)
    for definition in copy.deepcopy(inputs.definitions["views"]):
        if source := definition["spec"].get("batch_source"):
            for name in [name for name in source if name.endswith("_options") or name == "data_source_class_type"]:
                del source[name]
            source.update(type="BATCH_FILE", file_options=sources[source["name"]])
        try:
            view = registry.restored(definition)
        except Exception as error:
            raise FeatureError(
                f"the code of {definition['spec']['name']!r} cannot be loaded with this Python and Feast: {error}. "
                "Rebuild in an environment like the recorded one."
            ) from error
        store.registry.apply_feature_view(view, record.project, commit=False)
    store.registry.apply_feature_service(registry.restored(inputs.definitions["service"]), record.project)
    return store
