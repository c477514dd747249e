"""Pictures of an alarm: scores over time with the threshold, and columns of a window beside what was expected."""

import dataclasses
from collections.abc import Sequence
from datetime import datetime
from functools import partial

import dagster as dg

from dagster_mlops.core.arrays import np
from dagster_mlops.core.pictures import Figure, drawn, gallery, label, new_figure
from dagster_mlops.monitoring.detection import Detector
from dagster_mlops.monitoring.windows import Window

_TOOL = "monitoring"  # the extra that brings matplotlib
_MOST = 6  # columns
_EXPECTED, _SEEN = "#9aa5b1", "#d9480f"
_BINS = 12


def scores(
    key: str, ends: Sequence[datetime], values: Sequence[float], threshold: float
) -> dict[str, dg.MarkdownMetadataValue]:
    """A line of the scores of windows, the threshold, and marks for the windows above it."""
    plot = gallery([drawn("Scores", partial(_scores, ends, values, threshold), tool=_TOOL)])
    return {key: plot} if plot else {}


def columns(key: str, window: Window, detector: Detector, names: Sequence[str]) -> dict[str, dg.MarkdownMetadataValue]:
    """Shares of the rows by bin, of up to six columns, beside those expected at these hours of the week."""
    plot = gallery([drawn("Columns", partial(_columns, window, detector, names[:_MOST]), tool=_TOOL)])
    return {key: plot} if plot else {}


def _scores(ends: Sequence[datetime], values: Sequence[float], threshold: float) -> "Figure | None":
    if not values:
        return None
    figure = new_figure(8, 2.4, tool=_TOOL)
    axes = figure.subplots()
    # A structural finding has a score of thousands, beside which the others would be a flat line.
    heights = np.clip(np.nan_to_num(np.array(values, float), nan=np.inf), 0, 3 * threshold)
    times = np.array([end.replace(tzinfo=None) for end in ends], "datetime64[us]")
    axes.plot(times, heights, color=_EXPECTED, linewidth=0.8)
    above = np.array(values, float) >= threshold
    axes.scatter(times[above], heights[above], color=_SEEN, s=14, zorder=3)
    axes.axhline(threshold, color=_SEEN, linewidth=0.8, linestyle="--")
    axes.set_ylabel("score", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.set_ylim(0, 3.1 * threshold)
    return figure


def _columns(window: Window, detector: Detector, names: Sequence[str]) -> "Figure | None":
    profile = detector.profile
    drawable = [name for name in names if any(column.name == name for column in profile.columns)]
    if not drawable or not window.counts.rows:
        return None
    expected_bins = window.hours(profile.zone) @ detector.expected[:, : profile.size]
    expected = dataclasses.replace(window.counts, bins=expected_bins)
    width = min(2, len(drawable))
    height = -(-len(drawable) // width)
    figure = new_figure(4.6 * width, 2.6 * height, tool=_TOOL)
    grid = figure.subplots(height, width, squeeze=False).flat
    for axes, name in zip(grid, drawable, strict=False):
        usual = dict(profile.histogram(expected, name))
        seen = {bin: count / window.counts.rows for bin, count in profile.histogram(window.counts, name)}
        most = sorted((bin for bin in usual if seen[bin] or usual[bin]), key=lambda bin: -max(seen[bin], usual[bin]))
        bins = [bin for bin in usual if bin in most[:_BINS]]
        places = np.arange(len(bins))
        axes.bar(places - 0.2, [usual[bin] for bin in bins], 0.4, color=_EXPECTED, label="expected")
        axes.bar(places + 0.2, [seen[bin] for bin in bins], 0.4, color=_SEEN, label="this window")
        axes.set_xticks(places, [label(bin, 20) for bin in bins], rotation=40, ha="right", fontsize=6)
        axes.set_title(label(name, 32), fontsize=8)
        axes.tick_params(labelsize=6)
    for axes in figure.axes[len(drawable) :]:
        axes.remove()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=7, frameon=False)
    return figure
