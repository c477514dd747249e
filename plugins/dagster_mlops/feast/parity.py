"""A gate on features: what is served online equals what a model is trained on."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops.errors import FeatureError
from dagster_mlops.feast import registry
from dagster_mlops.feast.checks import never_missing
from dagster_mlops.feast.materialization import materialized_windows
from dagster_mlops.feast.online import online_values
from dagster_mlops.feast.resource import FeastResource
from dagster_mlops.feast.retrieval import join_keys, point_in_time
from dagster_mlops.feast.source import latest_events

if TYPE_CHECKING:
    import pandas as pd
    from feast import FeatureStore
    from feast.feature_view_projection import FeatureViewProjection


def online_offline_parity_check(
    *,
    asset: dg.AssetKey | dg.AssetsDefinition | str,
    feature_service: str,
    sample: int = 1000,
    tolerance: float = 1e-6,
    seed: int = 0,
    name: str = "online_offline_parity",
    blocking: bool = True,
) -> dg.AssetChecksDefinition:
    """A check that the online store serves what the offline store says, for each feature of a service.

    For up to `sample` entities of each feature view, the offline value is joined at the time of the entity's latest
    materialized event and compared with the value that is served. An entity that is not online at all differs, too.
    Views that are not served online and on-demand views are left out.

        online_offline_parity_check(asset="training_set", feature_service="arrival_delay")

    Args:
        tolerance: Allowed relative difference of numbers: Feast's Float32 keeps 7 digits.
    """

    @dg.asset_check(
        asset=asset, name=name, blocking=blocking, description=f"`{feature_service}`: online equals offline."
    )
    def parity(context: dg.AssetCheckExecutionContext, feast: FeastResource) -> dg.AssetCheckResult:
        def judge() -> dg.AssetCheckResult:
            store = feast.store()
            service = registry.feature_service(store, feature_service)
            rows = [
                row
                for projection in service.feature_view_projections
                for row in _compare(store, projection, sample=sample, tolerance=tolerance, seed=seed)
            ]
            return dg.AssetCheckResult(
                passed=bool(rows) and not any(row.different for row in rows),
                metadata={
                    "feast/parity": dg.MetadataValue.table([dg.TableRecord(row.__dict__) for row in rows])
                    if rows
                    else "no feature of this service is served online",
                    "feast/different_values": sum(row.different for row in rows),
                    "feast/compared_values": sum(row.compared for row in rows),
                },
            )

        return never_missing(judge)

    return parity


@dataclass(frozen=True)
class _Parity:
    feature: str
    compared: int
    different: int
    largest_difference: float | None
    example: str


def _compare(
    store: "FeatureStore", projection: "FeatureViewProjection", *, sample: int, tolerance: float, seed: int
) -> list[_Parity]:
    view: Any = registry.feature_view(store, projection.name)
    if getattr(view, "batch_source", None) is None or not view.online:
        return []
    windows = materialized_windows(view)
    if not windows:
        raise FeatureError(
            f"feature view {view.name!r} was never materialized, so nothing is online. Materialize its asset."
        )
    keys, chosen = join_keys(view), latest_events(store, view, windows, sample=sample, seed=seed)
    types = {f.name: str(f.dtype) for f in projection.features}
    names = [f"{view.name}:{name}" for name in types]
    offline = point_in_time(store, chosen, names, types)
    served = online_values(store, chosen.loc[:, keys], names, types) if keys else offline
    return [_difference(f"{view.name}:{name}", chosen, offline[name], served[name], tolerance) for name in types]


def _difference(feature: str, entities: "pd.DataFrame", offline: Any, online: Any, tolerance: float) -> _Parity:
    missing = offline.isna() & online.isna()
    largest = None
    if offline.dtype == "float64":
        gap = (offline - online).abs()
        same = gap <= tolerance * offline.abs().clip(lower=1)
        largest = float(gap.max()) if gap.notna().any() else None
    else:
        same = offline.map(str) == online.map(str)
    different = ~(same | missing)
    example = ""
    if different.any():
        at = different.idxmax()
        example = f"{entities.loc[at].to_dict()}: offline {offline[at]}, online {online[at]}"
    return _Parity(feature, len(offline), int(different.sum()), largest, example)
