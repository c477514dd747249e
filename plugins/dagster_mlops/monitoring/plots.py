"""Distributions as one small picture that Dagster shows inline."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import dagster as dg

from dagster_mlops.core.arrays import np, pd
from dagster_mlops.core.pictures import Figure, drawn, gallery, label, new_figure

_COLOURS = ("#9aa5b1", "#d9480f")


def distributions(
    key: str, sides: Mapping[str, "pd.DataFrame"], columns: Sequence[str]
) -> dict[str, dg.MarkdownMetadataValue]:
    """Histograms of up to six columns, one colour per side (``{"reference": …, "current": …}``), under `key`.

    Columns are float numbers or text. Nothing when there is nothing to draw.
    """
    plot = gallery([drawn("Distributions", partial(_histograms, sides, columns), tool="evidently")])
    return {key: plot} if plot else {}


def _histograms(sides: Mapping[str, "pd.DataFrame"], columns: Sequence[str]) -> "Figure | None":
    drawable = [name for name in columns if any(name in f and f[name].notna().any() for f in sides.values())][:6]
    if not drawable:
        return None
    width = min(3, len(drawable))
    height = math.ceil(len(drawable) / width)
    figure = new_figure(3.2 * width, 2.2 * height + 0.3, tool="evidently")
    for axes, name in zip(figure.subplots(height, width, squeeze=False).flat, drawable, strict=False):
        _draw(axes, name, {side: frame[name].dropna() for side, frame in sides.items() if name in frame})
    for axes in figure.axes[len(drawable) :]:
        axes.remove()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(sides), fontsize=7, frameon=False)
    return figure


def _draw(axes: Any, name: str, values: Mapping[str, Any]) -> None:
    everything: Any = pd.concat([part for part in values.values() if len(part)])
    if everything.dtype == object:
        categories = list(everything.value_counts().index[:8])
        for i, ((side, part), colour) in enumerate(zip(values.items(), _COLOURS, strict=False)):
            shares = part.value_counts().reindex(categories, fill_value=0) / max(len(part), 1)
            axes.bar(np.arange(len(categories)) + 0.4 * i, shares, 0.4, label=side, color=colour)
        axes.set_xticks(
            np.arange(len(categories)) + 0.2, [label(value, 10) for value in categories], rotation=45, ha="right"
        )
    else:
        low, high = (float(everything.quantile(q)) for q in (0.005, 0.995))  # outliers would flatten the rest
        if high <= low or not np.isfinite(high - low):
            low, high = float(everything.min()) - 0.5, float(everything.min()) + 0.5
        bins = np.linspace(low, high, 31)
        for i, ((side, part), colour) in enumerate(zip(values.items(), _COLOURS, strict=False)):
            counts, _ = np.histogram(part, bins)
            axes.stairs(counts / max(len(part), 1), bins, label=side, color=colour, fill=i == 0, alpha=0.8)
    axes.set_title(label(name, 32), fontsize=8)
    axes.tick_params(labelsize=6)
    axes.set_yticks([])
