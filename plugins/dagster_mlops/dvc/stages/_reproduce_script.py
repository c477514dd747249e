"""Runs stages with DVC in a separate process, so that their output can be read, and their end shown if they fail."""

import contextlib
import io
import json
import logging
import os
import sys
import tempfile
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster_mlops.core.advice import causes
from dagster_mlops.core.git import git
from dagster_mlops.core.waits import retry
from dagster_mlops.dvc.store.cut_off import problem_of, set_aside
from dagster_mlops.errors import DatasetError

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc.stage import Stage

_PAUSE = 0.2  # seconds between two looks at a lock
_MOST_POINTS = 20_000  # of a plot; of more, only every n-th is drawn


class _Progress(logging.Handler):
    """Prints DVC's log lines, and remembers whether a command was started."""

    executed = False

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        self.executed |= text.startswith("Running stage ")
        _say(text)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Bring one stage up to date, and no other.

    Edited data that a `.dvc` file or a frozen stage keeps, and the stage reads, becomes a new version first, as with
    ``dvc repro``. An edited output of another stage is refused.

    Returns:
        ``outcome`` (executed, restored or unchanged), ``entry`` (the stage in ``dvc.lock``), ``metrics``, ``plots``;
        ``saved``, the `.dvc` files that were changed; ``frozen``, the entries of frozen stages with file and name;
        ``pushes``, the contents that may be pushed; ``top``, the folder of the git repository. Or ``error`` and
        ``reason`` (busy, command or project).
    """
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import lock_repo
    from dvc.repo.reproduce import reproduce as reproduce_stages
    from dvc.rwlock import RWLockFileCorruptedError
    from dvc.stage.exceptions import StageCmdFailedError
    from dvc.stage.serialize import to_single_stage_lockfile

    progress = _Progress()
    logger = logging.getLogger("dvc")
    logger.setLevel(logging.INFO)
    logger.handlers[:] = [progress]
    repo = _opened(request["repo"], json.dumps(request["config"]), json.dumps(request["waits"]))
    target = request["target"]

    def reproduce() -> "tuple[list[Stage], Stage, list[Stage]]":
        _repair_locks(repo, target)
        saved = _prepare(repo, request)
        changed = reproduce_stages(repo, targets=target, single_item=True, force=request["force"])
        with lock_repo(repo):
            [stage] = repo.stage.collect(target)
        return changed, stage, saved

    def lock_problem(error: BaseException) -> BaseException | None:
        return _caused_by(error, LockError) or _caused_by(error, RWLockFileCorruptedError)

    try:
        changed, stage, saved = retry(
            reproduce, is_transient=lock_problem, timeout=request["lock_timeout"], pauses=repeat(_PAUSE)
        )
    except (DvcException, DatasetError) as error:
        busy, command = lock_problem(error), _caused_by(error, StageCmdFailedError)
        text = busy or command or ": ".join(dict.fromkeys(map(str, causes(error))))
        return {"reason": "busy" if busy else "command" if command else "project", "error": str(text)}
    root = Path(repo.root_dir)
    result = {
        "outcome": "unchanged" if not changed else "executed" if progress.executed else "restored",
        "entry": to_single_stage_lockfile(stage),
        "saved": [_file(root, source.path) for source in saved if not source.cmd],
        "frozen": [
            [_file(root, source.path), source.addressing.rpartition(":")[2], to_single_stage_lockfile(source)]
            for source in saved
            if source.cmd
        ],
        "pushes": [push for item in (*saved, stage) for out in item.outs for push in _pushes(out)],
        "top": "" if type(repo.scm).__name__ == "NoSCM" else repo.scm.root_dir,
        **_shown(repo, stage),
    }
    return json.loads(json.dumps(result, default=str))


@cache
def _opened(root: str, config: str, waits: str) -> "Repo":
    """The repository, with time limits of its remotes: a silent remote fails in the end."""
    from dvc.repo import Repo

    overrides, by_scheme = json.loads(config), json.loads(waits)
    with contextlib.closing(Repo(root, config=overrides)) as repo:
        for name, options in repo.config["remote"].items():
            for option, seconds in by_scheme.get(str(options.get("url", "")).partition("://")[0], {}).items():
                if option not in options:
                    overrides.setdefault("remote", {}).setdefault(name, {})[option] = seconds
    repo = Repo(root, config=overrides)
    repo.scm_context.quiet = True  # no hints on what to add to git
    return repo


def _file(root: Path, path: str) -> str:
    return os.path.relpath(path, root).replace(os.sep, "/")


def _caused_by(error: BaseException, kind: type[BaseException]) -> BaseException | None:
    return next((cause for cause in causes(error) if isinstance(cause, kind)), None)


def _pushes(out: "Output") -> list[dict[str, Any]]:
    """The content of an output that its definition lets DVC push, and where to."""
    if not out.use_cache or not out.can_push or not out.is_in_repo or not out.hash_info:
        return []
    content = {"md5": out.hash_info.value, "algorithm": out.hash_info.name}
    return [{**content, "size": out.meta.size if out.meta else None, "remote": out.remote}]


def _prepare(repo: "Repo", request: dict[str, Any]) -> "list[Stage]":
    """Make edited data a new version, and fetch what a fresh clone lacks; returns what keeps the edited data.

    Raises:
        DatasetError: the output of another stage, which this one reads, was edited. Its bytes would be kept nowhere.
    """
    from dvc.repo import lock_repo
    from dvc.repo.reproduce import reproduce as reproduce_stages

    with lock_repo(repo):
        [stage] = repo.stage.collect(request["target"])
        missing = [dep.fs_path for dep in stage.deps if _is_local(dep) and not dep.exists]
        if any(_is_local(out) and not out.exists for out in stage.outs) and not stage.changed(True):
            missing.append(request["target"])
        edited = [name for name in request["sources"] if _is_edited(repo, name)]
        if request["force"] or stage.changed(allow_missing=True):
            for name in request["makers"]:
                _refuse_edited(repo, name)
    if request["pull"]:
        _fetch(repo, missing)
    return [stage for name in edited for stage in reproduce_stages(repo, targets=name, single_item=True)]


def _is_edited(repo: "Repo", name: str) -> bool:
    [stage] = repo.stage.collect(name)
    return all(out.exists for out in stage.outs) and stage.changed_outs()


def _refuse_edited(repo: "Repo", name: str) -> None:
    [stage] = repo.stage.collect(name)
    for out in stage.outs:
        if _is_local(out) and out.hash_info and out.exists and out.changed_checksum():
            raise DatasetError(
                f"{out} was edited after stage {name} made it, and its bytes are kept nowhere. Run that stage, take "
                f"the stored content back (`dvc checkout {out}`), or accept the edit (`dvc commit {name}`)"
            )


def _fetch(repo: "Repo", missing: list[str]) -> None:
    """Fetch inputs, and recorded outputs. DVC reports later what is still missing."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError

    for name in missing:
        _say(f"Fetching {name}")
        try:
            repo.checkout([name], allow_missing=True)
            if repo.config["remote"]:
                repo.pull([name])
        except DvcException as error:
            if _caused_by(error, LockError):
                raise
            _say(f"Not fetched: {error}")


