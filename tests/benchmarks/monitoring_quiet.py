"""False alarms while nothing changes: asked against measured, on consecutive windows of real traffic."""

from collections import Counter
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd

from dagster_mlops.monitoring.detection import Detector
from dagster_mlops.monitoring.windows import History, Profile, Window, cut
from dagster_mlops.monitoring.windows.counts import week_of
from tests.benchmarks.measure import show
from tests.benchmarks.monitoring_data import Data, birds, flights, halves, stops

ZONES = {"flights": "America/New_York", "stops": "America/Chicago", "birds": "UTC"}
SIZES = {"flights": (1000, 200, 50), "stops": (200, 100, 50), "birds": (50, 20, 10)}
PER = {"flights": 30, "stops": 30, "birds": 180}
"""Days in which one false alarm is asked for. Birds strike six aircraft a day: a window of 50 takes a week."""
QUIET = timedelta(days=1)


def micros(frame: pd.DataFrame) -> np.ndarray:
    """The rows' times in microseconds since 1970."""
    return frame["time"].dt.tz_localize(None).astype("datetime64[us]").astype("int64").to_numpy()


def incidents(windows: list[Window], alarms: list[bool]) -> list[Window]:
    """The windows in which an alarm begins after a day of quiet."""
    begins, last = [], None
    for window, alarm in zip(windows, alarms, strict=True):
        if alarm:
            if last is None or window.start - last > QUIET:
                begins.append(window)
            last = window.start
    return begins


def days(windows: list[Window]) -> float:
    """Days that windows cover, without gaps of more than a day."""
    total = timedelta(0)
    for window, following in zip(windows, [*windows[1:], None], strict=True):
        gap = following.start - window.end if following else timedelta(0)
        total += window.end - window.start + min(max(gap, timedelta(0)), QUIET)
    return total / timedelta(days=1)


def split(data: Data, number: int, size: int) -> tuple[Profile, History, list[Window]]:
    """A profile learnt from a random half of the weeks, the windows of that half, and those of the other."""
    frame = data.frame
    week = week_of(micros(frame))
    history, test = halves(sorted(set(week.tolist())), number)
    profile = Profile.learn(frame[np.isin(week, history)], columns=data.columns, zone=ZONES[data.name])
    windows = cut(frame, profile, times="time", rows=size)
    return profile, windows.of_weeks(history), list(windows.of_weeks(test).windows)


def rates(data: Data, size: int, splits: int) -> dict[str, Any]:
    """Alarms of the whole model in 30 days (birds: 180), for each split, where one was asked for."""
    measured, names = [], Counter()
    for number in range(splits):
        profile, history, test = split(data, number, size)
        detector = Detector.calibrate(history, profile=profile, per=timedelta(days=PER[data.name]))
        verdicts = detector.judge_all(test)
        begins = incidents(test, [verdict.alarm for verdict in verdicts])
        by_start = {window.start: verdict for window, verdict in zip(test, verdicts, strict=True)}
        names.update(by_start[window.start].columns[0].column for window in begins)
        measured.append(len(begins) / days(test) * PER[data.name])
    low, high = np.quantile(measured, [0.1, 0.9])
    return {
        "data": data.name, "rows": size, "splits": splits, "mean": float(np.mean(measured)),
        "error": float(np.std(measured) / np.sqrt(splits)), "low": float(low), "high": float(high),
        "columns": dict(names.most_common(5)),
    }  # fmt: skip


def dense(splits: int, weeks: int = 20, rows: int = 30) -> dict[str, Any]:
    """A window every five minutes: the flights made dense.

    Each five minutes of the first weeks of 2013 hold 30 rows drawn with replacement from the flights that leave within
    half an hour of them, so that the rhythm, the weather and the delays are those of the real days; the hours of the
    night without flights have none.
    """
    frame = flights().frame
    clock, rng = micros(frame), np.random.default_rng(0)
    step, reach = 300_000_000, 1_800_000_000
    slots = np.arange(clock[0] // step * step, clock[0] + weeks * 7 * 86_400_000_000, step)
    first, last = np.searchsorted(clock, slots - reach), np.searchsorted(clock, slots + reach)
    slots, first, last = (part[last > first] for part in (slots, first, last))
    drawn = first[:, None] + (rng.random((len(slots), rows)) * (last - first)[:, None]).astype(int)
    table = frame.iloc[drawn.ravel()].reset_index(drop=True)
    table["time"] = pd.to_datetime(np.repeat(slots, rows) + rng.integers(0, step, len(table)), unit="us", utc=True)
    data = Data("dense", table)
    week = week_of(micros(table))
    measured = []
    for number in range(splits):
        history, test = halves(sorted(set(week.tolist())), number)
        sample = table[np.isin(week, history)]
        profile = Profile.learn(sample, columns=data.columns, zone=ZONES["flights"])
        windows = cut(table, profile, times="time", every=timedelta(minutes=5))
        detector = Detector.calibrate(windows.of_weeks(history), profile=profile)
        judged = list(windows.of_weeks(test).windows)
        alarms = [verdict.alarm for verdict in detector.judge_all(judged)]
        measured.append(len(incidents(judged, alarms)) / days(judged) * 30)
    low, high = np.quantile(measured, [0.1, 0.9])
    return {
        "data": "dense flights, every 5 minutes", "rows": rows, "splits": splits, "mean": float(np.mean(measured)),
        "error": float(np.std(measured) / np.sqrt(splits)), "low": float(low), "high": float(high), "columns": {},
    }  # fmt: skip


def march() -> list[dict[str, Any]]:
    """Windows of 2013 after February, with January and February alone as history."""
    data, rows = flights(), []
    border = pd.Timestamp("2013-03-01", tz=ZONES["flights"])
    history, later = (data.frame[data.frame["time"] < border], data.frame[data.frame["time"] >= border])
    profile = Profile.learn(history, columns=data.columns, zone=ZONES["flights"])
    for size in SIZES["flights"]:
        detector = Detector.calibrate(cut(history, profile, times="time", rows=size), profile=profile)
        windows = list(cut(later, profile, times="time", rows=size).windows)
        verdicts = detector.judge_all(windows)
        alarms = [(w, v) for w, v in zip(windows, verdicts, strict=True) if v.alarm]
        first = f"{alarms[0][0].start:%d %B}: {alarms[0][1].columns[0].text()}" if alarms else "none"
        share = {
            month: float(np.mean([v.alarm for w, v in zip(windows, verdicts, strict=True) if w.start.month == month]))
            for month in range(3, 8)
        }
        rows.append({"rows": size, "march": share[3], "first": first, "share": share})
    return rows


def run(splits: int) -> dict[str, Any]:
    """Print the tables of false alarms."""
    table, results = [], []
    for data in filter(None, (flights(), stops(), birds())):
        for size in SIZES[data.name]:
            results.append(rates(data, size, splits))
    results.append(dense(max(3, splits // 3)))
    for r in results:
        table.append([f"{r['data']}, {r['rows']} rows", r["splits"], r["mean"], r["error"], r["low"], r["high"]])
    show(
        "Quiet: alarms of the whole model in 30 days (birds: 180) where 1 was asked for",
        ["windows", "splits", "mean", "± error", "10 %", "90 %"], table,
    )  # fmt: skip
    winter = march()
    show(
        "January and February as history: share of windows that alarm",
        ["rows", "March", "April", "May", "June", "July", "first alarm"],
        [[r["rows"], *r["share"].values(), r["first"]] for r in winter],
    )
    return {"rates": results, "winter": winter}
