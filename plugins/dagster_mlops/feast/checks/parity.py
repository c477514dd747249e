"""A gate on features: the values served online equal those that a model is trained on."""

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
        dg.TableColumn("different", "int", "Number of those that differ."),
        dg.TableColumn(
            "expired", "int", "Number of those past the ttl at the watermark, where both sides must be missing."
        ),
        dg.TableColumn("ahead", "int", "Left out, because the served event is newer than the offline source."),
        dg.TableColumn("largest_difference", "float", "Largest difference of numbers."),
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
    """A check that the online store serves the values of the offline store, for each feature of a service.

    For up to `sample` entities of each feature view (a quarter with the newest events, a quarter with the oldest), the
    offline value at the entity's latest materialized event is compared with the served value. An entity that is not
    online differs, and so does one that is served from another event, for example after rows arrived late. A value that
    had expired by the watermark, the end of the materialized windows, must be missing on both sides. On-demand views
    are computed on both sides from the same request data at the watermark. A view that is pushed to is compared up to
    the end of its offline source. No one else can load the views meanwhile. Views that are not served online are left
    out.

        online_offline_parity_check(asset="training_set", feature_service="arrival_delay")

    Args:
        tolerance: Allowed relative difference of numbers. Feast's Float32 keeps 7 digits.
        seed: Seed of the sample of entities.
        request_data: Request data of on-demand views, one row per request; sampled entities are added as columns unless
            it has the join keys. By default the value of `asset` is loaded if request data are needed. Where the rows
            hold an on-demand view's features and all its inputs, as a training set does, the features must also equal
            those that its code computes from the inputs now.
        check_options: Further arguments of :func:`dagster.asset_check`.
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
        results: list[FeatureParity] = []
        with ExitStack() as locks:
            for view in comparison.stored_views(service):
                locks.enter_context(alone(store, repo, view, feast.timeout))
            for projection in service.feature_view_projections:
                types = {feature.name: str(feature.dtype) for feature in projection.features}
                results += comparison.of_view(registry.feature_view(store, projection.name), types)
        return _result(results)

    return asset_checks(
        asset=key,
        tool="feast",
        judges={name: (f"`{feature_service}`: online equals offline.", parity)},
        blocking=blocking,
        required_resource_keys=["feast"],
        options=check_options,
    )


def _result(results: list[FeatureParity]) -> dg.AssetCheckResult:
    different = [row for row in results if row.different]
    compared = sum(row.compared for row in results)
    description = ""
    if different:
        description = "different online: " + ", ".join(f"{row.feature} ({row.different})" for row in different)
    elif not compared:
        description = "no feature could be compared: none is served online, or all are ahead of the offline source"
    return dg.AssetCheckResult(
        passed=compared > 0 and not different,
        description=description or None,
        metadata={
            "feast/parity": "no feature is served online",
            **table("feast/parity", [row.__dict__ for row in results], schema=_COLUMNS),
            "feast/different_values": sum(row.different for row in results),
            "feast/compared_values": compared,
            "feast/ahead_values": sum(row.ahead for row in results),
        },
    )
