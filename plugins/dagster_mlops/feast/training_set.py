"""The training set asset: features as they were known at each row's time, for an entity dataframe."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops._extras import extra
from dagster_mlops.asset_records import dagster_facts, upstream_records, upstream_refs
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast import registry
from dagster_mlops.feast.repository import read_config
from dagster_mlops.feast.resource import FeastResource
from dagster_mlops.feast.retrieval import feature_types
from dagster_mlops.provenance import Dataset, TrainingSet

if TYPE_CHECKING:
    import pandas as pd


def training_set_asset(
    *,
    name: str,
    feature_service: str,
    entities: dg.AssetKey,
    timestamp_column: str = "event_timestamp",
    io_manager_key: str = "dvc_io_manager",
    deps: Sequence[Any] = (),
    partitions_def: dg.PartitionsDefinition | None = None,
    partition_mapping: dg.PartitionMapping | None = None,
    group_name: str | None = None,
    key_prefix: Sequence[str] | None = None,
    description: str | None = None,
    automation_condition: dg.AutomationCondition | None = None,
) -> dg.AssetsDefinition:
    """An asset whose value is the entity dataframe with the features of a feature service, point-in-time correct.

    Every entity row is kept, in order, with its extra columns (such as the label); a feature is the latest value at or
    before the row's timestamp within its view's ttl, or missing. Features come in the service's order. The value is
    stored by the IO manager you name; needs a :class:`FeastResource` under the key ``feast``.

        training_set = training_set_asset(
            name="training_set",
            feature_service="arrival_delay",
            entities=dg.AssetKey("training_entities"),
            deps=[dg.AssetKey("origin_weather"), dg.AssetKey("carrier_punctuality")],
            io_manager_key="dvc_io_manager",
        )

    Args:
        entities: The asset that gives the entity dataframe: join keys, timestamp, and whatever else shall be kept. When
            its IO manager loads several partitions as a dict of dataframes, they are joined in the order of their keys.
        deps: The feature view assets, so that the graph and the lineage show them.
        partition_mapping: Which partitions of `entities` are read, when both are partitioned differently.
    """

    @dg.asset(
        name=name,
        key_prefix=key_prefix,
        ins={"entities": dg.AssetIn(entities, partition_mapping=partition_mapping)},
        deps=deps,
        io_manager_key=io_manager_key,
        partitions_def=partitions_def,
        group_name=group_name,
        description=description
        or f"Point-in-time-correct features of service `{feature_service}` for `{entities.to_user_string()}`.",
        automation_condition=automation_condition,
        kinds={"feast"},
    )
    def training_set(context: dg.AssetExecutionContext, feast: FeastResource, entities: Any) -> dg.Output[Any]:
        frame = _entity_frame(entities, name)
        feast.apply()
        store = feast.store()
        result = feast.historical_features(frame, feature_service, timestamp_column=timestamp_column)
        times = extra("pandas", extra="feast").to_datetime(frame[timestamp_column], utc=True)
        record = TrainingSet(
            feature_service=feature_service,
            project=store.project,
            repo=str(read_config(feast.repo).path),
            registry_hash=registry.registry_hash(store, feature_service),
            entity_hash=_entity_hash(context, frame),
            start=times.min().isoformat() if len(frame) else "",
            end=times.max().isoformat() if len(frame) else "",
            rows=len(result),
            upstream=upstream_refs(context),
            **dagster_facts(context),
        )
        registry.put_record(store, record)
        features = list(feature_types(registry.feature_service(store, feature_service)))
        shares = {feature: float(result[feature].isna().mean()) if len(result) else 0.0 for feature in features}
        rows = [
            dg.TableRecord({"feature": feature, "null share": round(share, 6)}) for feature, share in shares.items()
        ]
        nulls = dg.MetadataValue.table(rows) if rows else dg.MetadataValue.text("no features")
        measures = {"feast/null_shares": nulls, "feast/max_null_share": max(shares.values(), default=0.0)}
        return dg.Output(result, metadata={**record.to_metadata(), **measures, "feast/features": features})

    return training_set


def _entity_frame(entities: Any, asset: str) -> "pd.DataFrame":
    pd = extra("pandas", extra="feast")
    if isinstance(entities, dict):
        entities = pd.concat([entities[key] for key in sorted(entities)], ignore_index=True)
    if not isinstance(entities, pd.DataFrame):
        raise FeatureError(
            f"{asset} needs its entities as a pandas DataFrame, but the IO manager gave {type(entities).__name__}. "
            "Let the upstream asset return a DataFrame, or give it an IO manager that loads one."
        )
    return entities


def _entity_hash(context: dg.AssetExecutionContext, frame: "pd.DataFrame") -> str:
    """The entity dataset's own version when its asset has one, else the hash of its content."""
    source = context.assets_def.keys_by_input_name["entities"].to_user_string()
    versions = [r.md5 for r in upstream_records(context) if isinstance(r, Dataset) and r.dagster_asset == source]
    if len(versions) == 1:
        return versions[0]
    return hashlib.sha256("".join(versions).encode()).hexdigest() if versions else _content_hash(frame)


def _content_hash(frame: "pd.DataFrame") -> str:
    """A hash of a frame's rows, whatever their order and index."""
    pd = extra("pandas", extra="feast")
    nested = [
        name
        for name in frame.select_dtypes("object")
        if not all(pd.api.types.is_hashable(value) for value in frame[name])
    ]
    plain = frame.assign(**{name: frame[name].map(str) for name in nested})
    rows = pd.util.hash_pandas_object(plain, index=False).sort_values().to_numpy()
    return hashlib.sha256("|".join(map(str, frame.columns)).encode() + rows.tobytes()).hexdigest()
