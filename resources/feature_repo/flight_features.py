"""What is known about a flight at its scheduled departure.

Each view's event timestamp is the moment at which its values were *known*, never the moment they describe: weather is
published up to an hour after it was observed, a late arrival counts once the plane is on the ground.
"""

import os
from datetime import timedelta
from pathlib import Path

import pandas as pd
from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.data_format import ParquetFormat
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64

TABLES = Path(os.environ["DAGSTER_MLOPS_STATE"]) / "data" / "source"


def key(name: str, description: str) -> Entity:
    return Entity(name=name, join_keys=[name], value_type=ValueType.STRING, description=description)


def table(name: str) -> FileSource:
    return FileSource(
        name=name, path=str(TABLES / name), file_format=ParquetFormat(), timestamp_field="event_timestamp"
    )


def numbers(*names: str) -> list[Field]:
    return [Field(name=name, dtype=Float64) for name in names]


origin = key("origin", "Airport of departure: EWR, JFK or LGA")
carrier = key("carrier", "Two-letter airline code")
route = key("route", "Origin and destination, e.g. JFK-LAX")
tailnum = key("tailnum", "Registration of the aircraft")

origin_weather = FeatureView(
    name="origin_weather",
    description="Hourly weather at the origin, as published one hour after the observation",
    entities=[origin],
    ttl=timedelta(hours=3),
    schema=numbers("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"),
    source=table("origin_weather"),
    owner="weather@flights.example",
)

carrier_punctuality = FeatureView(
    name="carrier_punctuality",
    description="How late a carrier's flights arrived over the last 6 and 24 hours, hourly",
    entities=[carrier],
    ttl=timedelta(hours=3),
    schema=numbers(
        "carrier_arrivals_6h",
        "carrier_late_6h",
        "carrier_delay_6h",
        "carrier_arrivals_24h",
        "carrier_late_24h",
        "carrier_delay_24h",
    ),
    source=table("carrier_punctuality"),
    owner="operations@flights.example",
)

route_punctuality = FeatureView(
    name="route_punctuality",
    description="How late a route's flights arrived over the last 14 days, daily",
    entities=[route],
    ttl=timedelta(days=2),
    schema=numbers("route_arrivals_14d", "route_late_14d", "route_delay_14d"),
    source=table("route_punctuality"),
    owner="operations@flights.example",
)

origin_congestion = FeatureView(
    name="origin_congestion",
    description="Departures of the last 1 and 3 hours at the origin, and flights overdue at the gate, every 15 minutes",
    entities=[origin],
    ttl=timedelta(hours=1),
    schema=numbers(
        "origin_departures_1h",
        "origin_late_1h",
        "origin_delay_1h",
        "origin_departures_3h",
        "origin_late_3h",
        "origin_delay_3h",
        "origin_waiting",
    ),
    source=table("origin_congestion"),
    owner="operations@flights.example",
)

plane_attributes = FeatureView(
    name="plane_attributes",
    description="Year of construction, seats and engines of the aircraft",
    entities=[tailnum],
    ttl=timedelta(0),  # attributes of a plane do not expire
    schema=numbers("plane_built", "plane_seats", "plane_engines"),
    source=table("plane_attributes"),
    owner="fleet@flights.example",
)

# What the caller knows and no table can: when this flight is to leave, and how far it goes.
schedule = RequestSource(
    name="schedule",
    schema=[
        Field(name="minute_of_week", dtype=Int64),  # local time of departure, minutes since Monday 00:00
        Field(name="scheduled_minutes", dtype=Float64),
        Field(name="distance", dtype=Float64),  # miles
    ],
)


@on_demand_feature_view(
    sources=[schedule],
    schema=numbers("departure_minute", "departure_weekday", "planned_speed"),
    description="Local clock and calendar of the departure, and the speed the timetable counts on, in miles per minute",
    owner="operations@flights.example",
)
def departure_schedule(inputs: pd.DataFrame) -> pd.DataFrame:
    features = pd.DataFrame(index=inputs.index)
    features["departure_minute"] = (inputs["minute_of_week"] % 1440).astype("float64")
    features["departure_weekday"] = (inputs["minute_of_week"] // 1440).astype("float64")
    features["planned_speed"] = inputs["distance"] / inputs["scheduled_minutes"]
    return features


arrival_delay = FeatureService(
    name="arrival_delay",
    description="Everything known at scheduled departure that the arrival delay model uses",
    features=[
        origin_weather,
        carrier_punctuality,
        route_punctuality,
        origin_congestion,
        plane_attributes,
        departure_schedule,
    ],
)
