"""Checks of features online: they are recent, up to date, and equal to those that a model is trained on."""

from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.core.checks import asset_checks
from dagster_mlops.core.metadata import table
from dagster_mlops.core.tables import as_table
from dagster_mlops.core.upstream import loaded_value
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.lazy import FeatureStore, pd
from dagster_mlops.feast.offline.retrieval import is_on_demand, is_stored
from dagster_mlops.feast.repository import registry
from dagster_mlops.feast.repository.load import read_config
from dagster_mlops.feast.resource import FeastResource

if TYPE_CHECKING:
    from dagster_mlops.feast.checks.online_vs_offline import FeatureParity


def feature_freshness_checks(
    *,
    asset: AssetLike,
    view: str | None = None,
    max_lag: timedelta | None = None,
    warn_lag: timedelta | None = None,
    max_staleness: timedelta = timedelta(0),
    blocking: bool = False,
    **check_options: Any,
) -> list[dg.AssetChecksDefinition]:
    """Two checks on the asset of a feature view, in one step.

    ``features_fresh``: the newest event of the source is not older than `max_lag` or, without it, than the view's ttl,
    after which every served value has expired. ``online_up_to_date``: the online store holds the newest event of the
    source. The check compares the watermark and also reads the entity of that event online, because the watermark is
    not enough: it is too late when a partition was loaded before it was complete, and it stays when the online store is
    emptied. Both checks record seconds, which the UI plots. Needs a ``FeastResource`` under the key ``feast``.

        feature_freshness_checks(asset="origin_weather", max_lag=timedelta(hours=6), warn_lag=timedelta(hours=2))

    Args:
        view: Name of the feature view; by default the asset's name.
        max_lag: Maximum age of the newest event. A view with neither this nor a ttl is measured, and passes.
        warn_lag: Age above which the check fails with severity WARN.
        max_staleness: Maximum time that the online store may be behind the source's newest event.
        blocking: Hold back downstream assets of the run after a failure with severity ERROR.
        check_options: Further arguments of :func:`dagster.asset_check`.
    """
    key = asset_key(asset)
    name = view or key.path[-1]
    judges: dict[str, tuple[str, Callable[[FeatureStore], dg.AssetCheckResult]]] = {
        "features_fresh": ("The newest event is recent enough.", lambda store: _fresh(store, name, max_lag, warn_lag)),
        "online_up_to_date": (
            "The online store holds the newest event.",
            lambda store: _up_to_date(store, name, max_staleness),
        ),
    }
    checks = asset_checks(
        asset=key,
        tool="feast",
        judges=judges,
        evidence=lambda context: context.resources.feast.store(),
        blocking=blocking,
        name=f"{key.to_python_identifier()}_freshness",
        required_resource_keys=["feast"],
        options=check_options,
    )
    return [checks]


def _fresh(
    store: FeatureStore, name: str, max_lag: timedelta | None, warn_lag: timedelta | None
) -> dg.AssetCheckResult:
    from dagster_mlops.feast.offline.source import newest_event  # for steps, not for code locations

    view: Any = registry.feature_view(store, name)
    limit = max_lag or view.ttl or None
    newest, _ = newest_event(store, view)
    lag = datetime.now(UTC) - newest
    late = limit is not None and lag > limit
    warned = warn_lag is not None and lag > warn_lag
    description = f"the newest event of {name!r} is from {newest.isoformat()}, {_short(lag)} ago"
    if limit is not None and late:
        rule = f"at most {_short(limit)} is allowed" if max_lag else f"its ttl is {_short(limit)}, so all have expired"
        description += f"; {rule}. Materialize the assets that write its source"
    elif warned and warn_lag:
        description += f"; more than {_short(warn_lag)}: look at the assets that write its source"
    return dg.AssetCheckResult(
        passed=not late and not warned,
        severity=dg.AssetCheckSeverity.ERROR if late else dg.AssetCheckSeverity.WARN,
        description=description,
        metadata={
            "feast/lag_seconds": lag.total_seconds(),
            "feast/newest_event": dg.MetadataValue.timestamp(newest),
            **({"feast/max_lag_seconds": limit.total_seconds()} if limit else {}),
        },
    )


