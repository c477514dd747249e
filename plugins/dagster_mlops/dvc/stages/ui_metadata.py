"""Dagster metadata of a stage's run: records of its outputs, parameters, metrics and charts."""

import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg

from dagster_mlops.core import markdown
from dagster_mlops.core.leaves import leaves
from dagster_mlops.core.metadata import table
from dagster_mlops.core.pictures import Figure, drawn, new_figure
from dagster_mlops.dvc.metadata_keys import OUTS, PARAMS, STAGE
from dagster_mlops.dvc.stages.project import Stage
from dagster_mlops.dvc.stages.run import StageRun
from dagster_mlops.provenance import NAMESPACE, Dataset, Ref

_MOST_NUMBERS = 200
_MOST_CHARTS = 12
_MOST_POINTS = 2_000  # of a line


def data_version(run: StageRun) -> dg.DataVersion:
    """The hash in ``dvc.lock`` of a stage's only output, or a hash over all outputs.

    For a stage without outputs, it is a hash over its command, inputs and parameters.
    """
    outs = {out["path"]: out.get("md5") or out.get("etag") or out.get("checksum") for out in run.outs}
    if len(outs) == 1 and (only := next(iter(outs.values()))):
        return dg.DataVersion(only)
    return dg.DataVersion(hashlib.sha256(json.dumps(outs or run.entry, sort_keys=True).encode()).hexdigest())


def datasets(stage: Stage, run: StageRun, **facts: Any) -> list[Dataset]:
    """The record of each output, those in DVC's cache first; `facts` are further fields of all of them."""
    cached = {out.path for out in stage.outs if out.cached}
    records = [
        Dataset(path=stage.in_repo(out["path"]), md5=out["md5"], bytes=out.get("size"), **facts)
        for out in run.outs
        if "md5" in out
    ]
    return sorted(records, key=lambda record: record.path not in cached)


def inputs(stage: Stage, run: StageRun, repo: str, tracked: Container[str]) -> list[Ref]:
    """The exact versions that the stage read, of those inputs that are in `tracked`: outputs and tracked data."""
    paths = {stage.in_repo(dep["path"]): dep.get("md5") for dep in run.entry.get("deps", ())}
    paths |= {path: md5 for path, md5 in run.legacy.items() if path in paths}
    return [Ref("dvc", "dataset", f"{path}@{md5}", at=repo) for path, md5 in paths.items() if md5 and path in tracked]


def metadata(stage: Stage, run: StageRun, records: Sequence[Dataset], root: Path) -> dict[str, Any]:
    """The Dagster metadata: numbers as plain numbers, which the UI plots over time."""
    facts: dict[str, Any] = {STAGE: stage.address, "dvc/outcome": run.outcome, "dvc/seconds": round(run.seconds, 3)}
    if len(records) > 1:
        facts |= table(OUTS, [{"path": r.path, "md5": r.md5, "bytes": r.bytes or 0} for r in records])
    numbers = {**_named(PARAMS, run.entry.get("params", {})), **_named("dvc/metrics", run.metrics)}
    facts |= dict([*numbers.items()][:_MOST_NUMBERS])
    for plot in run.plots[:_MOST_CHARTS]:
        draw = partial(_chart, plot) if "points" in plot else (root / plot["files"][0]).read_bytes
        facts[f"dvc/plots/{plot['title']}"] = markdown.metadata(drawn(plot["title"], draw, tool="dvc").markdown())
    facts = records[0].to_metadata(facts) if records else facts
    others = {f"{NAMESPACE}/dataset/{record.path}": dg.MetadataValue.json(record.to_dict()) for record in records[1:]}
    return {**facts, **others}


def _named(prefix: str, by_file: Mapping[str, Any]) -> dict[str, Any]:
    """The values of one or several files as metadata."""
    return {
        "/".join([prefix, *([file] if len(by_file) > 1 else []), name or "value"]): _shown(value)
        for file, values in by_file.items()
        for name, value in leaves(values, lists=False)
        if value is not None
    }


def _shown(value: Any) -> str | int | float:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, int | float | str) else json.dumps(value)


def _chart(plot: Mapping[str, Any]) -> "Figure":
    figure = new_figure(4.6, 3.2, tool="dvc")
    axes = figure.subplots()
    x, y, template = plot.get("x", "step"), plot.get("y", ""), plot.get("template", "")
    if template.startswith("confusion"):
        _confusion(axes, plot["points"], x, y)
    else:
        _lines(axes, plot["points"], x, y, template)
    axes.set_title(plot.get("title", ""), fontsize=9, parse_math=False)
    axes.set_xlabel(plot.get("x_label", x), fontsize=8, parse_math=False)
    axes.set_ylabel(plot.get("y_label", y), fontsize=8, parse_math=False)
    axes.tick_params(labelsize=7)
    return figure


def _lines(axes: Any, points: Sequence[Mapping[str, Any]], x: str, y: str, template: str) -> None:
    lines: dict[str, list[tuple[Any, Any]]] = {}
    for i, point in enumerate(points):
        name = " ".join(str(point[key]) for key in ("filename", "field") if point.get(key))
        lines.setdefault(name, []).append((_number(point.get(x, i)), _number(point.get(y))))
    for name, line in lines.items():
        sample = line[:: math.ceil(len(line) / _MOST_POINTS)]
        xs, ys = [a for a, _ in sample], [b for _, b in sample]
        if template.startswith("bar"):
            axes.barh([str(b) for b in ys], xs, label=name)
        elif template.startswith("scatter"):
            axes.scatter(xs, ys, s=6, label=name)
        else:
            axes.plot(xs, ys, linewidth=1, label=name, marker="." if len(sample) == 1 else None)
    if len(lines) > 1:
        axes.legend(fontsize=6)


def _confusion(axes: Any, points: Sequence[Mapping[str, Any]], x: str, y: str) -> None:
    counts = Counter((str(point.get(y)), str(point.get(x))) for point in points)
    down, across = (sorted(set(names)) for names in zip(*counts, strict=True))
    axes.imshow([[counts[row, column] for column in across] for row in down], cmap="Blues")
    axes.set_xticks(range(len(across)), across)
    axes.set_yticks(range(len(down)), down)
    if len(across) * len(down) <= 100:
        for i, j in itertools.product(range(len(down)), range(len(across))):
            count = counts[down[i], across[j]]
            colour = "white" if count > max(counts.values()) / 2 else "black"
            axes.text(j, i, count, ha="center", va="center", color=colour, fontsize=7)


def _number(value: Any) -> Any:
    try:
        return float(value)
    except (TypeError, ValueError):
        return value
