"""The training set asset: an entity dataframe with features as they were known at each row's timestamp."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from dagster_mlops.core.asset_keys import AssetLike, asset_input, asset_key
from dagster_mlops.core.asset_records import dagster_facts, upstream_records
from dagster_mlops.core.metadata import table
from dagster_mlops.core.options import asset_with
from dagster_mlops.core.table_hash import content_hash
from dagster_mlops.core.tables import as_frame, as_table
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.lazy import pd
from dagster_mlops.feast.metadata_keys import FEATURES, NULL_SHARES
from dagster_mlops.feast.offline.retrieval import column_names, types_in
from dagster_mlops.feast.repository import registry
from dagster_mlops.feast.repository.load import read_config
from dagster_mlops.feast.resource import FeastResource
from dagster_mlops.provenance import Dataset, TrainingSet, records_in

_PAGE = 100  # materializations that are read at a time


class TrainingSetConfig(dg.Config):
    """Run config of a training set: ``{"ops": {"training_set": {"config": {"rebuild": "4f0c…"}}}}``."""

    rebuild: str | None = Field(
        default=None,
        description="Content hash, ref or hash of the stored dataset of an earlier training set, to rebuild it from "
        "its recorded data and definitions instead of the current ones.",
    )


def training_set_asset(
    *,
    name: str,
    feature_service: str,
    entities: AssetLike | dg.AssetIn,
    timestamp_column: str = "event_timestamp",
    partition_mapping: dg.PartitionMapping | None = None,
    entities_type: Any = None,
    full_feature_names: bool = False,
    datasets: str | None = None,
    **asset_options: Any,
) -> dg.AssetsDefinition:
    """An asset whose value is the entity dataframe with the point-in-time-correct features of a feature service.

    Every entity row is kept, in order, with its extra columns (such as the label); a feature is the latest value at or
    before the row's timestamp within its view's ttl, or missing. Features come in the service's order. Name the IO
    manager that stores the value in ``io_manager_key``, unless it is Dagster's default. Needs a :class:`FeastResource`
    under the key ``feast``.

        training_set = training_set_asset(
            name="training_set",
            feature_service="arrival_delay",
            entities="training_entities",
            deps=["origin_weather", "carrier_punctuality"],
        )

    The registry keeps a snapshot of the inputs: versions of the entity dataframe and of the views' source files, and
    the definitions. A run with the config ``{"ops": {"training_set": {"config": {"rebuild": "4f0c…"}}}}`` rebuilds the
    training set with that content hash (or ref, or hash of the stored dataset).

    Args:
        entities: Asset with the entity dataframe: join keys, timestamp, and further columns to keep. If its IO manager
            loads several partitions as a dict of dataframes, they are concatenated in the order of their keys.
        partition_mapping: Mapping to partitions of `entities`, if both are partitioned differently.
        entities_type: Type as which the IO manager loads the entities, such as ``pyarrow.Table`` or
            ``polars.DataFrame``, with which the value is an Arrow table; by default a pandas dataframe.
        full_feature_names: Name features ``view__feature``, for a service with two features of one name.
        datasets: Key of the resource that reads versions of datasets for a rebuild; by default the repositories in the
            record are opened with their configured remotes: those that hold the asset's inputs today, those of the
            checkout, and those in ``DAGSTER_MLOPS_ALLOW``.
        asset_options: Further arguments of :func:`dagster.asset`. Name the feature view assets in ``deps``, so that the
            graph and the lineage show them.
    """
    source = asset_input(entities, partition_mapping=partition_mapping)

    def training_set(context: dg.AssetExecutionContext, config: TrainingSetConfig, entities: Any) -> dg.Output[Any]:
        feast: FeastResource = context.resources.feast
        if config.rebuild:
            from dagster_mlops.feast.rebuild import rebuild  # for steps, not for code locations

            original = _original_record(context, feast, config.rebuild)
            result = rebuild(
                feast,
                original,
                datasets=getattr(context.resources, datasets) if datasets else None,
                allow=[record.ref.at for record in upstream_records(context)],
            )
            # Its place is that of this repository, whatever a record in the registry says.
            record = dataclasses.replace(
                original, of=None, repo=str(read_config(feast.repo).path), **dagster_facts(context)
            )
            facts: dict[str, Any] = {"feast/rebuilt": original.ref.id}
        else:
            result, record, facts = _joined(
                context, feast, entities, feature_service, timestamp_column, full_feature_names
            )
        return dg.Output(result, metadata=record.to_metadata({**facts, **_measures(feast, record, result)}))

    if entities_type is not None:  # the type that Dagster requests from the IO manager
        training_set.__annotations__["entities"] = entities_type
    return asset_with(
        asset_options,
        name=name,
        description=f"Point-in-time-correct features of service `{feature_service}` for "
        f"`{asset_key(source).to_user_string()}`.",
        kinds=["feast"],
        ins={"entities": source},
        required_resource_keys=["feast", *([datasets] if datasets else [])],
    )(training_set)


def _joined(
    context: dg.AssetExecutionContext,
    feast: FeastResource,
    entities: Any,
    service: str,
    timestamp_column: str,
    full_feature_names: bool,
) -> tuple[Any, TrainingSet, dict[str, Any]]:
    """The training set, its record, and further metadata; record and snapshot are stored in the registry."""
    from dagster_mlops.feast.rebuild import snapshot  # for steps, not for code locations

    store, upstream = feast.applied_store(), upstream_records(context)
    source = context.assets_def.keys_by_input_name["entities"].to_user_string()
    datasets = [record for record in upstream if isinstance(record, Dataset) and record.dagster_asset == source]
    parts = [entities]
    if isinstance(entities, dict):  # of partitions, which are concatenated in the order of their keys
        datasets.sort(key=lambda dataset: dataset.dagster_partition)
        parts = entities.values()
    is_pandas = all(isinstance(part, pd.DataFrame) for part in parts)
    frame: Any = (as_frame if is_pandas else as_table)(entities, tool="feast", error=FeatureError)
    first_inputs = snapshot.take(
        store,
        service,
        entities=[dataset.ref for dataset in datasets],
        timestamp_column=timestamp_column,
        frame="pandas" if is_pandas else "pyarrow",
        full_feature_names=full_feature_names,
        datasets=[ref for parent in upstream for ref in (parent.ref, *parent.upstream)],
    )
    result: Any = feast.historical_features(
        frame, service, timestamp_column=timestamp_column, full_feature_names=full_feature_names
    )
    inputs = snapshot.settled(first_inputs)
    start, end = _span(frame, timestamp_column)
    record = TrainingSet(
        feature_service=service,
        project=store.project,
        repo=str(read_config(feast.repo).path),
        registry_hash=registry.registry_hash(store, service),
        entity_hash=_entity_hash([dataset.md5 for dataset in datasets], frame),
        start=start,
        end=end,
        rows=len(result),
        content_hash=content_hash(result, tool="feast"),
        snapshot=snapshot.put(store, inputs),
        upstream=tuple(dict.fromkeys(parent.ref for parent in upstream)),
        **dagster_facts(context),
    )
    registry.put_record(store, record)
    loose = [source.name for source in inputs.sources if not source.versioned]
    if loose or not datasets:
        inputs_text = [f"sources {', '.join(loose)}"] * bool(loose) + ["its entity dataframe"] * (not datasets)
        context.log.info(
            f"{record.ref}: {' and '.join(inputs_text)} had no version, so a rebuild may use changed data."
        )
    return result, record, {"feast/unversioned_sources": loose}


def _original_record(context: dg.AssetExecutionContext, feast: FeastResource, version: str) -> TrainingSet:
    """The record of an earlier materialization, by the hash of the stored dataset, or as in `find_record`."""
    key = context.assets_def.key
    cursor = None
    while True:
        page = context.instance.fetch_materializations(key, limit=_PAGE, cursor=cursor)
        for event in page.records:
            materialization = event.event_log_entry.asset_materialization
            records = list(records_in(materialization.metadata)) if materialization else []
            if any(isinstance(record, Dataset) and record.md5 == version for record in records):
                return next(record for record in records if isinstance(record, TrainingSet))
        if not page.has_more:
            from dagster_mlops.feast.rebuild import find_record

            return find_record(feast, version)
        cursor = page.cursor


def _measures(feast: FeastResource, record: TrainingSet, result: Any) -> dict[str, Any]:
    columns = column_names(result)
    types = types_in(registry.feature_service(feast.store(), record.feature_service), columns)
    features = [feature for feature in types if feature in columns]
    nulls = result[features].isna().sum() if hasattr(result, "iloc") else {f: result[f].null_count for f in features}
    shares = {feature: int(nulls[feature]) / max(len(result), 1) for feature in features}
    rows = [{"feature": feature, "null share": round(share, 6)} for feature, share in shares.items()]
    return {
        NULL_SHARES: "no features",
        **table(NULL_SHARES, rows),
        "feast/max_null_share": max(shares.values(), default=0.0),
        FEATURES: features,
    }


def _span(entities: Any, column: str) -> tuple[str, str]:
    if not len(entities):
        return "", ""
    times = pd.to_datetime(
        entities[column] if hasattr(entities, "iloc") else entities.column(column).to_pandas(), utc=True
    )
    return times.min().isoformat(), times.max().isoformat()


def _entity_hash(versions: Sequence[str], frame: Any) -> str:
    """The entity dataset's version if its asset has one; otherwise the hash of its content."""
    if len(versions) == 1:
        return versions[0]
    return hashlib.sha256("".join(versions).encode()).hexdigest() if versions else content_hash(frame, tool="feast")
