"""Feature tables, each value stamped with the moment it was known, and their Feast views.

Nothing here may look past its own time stamp. `tests/product/test_reference_location.py` proves it on the real data:
garbling every outcome that was not yet known at some instant changes no feature up to that instant.
"""

from datetime import timedelta
from typing import TYPE_CHECKING

import dagster as dg

from assets.data import MONTHS, NEW_YORK, DataFrame, flights, with_instants
from dagster_mlops.dvc import dataset_asset
from dagster_mlops.feast import feature_view_assets
from resources import FEATURE_REPO

if TYPE_CHECKING:
    import pandas as pd

LATE_MINUTES = 15

# Trailing windows reach back up to 14 days, so a month's features need the flights of the month before.
THIS_AND_LAST_MONTH = dg.TimeWindowPartitionMapping(start_offset=-1)
FLIGHTS = dg.AssetIn(flights.key, partition_mapping=THIS_AND_LAST_MONTH)


def month_grid(partition: str, every: str, *, offset: str = "0h") -> "pd.DatetimeIndex":
    """The instants of a month at which features are computed: from local midnight of the 1st, end excluded."""
    import pandas as pd

    start = pd.Timestamp(partition, tz=NEW_YORK)
    grid = pd.date_range(start, start + pd.offsets.MonthBegin(1), freq=every, inclusive="left").tz_convert("UTC")
    return (grid + pd.Timedelta(offset)).as_unit("us")


def trailing(
    events: DataFrame,
    *,
    by: str,
    known: str,
    grid: "pd.DatetimeIndex",
    windows: dict[str, timedelta],
    counted: str,
    averaged: dict[str, str],
) -> DataFrame:
    """Count and average `events` over windows that end at each instant of `grid`.

    An event belongs to the window (t − width, t] by the moment it became `known`. `windows` maps suffix → width,
    `averaged` maps column → name of the feature. A mean over no event is missing, not zero.

    Returns:
        One row per key of `by` and instant: `by`, `event_timestamp`, and float features `<by>_<name>_<suffix>`.
    """
    import numpy as np
    import pandas as pd

    instants = grid.tz_localize(None).to_numpy()
    parts = []
    for key, group in events.dropna(subset=[known]).sort_values(known, kind="stable").groupby(by):
        moments = group[known].dt.tz_localize(None).to_numpy()
        upto = np.searchsorted(moments, instants, side="right")
        part = {by: key, "event_timestamp": grid}
        for suffix, width in windows.items():
            after = np.searchsorted(moments, instants - np.timedelta64(width), side="right")
            count = upto - after
            part[f"{by}_{counted}_{suffix}"] = count.astype(float)
            for column, name in averaged.items():
                total = np.concatenate([[0.0], np.cumsum(group[column].to_numpy(dtype=float))])
                with np.errstate(invalid="ignore"):
                    part[f"{by}_{name}_{suffix}"] = np.where(count > 0, (total[upto] - total[after]) / count, np.nan)
        parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)


def waiting_at_gate(flown: DataFrame, grid: "pd.DatetimeIndex") -> DataFrame:
    """How many flights of an origin are past their scheduled departure by up to 3 hours and have not left yet."""
    import numpy as np
    import pandas as pd

    instants = grid.tz_localize(None).to_numpy()
    parts = []
    for origin, group in flown.groupby("origin"):
        due = group["scheduled"].dt.tz_localize(None).to_numpy()
        left = np.fmin(group["departed"].dt.tz_localize(None).to_numpy(), due + np.timedelta64(3, "h"))
        # Before the first and after the last instant there is nothing to count: the extra slot swallows both.
        change = np.zeros(len(instants) + 1)
        np.add.at(change, np.searchsorted(instants, due), 1)
        np.add.at(change, np.searchsorted(instants, np.maximum(left, due)), -1)
        waiting = np.cumsum(change)[:-1]
        parts.append(pd.DataFrame({"origin": origin, "event_timestamp": grid, "origin_waiting": waiting}))
    return pd.concat(parts, ignore_index=True)


def carrier_table(flown: DataFrame, partition: str) -> DataFrame:
    return trailing(
        _arrivals(flown),
        by="carrier",
        known="arrived",
        grid=month_grid(partition, "h"),
        windows={"6h": timedelta(hours=6), "24h": timedelta(hours=24)},
        counted="arrivals",
        averaged={"late": "late", "arr_delay": "delay"},
    )


def route_table(flown: DataFrame, partition: str) -> DataFrame:
    # 03:00 in New York: the night's last arrivals are in, the morning's first departures are not out.
    return trailing(
        _arrivals(flown),
        by="route",
        known="arrived",
        grid=month_grid(partition, "D", offset="3h"),
        windows={"14d": timedelta(days=14)},
        counted="arrivals",
        averaged={"late": "late", "arr_delay": "delay"},
    )