def _up_to_date(store: FeatureStore, name: str, max_staleness: timedelta) -> dg.AssetCheckResult:
    from dagster_mlops.feast.offline.source import newest_event
    from dagster_mlops.feast.online.materialization import materialized_windows

    view: Any = registry.feature_view(store, name)
    if not view.online:
        return dg.AssetCheckResult(passed=True, description=f"{name!r} is not served online")
    newest, entity = newest_event(store, view)
    watermark = max((window.end for window in materialized_windows(view)), default=None)
    served = _served_event(store, view, entity) if entity else newest
    is_served = served is not None and served >= newest.replace(microsecond=0)  # Feast answers in whole seconds
    if is_served and getattr(view, "stream_source", None):
        reached = newest  # a push does not move the watermark
    elif watermark is None or watermark <= newest or is_served:
        reached = watermark
    else:
        reached = served  # the window was loaded before the source held the event, or the event was deleted online
    staleness = max(newest - reached, timedelta(0)) if reached else None
    passed = staleness is not None and staleness <= max_staleness
    behind = f"{_short(staleness)} behind" if staleness is not None else "without"
    description = f"{name!r} is online up to the newest event of its source, {newest.isoformat()}"
    if not passed:
        who = f" (entity {', '.join(f'{k}={v!r}' for k, v in entity.items())})" if entity else ""
        description = f"{name!r} is online {behind} the newest event of its source, {newest.isoformat()}{who}. "
        description += "Rematerialize the partition of that time"
    timestamps = {"newest_event": newest, "watermark": watermark, "served_event": served if entity else None}
    return dg.AssetCheckResult(
        passed=passed,
        description=description,
        metadata={
            **({"feast/staleness_seconds": staleness.total_seconds()} if staleness is not None else {}),
            **{f"feast/{noun}": dg.MetadataValue.timestamp(time) for noun, time in timestamps.items() if time},
        },
    )


def _served_event(store: FeatureStore, view: Any, entity: dict[str, Any]) -> datetime | None:
    """The timestamp of the event that is served for an entity, in whole seconds."""
    from dagster_mlops.feast.online.reading import served_answer

    feature = view.features[0].name
    rows = {key: [value] for key, value in entity.items()}
    [seconds] = served_answer(store, [f"{view.name}:{feature}"], rows, 1)[f"{feature}__ts"]
    return datetime.fromtimestamp(seconds, UTC) if seconds else None


def _short(span: timedelta) -> str:
    return str(timedelta(seconds=round(span.total_seconds())))


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
        from dagster_mlops.feast.checks.online_vs_offline import Comparison
        from dagster_mlops.feast.online.materialization import alone

        def requests() -> "pd.DataFrame":
            if request_data is not None:
                return request_data() if callable(request_data) else request_data
            partition = context.partition_key if context.has_partition_key else None
            rows = loaded_value(context.op_execution_context, key, partition=partition)
            return as_table(rows, tool="feast", error=FeatureError).to_pandas()

        feast: FeastResource = context.resources.feast
        store, repo = feast.store(), read_config(feast.repo).path
        service, views, _ = registry.parts_of(store, feature_service)
        comparison = Comparison(store, sample=sample, tolerance=tolerance, seed=seed, requests=requests)
        results: list[FeatureParity] = []
        with ExitStack() as locks:
            for view in sorted(view.name for view in views if not is_on_demand(view) or is_stored(view)):
                locks.enter_context(alone(store, repo, view, feast.timeout))
            types: dict[str, dict[str, str]] = {}
            for used in service.feature_view_projections:  # a view may be in it twice, for two entities
                types.setdefault(used.name, {}).update({field.name: str(field.dtype) for field in used.features})
            for view, features in types.items():
                results += comparison.of_view(registry.feature_view(store, view), features)
        return _result(results)

    return asset_checks(
        asset=key,
        tool="feast",
        judges={name: (f"`{feature_service}`: online equals offline.", parity)},
        blocking=blocking,
        required_resource_keys=["feast"],
        options=check_options,
    )


def _result(results: "list[FeatureParity]") -> dg.AssetCheckResult:
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
            **table("feast/parity", results),
            "feast/different_values": sum(row.different for row in results),
            "feast/compared_values": compared,
            "feast/ahead_values": sum(row.ahead for row in results),
        },
    )
