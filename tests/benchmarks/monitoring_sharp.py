"""Faults that are put into real windows: the share that is an alarm in its first window, and the rows until then."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd

from dagster_mlops.monitoring.detection import Detector, Recent
from dagster_mlops.monitoring.windows import Profile, Window, cut
from tests.benchmarks.measure import show
from tests.benchmarks.monitoring_data import Data, flights, halves
from tests.benchmarks.monitoring_quiet import PER, ZONES, micros, week_of

STRENGTHS = (0.25, 0.5, 1.0)
BROKEN = (
    "missing", "infinite", "times 1,000", "default 0", "in °C", "another column's values", "swapped with another",
)  # fmt: skip
COLUMNS = ("temp", "humid", "wind_speed", "departure_minute", "distance", "route_delay_14d")


def _some(frame: pd.DataFrame, column: str, values: Any, share: float, rng: np.random.Generator) -> pd.DataFrame:
    """`values` in a random share of the rows of a column."""
    changed = rng.random(len(frame)) < share
    return frame.assign(**{column: np.where(changed, values, frame[column])})


def faults(deviation: pd.Series, strength: float, rng: np.random.Generator) -> dict[str, Callable[[pd.DataFrame], Any]]:
    """Kinds of faults in one column, each of a strength from 0 to 1."""
    s, sd = strength, deviation
    return {
        "temp + s·sd (slow column)": lambda f: f.assign(temp=f["temp"] + s * sd["temp"]),
        "distance + s·sd": lambda f: f.assign(distance=f["distance"] + s * sd["distance"]),
        "probability + s·sd": lambda f: f.assign(probability=np.clip(f["probability"] + s * sd["probability"], 0, 1)),
        "distance × (1 + s)": lambda f: f.assign(distance=f["distance"] * (1 + s)),
        "temp in °C, share s": lambda f: _some(f, "temp", (f["temp"] - 32) / 1.8, s, rng),
        "temp and humid swapped, share s": lambda f: (lambda m: f.assign(
            temp=np.where(m, f["humid"], f["temp"]), humid=np.where(m, f["temp"], f["humid"])
        ))(rng.random(len(f)) < s),
        "distance default 0, share s/2": lambda f: _some(f, "distance", 0.0, s / 2, rng),
        "temp missing, share s/2": lambda f: _some(f, "temp", np.nan, s / 2, rng),
        "carrier missing, share s/2": lambda f: _some(f, "carrier", None, s / 2, rng),
        "new carrier, share s/4": lambda f: _some(f, "carrier", "ZZ", s / 4, rng),
        "carrier becomes EV, share s/2": lambda f: _some(f, "carrier", "EV", s / 2, rng),
        "distance of JetBlue × (1 + s)": lambda f: f.assign(
            distance=np.where(f["carrier"] == "B6", f["distance"] * (1 + s), f["distance"])
        ),
        "temp ramps to + s·sd in the window": lambda f: f.assign(
            temp=f["temp"] + np.linspace(0, s, len(f)) * sd["temp"]
        ),
    }  # fmt: skip


def broken(frame: pd.DataFrame, kind: str, column: str) -> pd.DataFrame:
    """One column broken in all rows: the other one is ``humid``, and ``temp`` for itself."""
    x, other = frame[column], "humid" if column != "humid" else "temp"
    values = {
        "missing": np.nan, "infinite": np.inf, "times 1,000": x * 1000, "default 0": 0.0, "in °C": (x - 32) / 1.8,
        "another column's values": frame.get(other), "swapped with another": frame.get(other),
    }[kind]  # fmt: skip
    changed = frame.assign(**{column: values})
    return changed.assign(**{other: x}) if kind == "swapped with another" else changed


class World:
    """A detector calibrated on a random half of the weeks, and windows of the other half with the days before them."""

    def __init__(self, data: Data, number: int, size: int, windows: int) -> None:
        frame = data.frame
        self.clock = micros(frame)
        week = week_of(self.clock)
        history, test = halves(sorted(set(week.tolist())), number)
        self.sample = frame[np.isin(week, history)]
        self.profile = Profile.learn(self.sample, columns=data.columns, zone=ZONES[data.name])
        year = cut(frame, self.profile, times="time", rows=size)
        per = timedelta(days=PER[data.name])
        self.detector = Detector.calibrate(year.of_weeks(history), profile=self.profile, per=per)
        judged = list(year.of_weeks(test).windows)
        self.rng = np.random.default_rng(number)
        self.cases: list[tuple[pd.DataFrame, Window, Recent]] = []
        for place in self.rng.choice(np.arange(20, len(judged)), windows, replace=False).tolist():
            recent = Recent()
            for before in judged[max(0, place - 5000 // size - 2) : place]:
                recent = recent.after(before)
            window = judged[place]
            rows = frame[(frame["time"] >= window.start) & (frame["time"] < window.end)].iloc[:size]
            self.cases.append((rows, window, recent))

    def alarms(self, rows: pd.DataFrame, window: Window, recent: Recent) -> bool:
        """True if the window is an alarm with these rows in it."""
        counts = self.profile.count(rows, "time")
        return self.detector.judge(Window(window.start, window.end, counts), recent).alarm


def seen(data: Data, size: int, splits: int, windows: int = 6) -> dict[str, Any]:
    """Share of windows that are an alarm, by fault and strength."""
    results: dict[tuple[str, float], list[bool]] = {}
    total: dict[tuple[str, bool], list[bool]] = {}
    for number in range(splits):
        world = World(data, number, size, windows)
        deviation = pd.Series(world.sample.select_dtypes("number").std())
        for rows, window, recent in world.cases:
            results.setdefault(("nothing", 0.0), []).append(world.alarms(rows, window, recent))
            for strength in STRENGTHS:
                for name, fault in faults(deviation, strength, world.rng).items():
                    results.setdefault((name, strength), []).append(world.alarms(fault(rows), window, recent))
        for rows, window, recent in world.cases[:2]:
            outlier = rows.assign(probability=np.where(np.arange(len(rows)) == 0, 1e9, rows["probability"]))
            for kind in BROKEN:
                for column in COLUMNS:
                    for base in (rows, outlier):
                        verdict = world.alarms(broken(base, kind, column), window, recent)
                        total.setdefault((kind, base is outlier), []).append(verdict)
    return {
        "rows": size,
        "seen": [(*key, float(np.mean(alarms)), len(alarms)) for key, alarms in results.items()],
        "broken": [(*key, float(np.mean(alarms)), len(alarms)) for key, alarms in total.items()],
    }


def independent(size: int = 1000, shift: float = 0.3) -> dict[str, float]:
    """Rows in random order, hence independent: share of windows that are an alarm when a column moves by 0.3 sd."""
    frame = flights().frame
    rng = np.random.default_rng(5)
    mixed = frame.iloc[rng.permutation(len(frame))].reset_index(drop=True).assign(time=frame["time"].to_numpy())
    data = Data("flights", mixed.assign(time=frame["time"]))
    columns = ["temp", "humid", "distance", "departure_minute", "probability", "wind_speed", "origin_waiting"]
    alarms: dict[str, list[bool]] = {name: [] for name in ("nothing", *columns)}
    for number in range(3):
        world = World(data, number, size, 20)
        deviation = pd.Series(world.sample.select_dtypes("number").std())
        for rows, window, recent in world.cases:
            alarms["nothing"].append(world.alarms(rows, window, recent))
            for name in columns:
                moved = rows.assign(**{name: rows[name] + shift * deviation[name]})
                alarms[name].append(world.alarms(moved, window, recent))
    return {name: float(np.mean(parts)) for name, parts in alarms.items()}


def oracle_delay(shift: float, false_alarm_rows: float) -> float:
    """Rows until a CUSUM that knows column, size and sign of a shift (in sd) alarms, at a mean time between false ones.

    Siegmund's approximation (1985, https://doi.org/10.1007/978-1-4757-1862-1) for independent normal rows.
    """
    k = shift / 2

    def rows_until(bar: float, sign: float) -> float:
        x = 2 * k * bar * sign
        return float((np.exp(-x) + x - 1) / (2 * k * k))

    bars = np.linspace(0.1, 60, 6000)
    bar = bars[np.argmax([rows_until(b, -1) >= false_alarm_rows for b in bars])]
    return rows_until(bar, 1)


def delays(shifts: tuple[float, ...] = (0.25, 0.5, 1.0), sizes: tuple[int, ...] = (1000, 200, 50)) -> list[list[Any]]:
    """Mean rows from a shift of `distance` to the end of the alarming window, rows independent, beside the oracle."""
    frame = flights().frame
    rng = np.random.default_rng(6)
    order = rng.permutation(len(frame))
    mixed = frame.iloc[order].reset_index(drop=True).assign(time=frame["time"])
    month = len(frame) / 365 * 30
    table = []
    for shift in shifts:
        row: list[Any] = [f"{shift} sd", oracle_delay(shift, month)]
        for size in sizes:
            world = World(Data("flights", mixed), 0, size, 1)
            deviation = float(world.sample["distance"].std())
            rows_needed = []
            for start in range(0, 20):
                begin = 50_000 + start * 7001
                # The shift begins somewhere inside of a window.
                offset = int(rng.integers(0, size))
                recent = Recent()
                for part in range(6):
                    rows = mixed.iloc[begin + part * size : begin + (part + 1) * size]
                    window = _window(world.profile, rows)
                    recent = recent.after(window)
                begin += 6 * size
                for part in range(40):
                    rows = mixed.iloc[begin + part * size : begin + (part + 1) * size]
                    moved = np.arange(part * size, (part + 1) * size) >= offset
                    rows = rows.assign(distance=rows["distance"] + np.where(moved, shift * deviation, 0))
                    window = _window(world.profile, rows)
                    if world.detector.judge(window, recent).alarm:
                        rows_needed.append((part + 1) * size - offset)
                        break
                    recent = recent.after(window)
                else:
                    rows_needed.append(40 * size)
            row.append(float(np.mean(rows_needed)))
        table.append(row)
    return table


def _window(profile: Profile, rows: pd.DataFrame) -> Window:
    start, end = rows["time"].iloc[0].to_pydatetime(), rows["time"].iloc[-1].to_pydatetime()
    return Window(start, end, profile.count(rows, "time"))


def run(splits: int) -> dict[str, Any]:
    """Print the tables of faults."""
    by_size = [seen(flights(), size, splits) for size in (1000, 200, 50)]
    names = list(dict.fromkeys(name for name, *_ in by_size[0]["seen"]))
    cells = {(r["rows"], name, s): share for r in by_size for name, s, share, _ in r["seen"]}
    rows = [
        [name, *(" / ".join(f"{cells[r['rows'], name, s]:.2f}" for s in STRENGTHS if (r["rows"], name, s) in cells)
                 or f"{cells[r['rows'], name, 0.0]:.2f}" for r in by_size)]
        for name in names
    ]  # fmt: skip
    show("Sharp: share of alarms in the first window, s = .25 / .5 / 1", ["fault", "1,000", "200", "50"], rows)
    show(
        "One column broken in all rows: share of alarms in the first window, without and with an outlier in another",
        ["fault", *(f"{r['rows']} rows" for r in by_size)],
        [
            [kind, *(" / ".join(f"{share:.2f}" for k, _, share, _ in r["broken"] if k == kind) for r in by_size)]
            for kind in BROKEN
        ],
    )
    alone = independent()
    show("1,000 independent rows, a column moved by 0.3 sd", ["column", "alarms"], list(map(list, alone.items())))
    late = delays()
    show(
        "Rows from a shift of one column to the alarm, independent rows, 1 false alarm in 30 days",
        ["shift", "oracle CUSUM", "windows of 1,000", "200", "50"], late,
    )  # fmt: skip
    return {"seen": by_size, "independent": alone, "delays": late}
