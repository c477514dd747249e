"""Picture of an alias over time: the version that held it, and how it came there."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import islice
from typing import Any

import dagster as dg

from dagster_mlops.core.pictures import Figure, drawn, gallery, label, new_figure
from dagster_mlops.promotion.history.entry import BY_HAND, PROMOTION, REQUEST, ROLLBACK, Entry

_SHOWN = 40  # moves
_MARKS = {PROMOTION: ("o", "tab:green"), ROLLBACK: ("v", "tab:red"), BY_HAND: ("s", "tab:gray")}


def timeline(newest: Iterable[Entry], alias: str, *, tool: str) -> dg.MarkdownMetadataValue | None:
    """The last moves of an alias as metadata, from its entries, newest first; None without any."""
    newest_entries = [*islice((entry for entry in newest if entry.is_move or entry.kind == REQUEST), _SHOWN)][::-1]
    moves = [entry for entry in newest_entries if entry.is_move]
    requests = {entry.after: entry for entry in newest_entries if not moves or entry.index > moves[-1].index}
    if not moves:
        return None
    return gallery([drawn(f"{alias} over time", lambda: _figure(moves, [*requests.values()], alias, tool), tool=tool)])


def _figure(moves: Sequence[Entry], requests: Sequence[Entry], alias: str, tool: str) -> Figure:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    figure = new_figure(7, 2.4, tool=tool)
    axes = figure.subplots()
    versions = list(dict.fromkeys(entry.after or "none" for entry in (*moves, *requests)))
    versions.sort(key=lambda version: (not version.isdigit(), int(version) if version.isdigit() else 0))
    times: Any = [datetime.fromisoformat(move.at) for move in moves]
    heights = [versions.index(move.after or "none") for move in moves]
    ends: Any = [*times, datetime.now(times[-1].tzinfo)]
    axes.step(ends, [*heights, heights[-1]], where="post", color="tab:blue")
    x: Any
    for kind, (mark, colour) in _MARKS.items():
        points = [number for number, move in enumerate(moves) if move.kind == kind]
        if points:
            x, y = [times[number] for number in points], [heights[number] for number in points]
            axes.plot(x, y, mark, color=colour, linestyle="none", label=kind)
    if requests:
        x = [datetime.fromisoformat(entry.at) for entry in requests]
        y = [versions.index(entry.after) for entry in requests]
        axes.plot(x, y, "D", color="tab:orange", fillstyle="none", linestyle="none", label="waits for approval")
    locator = AutoDateLocator()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.margins(y=0.3)
    axes.set_yticks(range(len(versions)), [label(version) for version in versions])
    axes.set_ylabel("version")
    axes.set_title(f"{label(alias, 40)} over time (UTC)", fontsize=10)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
