"""Runs stages with DVC in a separate process, so that their output can be read, and their end shown if they fail."""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable
from functools import cache, partial
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster_mlops.core.advice import causes
from dagster_mlops.core.git import git
from dagster_mlops.core.waits import retry
from dagster_mlops.dvc.stages.shown import is_local, shown
from dagster_mlops.dvc.store.contents import LEGACY, Content, remote_has
from dagster_mlops.dvc.store.cut_off import problem_of, set_aside
from dagster_mlops.dvc.store.listing_guard import guard_listings
from dagster_mlops.errors import DatasetError

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc.stage import Stage

_PAUSE = 0.2  # seconds between two looks at a lock


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
        ``pushes``, the contents that may be pushed; ``legacy``, the hashes of inputs that DVC 2 versioned; ``top``, the
        folder of the git repository. Or ``error`` and ``reason`` (busy, command or project).
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
    target, load = request["target"], partial(_load, repo, request["read"])

    def reproduce() -> "tuple[str, Stage, list[Stage]]":
        _repair_holders(repo)
        is_changed, saved = _prepare(repo, request, load)
        if not is_changed:
            _say(f"Stage '{target}' didn't change, skipping")
            return "unchanged", load(target), saved
        reproduce_stages(repo, targets=target, single_item=True, force=request["force"])
        with lock_repo(repo):
            return "executed" if progress.executed else "restored", load(target), saved

    def lock_problem(error: BaseException) -> BaseException | None:
        return _caused_by(error, LockError) or _caused_by(error, RWLockFileCorruptedError)

    try:
        outcome, stage, saved = retry(
            reproduce, is_transient=lock_problem, timeout=request["lock_timeout"], pauses=repeat(_PAUSE)
        )
    except (DvcException, DatasetError) as error:
        busy, command = lock_problem(error), _caused_by(error, StageCmdFailedError)
        text = busy or command or ": ".join(dict.fromkeys(map(str, causes(error))))
        return {"reason": "busy" if busy else "command" if command else "project", "error": str(text)}
    root = Path(repo.root_dir)
    result = {
        "outcome": outcome,
        "entry": to_single_stage_lockfile(stage),
        "saved": [_file(root, source.path) for source in saved if source.path.endswith(".dvc")],
        "frozen": [
            [_file(root, source.path), source.addressing.rpartition(":")[2], to_single_stage_lockfile(source)]
            for source in saved
            if not source.path.endswith(".dvc")
        ],
        "pushes": [push for item in (*saved, stage) for out in item.outs for push in _pushes(repo, out, request)],
        "legacy": _legacy(root, [load(name) for name in (*request["sources"], *request["makers"])]),
        "top": "" if type(repo.scm).__name__ == "NoSCM" else repo.scm.root_dir,
    }
    result |= shown(repo, stage, metrics=request["metrics"], plots=request["plots"])
    if problem := result.pop("problem", ""):
        _say(problem)
    return json.loads(json.dumps(result, default=str))


@cache
def _opened(root: str, config: str, waits: str) -> "Repo":
    """The repository, with time limits of its remotes: a silent remote fails in the end. Downloads are hashed."""
    from dvc.repo import Repo

    guard_listings()
    overrides, by_scheme = json.loads(config), json.loads(waits)
    with contextlib.closing(Repo(root, config=overrides)) as repo:
        for name, options in repo.config["remote"].items():
            ours = {**by_scheme.get(str(options.get("url", "")).partition("://")[0], {}), "verify": True}
            for option, value in ours.items():
                if option not in options:
                    overrides.setdefault("remote", {}).setdefault(name, {})[option] = value
    repo = Repo(root, config=overrides)
    repo.scm_context.quiet = True  # no hints on what to add to git
    return repo


def _file(root: Path, path: str) -> str:
    return os.path.relpath(path, root).replace(os.sep, "/")


def _caused_by(error: BaseException, kind: type[BaseException]) -> BaseException | None:
    return next((cause for cause in causes(error) if isinstance(cause, kind)), None)


def _legacy(root: Path, makers: "list[Stage]") -> dict[str, str]:
    """The hashes, by path, of inputs that DVC 2 versioned: the stage's own entry has the hashes of DVC 3."""
    outs = [(out, out.hash_info) for maker in makers for out in maker.outs if out.hash_name == LEGACY]
    return {_file(root, out.fs_path): str(content.value) for out, content in outs if content}


