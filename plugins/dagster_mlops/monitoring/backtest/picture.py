"""The picture of a backtest: scores over time, the threshold, alarms and incidents."""

from datetime import datetime
from pathlib import Path
from typing import Any

from dagster_mlops.core.arrays import np
from dagster_mlops.core.pictures import MOST_BYTES, drawn, label, new_figure
from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring.backtest.result import Backtest

_TOOL = "monitoring"


def expect_picture(path: Path) -> None:
    """Refuse a file that no picture can be written to, before the work that it is to show.

    Raises:
        MonitoringError: Its name ends differently, or its folder is not there.
    """
    if path.suffix.lower() not in (".png", ".html"):
        raise MonitoringError(f"--picture {path}: name a file that ends in .png or .html.")
    if not path.parent.is_dir():
        raise MonitoringError(f"--picture {path}: the folder {path.parent} does not exist. Make it, or name another.")


def save_picture(result: Backtest, path: Path) -> None:
    """Write a PNG, or an HTML page with it.

    Raises:
        MonitoringError: it cannot be drawn.
    """
    picture = drawn("Backtest", lambda: _figure(result), tool=_TOOL)
    if picture.problem:
        raise MonitoringError(f"the picture cannot be drawn: {picture.problem}")
    if path.suffix.lower() == ".png":
        path.write_bytes(picture.content)
        return
    source = picture.markdown().rpartition("(")[2].rstrip(")\n ")
    page = f'<!doctype html><meta charset="utf-8"><title>Backtest</title><img alt="Backtest" src="{source}">'
    assert len(page) < 2 * MOST_BYTES
    path.write_text(page, encoding="utf-8")


def _place(time: datetime) -> Any:
    return np.datetime64(time.replace(tzinfo=None))


def _figure(result: Backtest):  # noqa: ANN202 - matplotlib's figure, imported where it is drawn
    figure = new_figure(9, 3.2, tool=_TOOL)
    axes = figure.subplots()
    times = np.array([time.replace(tzinfo=None) for time in result.times], "datetime64[us]")
    most = 3 * result.threshold
    scores = np.clip(np.nan_to_num(np.array(result.scores), neginf=0), 0, most)
    axes.plot(times, scores, color="#9aa5b1", linewidth=0.8)
    axes.axhline(result.threshold, color="#d9480f", linewidth=0.8, linestyle="--")
    for alarm in result.alarms:
        axes.axvspan(_place(alarm.start), _place(alarm.end), color="#d9480f", alpha=0.25)
    for catch in result.catches:
        start = _place(catch.start)
        axes.axvline(start, color="#1971c2", linewidth=0.8)
        axes.annotate(label(catch.incident, 30), (start, most), fontsize=6, rotation=90, va="top", color="#1971c2")
    axes.set_ylim(0, most * 1.03)
    axes.set_ylabel("score")
    return figure
