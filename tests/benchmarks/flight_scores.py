"""The flights of 2013 with the scores of a boosted model that learnt from January and February."""

import functools
from typing import Any, NamedTuple

import pandas as pd

from assets.data import source_table


class Flights(NamedTuple):
    """Flights with scores, the model that made them, and its inputs."""

    rows: pd.DataFrame
    model: Any
    inputs: list[str]


def flight_scores() -> pd.DataFrame:
    """The rows of :func:`scored_flights`."""
    return scored_flights().rows


@functools.cache
def scored_flights() -> Flights:
    """Scheduled time, inputs, probability and label (late by more than 15 minutes) of each flight that arrived.

    The inputs are known at scheduled departure, or nearly: hourly weather, and what is on the ticket.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    flights, weather = source_table("flights"), source_table("weather")
    rows = flights[flights["arr_delay"].notna()].copy()
    rows["at"] = pd.to_datetime(rows["time_hour"], utc=True) + pd.to_timedelta(rows["minute"], unit="m")
    hourly = weather[["origin", "time_hour", "temp", "humid", "wind_speed", "precip", "visib"]]
    rows = rows.merge(hourly.drop_duplicates(["origin", "time_hour"]), on=["origin", "time_hour"], how="left")
    rows = rows.sort_values(["at", "flight"], kind="stable").reset_index(drop=True)
    # Delays of the flights that were to leave from the same airport one to three hours before.
    for key in ("origin", "carrier"):
        means = rows.groupby([key, "time_hour"])["dep_delay"].mean().reset_index(name="delay")
        means["time_hour"] = (pd.to_datetime(means["time_hour"], utc=True) + pd.Timedelta(hours=2)).dt.strftime(
            "%Y-%m-%dT%H:%M:%SZ"
        )
        rows = rows.merge(means.rename(columns={"delay": f"{key}_delay"}), on=[key, "time_hour"], how="left")
    rows["late"] = (rows["arr_delay"] > 15).astype(int)
    rows["carrier_code"] = rows["carrier"].astype("category").cat.codes
    rows["origin_code"] = rows["origin"].astype("category").cat.codes
    inputs = [
        "hour", "minute", "distance", "carrier_code", "origin_code", "temp", "humid", "wind_speed", "precip", "visib",
        "origin_delay", "carrier_delay",
    ]  # fmt: skip
    months = rows["at"].dt.month
    model = HistGradientBoostingClassifier(max_iter=80, random_state=0)
    model.fit(rows.loc[months <= 2, inputs], rows.loc[months <= 2, "late"])
    rows["probability"] = model.predict_proba(rows[inputs])[:, 1]
    rows["predicted"] = (rows["probability"] >= 0.5).astype(int)
    rows["month"] = months
    return Flights(rows[["at", "month", "carrier", *inputs, "probability", "predicted", "late"]], model, inputs)