def _pushes(repo: "Repo", out: "Output", request: dict[str, Any]) -> list[dict[str, Any]]:
    """The content of an output that its definition lets DVC push, and where to, unless it is known to be there."""
    if not request["push"] or not out.use_cache or not out.can_push or not out.is_in_repo or not out.hash_info:
        return []
    content, size = Content(str(out.hash_info.value), str(out.hash_info.name)), out.meta.size if out.meta else None
    remote = out.remote or request["remote"]
    # What fails here fails again where it is pushed, with the reason and advice.
    with contextlib.suppress(Exception):
        if remote_has(repo.cloud.get_remote_odb(remote, "push", content.algorithm), repo, content.md5, size):
            return []
    return [{"md5": content.md5, "algorithm": content.algorithm, "size": size, "remote": remote}]


def _load(repo: "Repo", read: list[str], address: str) -> "Stage":
    """A stage or pointer by its address, parsed again only after a file that defines it has changed."""
    is_pointer = address.endswith(".dvc") and "@" not in address
    file = address if is_pointer else address.rpartition(":")[0] or "dvc.yaml"
    lock = Path(repo.root_dir, file).with_name("dvc.lock")
    state = [_state(Path(repo.root_dir, name)) for name in ([file] if is_pointer else [file, str(lock), *read])]
    if _loaded.get(file, ([], {}))[0] != state:
        if not is_pointer:
            _repair_lock(repo, lock)
        stages = {getattr(stage, "name", None) or file: stage for stage in repo.stage.load_all(file)}
        _loaded[file] = state, stages
    stages = _loaded[file][1]
    name = file if is_pointer else address.rpartition(":")[2]
    if name not in stages:
        raise DatasetError(f"{file} has no stage {name!r} any more. Reload the definitions")
    return stages[name]


_loaded: "dict[str, tuple[list[Any], dict[str, Stage]]]" = {}


def _state(file: Path) -> Any:
    with contextlib.suppress(FileNotFoundError):
        status = file.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino


def _prepare(repo: "Repo", request: dict[str, Any], load: "Callable[[str], Stage]") -> "tuple[bool, list[Stage]]":
    """Make edited data a new version, and fetch what a fresh clone lacks.

    Returns:
        True if the stage has to be reproduced, and the pointers and frozen stages that keep the edited data.

    Raises:
        DatasetError: the output of another stage, which this one reads, was edited. Its bytes would be kept nowhere.
    """
    from dvc.repo import lock_repo
    from dvc.repo.reproduce import reproduce as reproduce_stages

    with lock_repo(repo):
        stage = load(request["target"])
        missing = [dep.fs_path for dep in stage.deps if is_local(dep) and not dep.exists]
        if any(is_local(out) and not out.exists for out in stage.outs) and not stage.changed(True):
            missing.append(request["target"])
        edited = [name for name in request["sources"] if _is_edited(load(name))]
        is_changed = request["force"] or stage.changed()
        for name in request["makers"] if is_changed else ():
            _refuse_edited(name, load(name))
    if not is_changed and not edited:
        return False, []
    if request["pull"]:
        _fetch(repo, missing)
    saved = [stage for name in edited for stage in reproduce_stages(repo, targets=name, single_item=True)]
    with lock_repo(repo):
        return request["force"] or load(request["target"]).changed(), saved


def _is_edited(stage: "Stage") -> bool:
    return all(out.exists for out in stage.outs) and stage.changed_outs()


def _refuse_edited(name: str, stage: "Stage") -> None:
    for out in stage.outs:
        if is_local(out) and out.hash_info and out.exists and out.changed_checksum():
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


def _repair_holders(repo: "Repo") -> None:
    """Replace DVC's list of who holds which path if a kill cut it off: DVC then refuses every command."""
    from dvc.lock import make_lock

    holders = Path(repo.tmp_dir or "", "rwlock")
    if not _is_whole(holders):
        # The holders are lost with it: two runs of one stage may overlap then, which DVC sees by their hashes.
        lock = make_lock(
            f"{holders}.lock", tmp_dir=repo.tmp_dir, hardlink_lock=repo.config["core"].get("hardlink_lock")
        )
        with lock:
            if not _is_whole(holders):
                holders.unlink()
                _say(f"{holders} was cut off; a new one starts empty")


def _repair_lock(repo: "Repo", file: Path) -> None:
    """Replace a ``dvc.lock`` that a kill cut off. Call it under the repository's lock.

    Raises:
        DatasetError: it cannot be read for another reason, such as the conflict of a merge.
    """
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
