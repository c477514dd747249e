"""Traffic of a made-up model with days, weeks and weather in it, as a history and as a prediction log."""

import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dagster_mlops.serving import PredictionLog
from dagster_mlops.serving.runtime.log.predictions import Rows

COLUMNS = ["temp", "wind", "origin", "probability"]
OUTPUTS = {"probability": "output"}


def traffic(start: datetime, days: float, *, per_hour: int = 60, seed: int = 0) -> pd.DataFrame:
    """Rows at even times: temperatures of a day with its weather, winds, origins by the hour, and predictions."""
    random = np.random.default_rng(seed)
    count = round(days * 24 * per_hour)
    times = pd.date_range(start, periods=count, freq=timedelta(hours=1) / per_hour, unit="us")
    hours = np.arange(count) / per_hour
    steps = random.normal(size=max(1, round(days * 24)) + 2) * 0.5
    weather = np.zeros(len(steps))
    for i in range(1, len(steps)):
        weather[i] = 0.95 * weather[i - 1] + steps[i]
    clock = times.to_series().dt.hour.to_numpy() + times.to_series().dt.minute.to_numpy() / 60
    temp = 15 + 8 * np.sin((clock - 9) / 24 * 2 * np.pi) + np.interp(hours, np.arange(len(weather)), weather)
    wind = random.gamma(2, 3, count)
    is_night = (clock < 6) | (clock > 20)
    origin = np.where(random.random(count) < np.where(is_night, 0.7, 0.4), "EWR", "JFK")
    probability = 1 / (1 + np.exp(2 - wind / 5 + 0.02 * temp + random.normal(size=count) * 0.3))
    return pd.DataFrame({"time": times, "temp": temp, "wind": wind, "origin": origin, "probability": probability})


class TimedLog(PredictionLog):
    """A prediction log whose rows have the times that a test names."""

    def write_frame(self, rows: pd.DataFrame) -> None:
        """Append rows of :func:`traffic`, each with its own time."""
        values: Any = rows.drop(columns=["time", "probability"]).astype(object).where(rows.notna(), None)
        lines: dict[str, list[bytes]] = {}
        for time, features, output in zip(rows["time"], values.to_dict("records"), rows["probability"], strict=True):
            content = Rows([features], [output], [uuid.uuid4().hex], "", 0.01)
            lines.setdefault(f"{time:%Y-%m-%d}", []).extend(self._lines(content, time.to_pydatetime()))
        for day, content in lines.items():
            self._append(b"\n".join(content) + b"\n", day)


def log_of(folder: Path, rows: pd.DataFrame, *, version: str = "7") -> TimedLog:
    """A log in `folder` with the rows."""
    facts: Any = {"deployment": "delay/1", "bento": "delay:1", "model_name": "delay", "model_version": version}
    log = TimedLog(str(folder), rotate=False, **facts)
    log.write_frame(rows)
    return log


MONDAY = datetime(2026, 1, 5, tzinfo=UTC)
