"""A gate on features: what is served online equals what a model is trained on."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.core.checks import asset_checks
from dagster_mlops.core.metadata import table
from dagster_mlops.core.tables import as_table
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.checks.online_vs_offline import Comparison, FeatureParity
from dagster_mlops.feast.online.materialization import alone
from dagster_mlops.feast.repository import registry
from dagster_mlops.feast.repository.load import read_config
from dagster_mlops.feast.resource import FeastResource

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = dg.TableSchema(
    [
        dg.TableColumn("feature", "string"),
        dg.TableColumn("compared", "int", "Entities, or rows of an on-demand view, that were compared."),
        dg.TableColumn("different", "int", "Of those, how many differ."),
        dg.TableColumn("expired", "int", "Of those, past the ttl at the watermark: missing then on both sides."),
        dg.TableColumn("ahead", "int", "Left out: served from an event that is newer than what is offline."),
        dg.TableColumn("largest_difference", "float", "Of numbers."),
        dg.TableColumn("example", "string", "One of the differences."),
    ]
)


def online_offline_parity_check(
    *,
    asset: AssetLike,
    feature_service: str,
    sample: int = 1000,
    tolerance: float = 1e-6,
    seed: int = 0,
    request_data: "pd.DataFrame | Callable[[], pd.DataFrame] | None" = None,
    name: str = "online_offline_parity",
    blocking: bool = True,
    **check_options: Any,
) -> dg.AssetChecksDefinition:
    """A check that the online store serves what the offline store says, for each feature of a service.

    For up to `sample` entities of each feature view (a quarter with the newest events, a quarter with the oldest), the
    offline value at the entity's latest materialized event is compared with the value that is served. An entity that is
    not online differs, and so does one that is served from another event, as after rows that arrived late. What had
    expired by the watermark, the end of what is materialized, must be missing then on both sides. On-demand views are
    computed on both sides from the same request data at the watermark. A view that is pushed to is compared as far as
    its offline source reaches. Nobody loads the views meanwhile. Views that are not served online are left out.

        online_offline_parity_check(asset="training_set", feature_service="arrival_delay")

    Args:
        tolerance: Allowed relative difference of numbers: Feast's Float32 keeps 7 digits.
        seed: Decides, together with the entities, which of them are sampled.
        request_data: What on-demand views take from the request, a row per request; sampled entities are put beside it
            unless it has the join keys. Without it, the value of `asset` is loaded, where request data are needed. Rows
            that hold an on-demand view's features and all it takes, as a training set does, must also equal what its
            code computes from them now.
        check_options: Whatever else :func:`dagster.asset_check` takes.
    """
    key = asset_key(asset)

    def parity(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        def requests() -> "pd.DataFrame":
            if request_data is not None:
                return request_data() if callable(request_data) else request_data
            partition = context.partition_key if context.has_partition_key else None
            rows = context.op_execution_context.load_asset_value(key, partition_key=partition)
            return as_table(rows, tool="feast", error=FeatureError).to_pandas()

        feast: FeastResource = context.resources.feast
        store, repo = feast.store(), read_config(feast.repo).path
        service = registry.feature_service(store, feature_service)
        comparison = Comparison(store, sample=sample, tolerance=tolerance, seed=seed, requests=requests)
        found: list[FeatureParity] = []
        with ExitStack() as held:
            for view in comparison.stored_views(service):
                held.enter_context(alone(store, repo, view, feast.timeout))
            for projection in service.feature_view_projections:
                types = {feature.name: str(feature.dtype) for feature in projection.features}
                found += comparison.of_view(registry.feature_view(store, projection.name), types)
        return _result(found)

    return asset_checks(
        asset=key,
        tool="feast",
        judges={name: (f"`{feature_service}`: online equals offline.", parity)},
        blocking=blocking,
        required_resource_keys=["feast"],
        options=check_options,
    )


def _result(found: list[FeatureParity]) -> dg.AssetCheckResult:
    different = [row for row in found if row.different]
    compared = sum(row.compared for row in found)
    description = ""
    if different:
        description = "different online: " + ", ".join(f"{row.feature} ({row.different})" for row in different)
    elif not compared:
        description = "nothing of this service could be compared: no feature is served online, or all is ahead"
    return dg.AssetCheckResult(
        passed=compared > 0 and not different,
        description=description or None,
        metadata={
            "feast/parity": "no feature is served online",
            **table("feast/parity", [row.__dict__ for row in found], schema=_COLUMNS),
            "feast/different_values": sum(row.different for row in found),
            "feast/compared_values": compared,
            "feast/ahead_values": sum(row.ahead for row in found),
        },
    )