def _is_local(item: Any) -> bool:
    return getattr(item, "protocol", "") == "local"  # a dataset or database as input has none


def _shown(repo: "Repo", stage: "Stage") -> dict[str, Any]:
    """The project's metrics and plots within this stage's outputs. A broken one never fails the stage."""
    places = [os.path.relpath(out.fs_path, repo.root_dir) for out in stage.outs if _is_local(out)]

    def ours(file: str) -> bool:
        return any(file == place or file.startswith(f"{place}{os.sep}") for place in places)

    def any_of(definitions: dict[str, Any]) -> bool:
        # Reading all of a project's metrics and plots takes a while, so only if one of them may be ours.
        files = [Path(file).parent / text for file, content in definitions.items() for text in _texts(content)]
        names = [os.path.relpath(file, repo.root_dir) for file in files]
        return any(ours(name) or any(place.startswith(f"{name}{os.sep}") for place in places) for name in names)

    metrics: dict[str, Any] = {}
    plots: list[dict[str, Any]] = []
    try:
        has_metrics = any(out.metric for out in stage.outs) or any_of(repo.index._metrics)
        has_plots = any(out.plot for out in stage.outs) or any_of(repo.index._plots)
        if has_metrics or has_plots:
            # For metrics and plots of other stages that are not here, DVC would ask the remote.
            with contextlib.closing(type(repo)(repo.root_dir, config={"core": {"remote": ""}})) as offline:
                files = offline.metrics.show().get("", {}).get("data", {}) if has_metrics else {}
                metrics = {file: entry["data"] for file, entry in files.items() if ours(file) and "data" in entry}
                definitions = _plots(offline) if has_plots else []
                plots = [plot for plot in definitions if any(ours(file) for file in plot["files"])]
    except Exception as error:  # noqa: BLE001 (any parser)
        _say(f"Metrics or plots cannot be read: {error}")
    return {"metrics": metrics, "plots": plots}


def _texts(definition: Any) -> list[str]:
    """Every text in a definition of plots or metrics; the paths are among them."""
    if isinstance(definition, dict):
        return [text for pair in definition.items() for item in pair for text in _texts(item)]
    if isinstance(definition, list | tuple):
        return [text for item in definition for text in _texts(item)]
    return [definition] if isinstance(definition, str) else []


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


def _repair_locks(repo: "Repo", target: str) -> None:
    """Replace files that a kill cut off, because DVC writes them in place and then refuses every command.

    Raises:
        DatasetError: a ``dvc.lock`` cannot be read for another reason, such as the conflict of a merge.
    """
    from dvc.lock import make_lock

    holders = Path(repo.tmp_dir or "", "rwlock")
    # The holders of paths are lost with it: two runs of one stage may overlap then, which DVC sees by their hashes.
    with make_lock(f"{holders}.lock", tmp_dir=repo.tmp_dir, hardlink_lock=repo.config["core"].get("hardlink_lock")):
        if not _is_whole(holders):
            holders.unlink()
            _say(f"{holders} was cut off; a new one starts empty")
    file = Path(repo.root_dir, target.rpartition(":")[0] or "dvc.yaml").with_name("dvc.lock")
    with repo.lock:
        if file.exists() and problem_of(file.read_bytes()):
            remains = set_aside(file, repo.tmp_dir)
            committed = git(file.parent, "show", "HEAD:./dvc.lock")
            if committed.returncode == 0:  # without git's copy, DVC's run cache still knows the results
                file.write_bytes(committed.stdout)
            _say(f"{file} was cut off; a new one starts from git's copy. The remains are {remains}")


def _is_whole(file: Path) -> bool:
    try:
        return isinstance(json.loads(file.read_bytes()), dict)
    except FileNotFoundError:
        return True
    except ValueError:
        return False
