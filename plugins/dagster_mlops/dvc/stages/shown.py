"""Metrics and plots of a stage, read by DVC in the process that runs it."""

import contextlib
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc.stage import Stage

_MOST_POINTS = 20_000  # of a plot; of more, only every n-th is drawn


def is_local(item: "Output") -> bool:
    """True for a file or folder: a dataset or database as input is none."""
    return getattr(item, "protocol", "") == "local"


def shown(repo: "Repo", stage: "Stage", *, metrics: Sequence[str], plots: Sequence[str]) -> dict[str, Any]:
    """The ``metrics`` and ``plots`` within this stage's outputs. A broken one is a ``problem`` and fails nothing.

    `metrics` and `plots` are the files that the project defines beside those of stages, relative to the repository.
    """
    places = [os.path.relpath(out.fs_path, repo.root_dir) for out in stage.outs if is_local(out)]

    def ours(file: str) -> bool:
        return any(file == place or file.startswith(f"{place}{os.sep}") for place in places)

    def any_of(files: Sequence[str]) -> bool:
        # Reading all of a project's metrics and plots takes a while, so only if one of them may be ours.
        return any(ours(name) or any(place.startswith(f"{name}{os.sep}") for place in places) for name in files)

    result: dict[str, Any] = {"metrics": {}, "plots": []}
    own_metrics = [out for out in stage.outs if out.metric]
    try:
        if any_of(metrics) or not all(is_local(out) and os.path.isfile(out.fs_path) for out in own_metrics):
            with _offline(repo) as offline:
                files = offline.metrics.show().get("", {}).get("data", {})
            result["metrics"] = {file: entry["data"] for file, entry in files.items() if ours(file) and "data" in entry}
        else:
            result["metrics"] = {os.path.relpath(out.fs_path, repo.root_dir): _metric(out) for out in own_metrics}
        if any(out.plot for out in stage.outs) or any_of(plots):
            with _offline(repo) as offline:
                result["plots"] = [plot for plot in _plots(offline) if any(ours(file) for file in plot["files"])]
    except Exception as error:  # noqa: BLE001 (any parser)
        result["problem"] = f"Metrics or plots cannot be read: {error}"
    return result


def _metric(out: "Output") -> Any:
    """A file of metrics as ``dvc metrics show`` reads it."""
    from dvc.utils.serialize import load_path

    return load_path(out.fs_path, out.fs)


def _offline(repo: "Repo") -> "contextlib.closing[Repo]":
    """The repository without a remote, which DVC would ask for metrics and plots of other stages that are not here."""
    return contextlib.closing(type(repo)(repo.root_dir, config={"core": {"remote": ""}}))


def named_files(file: str, definition: Any) -> set[str]:
    """Every text in a definition of plots or metrics, as a path relative to the folder of `file`: files among them."""
    if isinstance(definition, dict):
        return {name for pair in definition.items() for item in pair for name in named_files(file, item)}
    if isinstance(definition, list | tuple):
        return {name for item in definition for name in named_files(file, item)}
    return {os.path.normpath(Path(file).parent / definition)} if isinstance(definition, str) else set()


def _plots(repo: "Repo") -> list[dict[str, Any]]:
    """The plots of ``dvc plots show``: the path of an image, or points with the columns to draw."""
    from dvc.render.match import PlotsData, match_defs_renderers
    from dvc.repo.plots import infer_data_sources

    with contextlib.redirect_stderr(io.StringIO()):  # plots of stages that have not run yet
        data = repo.plots.show()
    sources: dict[str, set[str]] = {}
    for name, group in PlotsData(data).group_definitions().items():
        sources[name] = {file for _, inner, definition in group for file in infer_data_sources(inner, definition)}
    with tempfile.TemporaryDirectory() as scratch:
        matches = match_defs_renderers(data=data, out=scratch, templates_dir=repo.plots.templates_dir)
    plots: list[dict[str, Any]] = []
    for renderer, _, _ in matches:
        files = sorted(sources.get(renderer.name, {renderer.name}))
        if renderer.TYPE == "image":
            plots.extend({"title": point["filename"], "files": [point["filename"]]} for point in renderer.datapoints)
            continue
        texts = {key: text for key, text in renderer.properties.items() if isinstance(text, str)}
        options = {key: texts[key] for key in ("x", "y", "x_label", "y_label", "title", "template") if key in texts}
        keys = {options.get("x"), options.get("y"), "filename", "field"}
        every = 1 if options.get("template") == "confusion" else len(renderer.datapoints) // _MOST_POINTS + 1
        points = [{key: v for key, v in point.items() if key in keys} for point in renderer.datapoints[::every]]
        plots.append({"title": renderer.name, **options, "points": points, "files": files})
    return plots