def congestion_table(flown: DataFrame, partition: str) -> DataFrame:
    grid = month_grid(partition, "15min")
    departures = flown.assign(late=(flown["dep_delay"] > LATE_MINUTES).astype(float))
    table = trailing(
        departures,
        by="origin",
        known="departed",
        grid=grid,
        windows={"1h": timedelta(hours=1), "3h": timedelta(hours=3)},
        counted="departures",
        averaged={"late": "late", "dep_delay": "delay"},
    )
    return table.merge(waiting_at_gate(flown, grid), on=["origin", "event_timestamp"], how="left")


def weather_table(weather: DataFrame) -> DataFrame:
    import pandas as pd

    columns = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]
    published = pd.to_datetime(weather["time_hour"], utc=True) + pd.Timedelta(hours=1)
    table = weather[["origin", *columns]].astype(dict.fromkeys(columns, float))
    table.insert(1, "event_timestamp", published.astype("datetime64[us, UTC]"))
    return table


def plane_table(planes: DataFrame) -> DataFrame:
    import pandas as pd

    table = planes[["tailnum"]].assign(event_timestamp=pd.Timestamp("2012-12-31", tz="UTC").as_unit("us"))
    for feature, column in {"plane_built": "year", "plane_seats": "seats", "plane_engines": "engines"}.items():
        table[feature] = planes[column].astype(float)
    return table


def _arrivals(flown: DataFrame) -> DataFrame:
    landed = flown.dropna(subset=["arrived"])
    return landed.assign(late=(landed["arr_delay"] > LATE_MINUTES).astype(float))


@dataset_asset(
    key_prefix="source",
    path="source/carrier_punctuality/{partition}.parquet",
    partitions_def=MONTHS,
    ins={"flights": FLIGHTS},
    group_name="features",
    code_version="1",
)
def carrier_punctuality(context: dg.AssetExecutionContext, flights: DataFrame, airports: DataFrame) -> DataFrame:
    """Trailing punctuality of each carrier, every hour."""
    return carrier_table(with_instants(flights, airports), context.partition_key)


@dataset_asset(
    key_prefix="source",
    path="source/route_punctuality/{partition}.parquet",
    partitions_def=MONTHS,
    ins={"flights": FLIGHTS},
    group_name="features",
    code_version="1",
)
def route_punctuality(context: dg.AssetExecutionContext, flights: DataFrame, airports: DataFrame) -> DataFrame:
    """Trailing punctuality of each route, every night."""
    return route_table(with_instants(flights, airports), context.partition_key)


@dataset_asset(
    key_prefix="source",
    path="source/origin_congestion/{partition}.parquet",
    partitions_def=MONTHS,
    ins={"flights": FLIGHTS},
    group_name="features",
    code_version="1",
)
def origin_congestion(context: dg.AssetExecutionContext, flights: DataFrame, airports: DataFrame) -> DataFrame:
    """Recent departures and flights overdue at the gate of each origin, every quarter of an hour."""
    return congestion_table(with_instants(flights, airports), context.partition_key)


@dataset_asset(
    key_prefix="source",
    path="source/origin_weather/{partition}.parquet",
    partitions_def=MONTHS,
    group_name="features",
    code_version="1",
)
def origin_weather(weather: DataFrame) -> DataFrame:
    """Weather at each origin, stamped with the hour it was published."""
    return weather_table(weather)


@dataset_asset(
    key_prefix="source", path="source/plane_attributes/planes.parquet", group_name="features", code_version="1"
)
def plane_attributes(planes: DataFrame) -> DataFrame:
    """Year of construction, seats and engines of each plane."""
    return plane_table(planes)


VIEWS = ("origin_weather", "carrier_punctuality", "route_punctuality", "origin_congestion")
EAGER = dg.AutomationCondition.eager()
# Without this, a parent that is materialized again with the very same data would set everything downstream going.
FRESH = EAGER.replace("newly_updated", dg.AutomationCondition.data_version_changed())
# Dagster's own looks at the latest partition only; the year of the flights is over, so that would be none.
FRESH_IN_ANY_MONTH = EAGER.without(dg.AutomationCondition.in_latest_time_window()).replace(
    "newly_updated", dg.AutomationCondition.data_version_changed()
)

feature_views = [
    *feature_view_assets(
        repo=FEATURE_REPO,
        views=VIEWS,
        partitions_def=MONTHS,
        deps={view: [dg.AssetKey(["source", view])] for view in VIEWS},
        group_name="features",
    ),
    *feature_view_assets(
        repo=FEATURE_REPO,
        views=("plane_attributes",),
        deps={"plane_attributes": [plane_attributes.key]},
        group_name="features",
    ),
]
