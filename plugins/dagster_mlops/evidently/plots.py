"""Distributions as one small picture that Dagster shows inline."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops.core.extras import extra

if TYPE_CHECKING:
    import pandas as pd

MOST_BYTES = 60_000
_COLOURS = ("#9aa5b1", "#d9480f")


def distributions(sides: Mapping[str, "pd.DataFrame"], columns: Sequence[str]) -> dg.MarkdownMetadataValue | None:
    """Histograms of up to six columns, one colour per side (``{"reference": …, "current": …}``), as markdown.

    Columns are float numbers or text. None when there is nothing to draw.
    """
    drawn = [name for name in columns if any(name in f and f[name].notna().any() for f in sides.values())][:6]
    if not drawn:
        return None
    width = min(3, len(drawn))
    height = math.ceil(len(drawn) / width)
    # The object interface: pyplot keeps every figure alive and picks a GUI backend.
    figure = extra("matplotlib.figure", extra="evidently").Figure(
        figsize=(3.2 * width, 2.2 * height + 0.3), layout="constrained"
    )
    for axes, name in zip(figure.subplots(height, width, squeeze=False).flat, drawn, strict=False):
        _draw(axes, name, {side: frame[name].dropna() for side, frame in sides.items() if name in frame})
    for axes in figure.axes[len(drawn) :]:
        axes.remove()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(sides), fontsize=7, frameon=False)
    for dpi in (80, 60, 40):
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=dpi)
        if png.tell() <= MOST_BYTES * 3 / 4:  # base64 makes four bytes of three
            break
    text = base64.b64encode(png.getvalue()).decode()
    return dg.MetadataValue.md(f"![distributions of {len(drawn)} columns](data:image/png;base64,{text})")


def _draw(axes: Any, name: str, values: Mapping[str, Any]) -> None:
    np, pd = extra("numpy", extra="evidently"), extra("pandas", extra="evidently")
    everything = pd.concat([part for part in values.values() if len(part)])
    if everything.dtype == object:
        shown = list(everything.value_counts().index[:8])
        for i, ((side, part), colour) in enumerate(zip(values.items(), _COLOURS, strict=False)):
            shares = part.value_counts().reindex(shown, fill_value=0) / max(len(part), 1)
            axes.bar(np.arange(len(shown)) + 0.4 * i, shares, 0.4, label=side, color=colour)
        axes.set_xticks(np.arange(len(shown)) + 0.2, [_short(value, 10) for value in shown], rotation=45, ha="right")
    else:
        low, high = (float(everything.quantile(q)) for q in (0.005, 0.995))  # outliers would flatten the rest
        if high <= low or not np.isfinite(high - low):
            low, high = float(everything.min()) - 0.5, float(everything.min()) + 0.5
        bins = np.linspace(low, high, 31)
        for i, ((side, part), colour) in enumerate(zip(values.items(), _COLOURS, strict=False)):
            counts, _ = np.histogram(part, bins)
            axes.stairs(counts / max(len(part), 1), bins, label=side, color=colour, fill=i == 0, alpha=0.8)
    axes.set_title(_short(name, 32), fontsize=8)
    axes.tick_params(labelsize=6)
    axes.set_yticks([])


def _short(text: str, length: int) -> str:
    """Short enough for a label, with matplotlib's mathematics switched off and only what its font can draw."""
    text = "".join(c if c.isprintable() and ord(c) < 0x500 else "?" for c in text).replace("$", r"\$")
    return text if len(text) <= length else text[: length - 1] + "…"
