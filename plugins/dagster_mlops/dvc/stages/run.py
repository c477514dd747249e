"""Runs a stage of a DVC project, and stores what it made as DVC and git do."""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from dagster_mlops.core.child import ChildError, run_child
from dagster_mlops.core.git import git
from dagster_mlops.dvc.metadata_keys import CMD, STAGE
from dagster_mlops.dvc.resource import DvcResource
from dagster_mlops.dvc.stages.project import Stage, describe_problem
from dagster_mlops.dvc.store import objects, remotes
from dagster_mlops.dvc.store import pointers as versions
from dagster_mlops.dvc.store.git_commit import Edit, toplevel
from dagster_mlops.errors import DatasetError
from dagster_mlops.provenance import mask_credentials

_TAIL = 40  # lines of output shown when a stage fails
_GRACE = 5.0  # seconds between asking a stage to stop and killing it
_COMMITTED = 1_000_000  # bytes; a larger file that git would track is left for the user to commit


@dataclass(frozen=True)
class StageRun:
    """What came of a stage: `entry` is what ``dvc.lock`` says of it, `outcome` executed, restored or unchanged.

    `metrics` are the parsed metric files below its outputs, `plots` what ``dvc plots show`` draws from them.
    """

    outcome: str
    entry: Mapping[str, Any]
    metrics: Mapping[str, Any]
    plots: list[dict[str, Any]]
    seconds: float

    @property
    def outs(self) -> list[dict[str, Any]]:
        """The outputs in ``dvc.lock``: ``path`` relative to the stage's `wdir`, ``md5``, ``size``."""
        return [dict(out) for out in self.entry.get("outs", ())]


def run_stage(
    dvc: DvcResource,
    stage: Stage,
    *,
    log: Callable[[str], Any],
    force: bool = False,
    pull: bool = True,
    env: Mapping[str, str] | None = None,
) -> StageRun:
    """Bring one stage up to date by ``dvc repro --single-item``: unchanged, restored from the run cache, or executed.

    DVC runs in a process of its own that ends with this one, even when this one is killed. Its lock on the repository
    is free while the command runs; its read and write locks on the stage's inputs and outputs are held.

    Args:
        dvc: the repository.
        stage: the stage, of whose inputs none is brought up to date.
        log: takes what DVC and the command print, at most once a second.
        force: execute even if nothing changed.
        pull: fetch inputs and known outputs that the workspace lacks from cache and remote.
        env: environment variables for the command, such as the ``PATH`` of its virtual environment.

    Raises:
        dagster.Failure: the command failed (its last lines are in the metadata), or DVC refuses the stage.
        DatasetError: another process holds the inputs or outputs for `lock_timeout` seconds.
    """
    started = time.monotonic()
    request = {
        "repo": str(dvc.root),
        "target": stage.address,
        "config": dvc.config(),
        "waits": remotes.WAITS,
        "read_timeout": remotes.READ_TIMEOUT,
        "lock_timeout": dvc.lock_timeout,
        "force": force,
        "pull": pull,
    }
    tail: deque[str] = deque(maxlen=_TAIL)

    def show(lines: list[str]) -> None:
        tail.extend(lines)
        sys.stdout.write("".join(f"{line}\n" for line in lines))  # whole, for whoever captures the step's output
        sys.stdout.flush()
        log(mask_credentials("\n".join(lines)))

    try:
        told = run_child(
            Path(__file__).with_name("_reproduce_script.py"),
            request,
            timeout=None,
            cwd=dvc.root,
            env={**os.environ, "DVC_NO_ANALYTICS": "1", "PYTHONUNBUFFERED": "1", **(env or {})},
            output=show,
            grace=_GRACE,
        )
    except ChildError as failure:
        raise dg.Failure(
            f"DVC broke off on stage {stage.address}: {mask_credentials(failure.reason)}",
            metadata={"dvc/output": _quoted(tail), "dvc/exit_code": failure.returncode or 0},
        ) from failure
    if "error" in told:
        _fail(stage, told, tail, dvc)
    return StageRun(seconds=time.monotonic() - started, **told)


def share(dvc: DvcResource, stage: Stage, run: StageRun, message: str) -> str:
    """Push what a stage made and commit its entry in ``dvc.lock``, as far as the resource says so; the commit.

    Only the entry of this stage, the outputs that git tracks and the lines by which git ignores the others go into the
    commit.

    Raises:
        DatasetError: the remote does not take the content, or git refuses.
    """
    kept = {out.path for out in stage.outs if out.cached}
    if dvc.push and (cached := [out for out in run.outs if "md5" in out and stage.in_repo(out["path"]) in kept]):
        with dvc.open(locked=False) as repo:
            for out in cached:
                objects.push(repo, out["md5"], out["size"], dvc.remote)
    top = toplevel(dvc.root)
    if not dvc.commit or top is None:
        return ""
    lock = dvc.root / Path(stage.file).with_name("dvc.lock")
    edits: dict[Path, Edit] = {lock: _with_entry(lock, stage.name, run.entry)}
    edits |= versions.ignored(*(dvc.root / out.path for out in stage.outs if out.cached and "://" not in out.path))
    in_git = [dvc.root / out.path for out in stage.outs if not out.cached and "://" not in out.path]
    return dvc.commit_files(top, [file for place in in_git for file in _files(top, place)], edits, message)


def _files(top: Path, place: Path) -> list[Path]:
    """The files of an output that git tracks, also those that are gone; without large ones."""
    on_disk = [file for file in place.rglob("*") if not file.is_dir()] if place.is_dir() else [place]
    in_git = git(top, "ls-files", "-z", "--", str(place)).stdout.split(b"\0")
    gone = [file for name in in_git if name and not os.path.lexists(file := top / os.fsdecode(name))]
    small = [file for file in on_disk if os.path.lexists(file) and file.lstat().st_size <= _COMMITTED]
    return [*small, *gone]


def _with_entry(lock: Path, name: str, entry: Mapping[str, Any]) -> Edit:
    def edit(old: bytes) -> bytes:
        merged: dict[str, Any] = yaml.safe_load(old) or {"schema": "2.0"}
        stages = merged.setdefault("stages", {})
        if stages.get(name) == entry:
            return old
        stages[name] = dict(entry)
        on_disk = lock.read_bytes()
        try:
            # DVC's own bytes where they say the same, so that the file on disk is not modified in git's eyes.
            return on_disk if yaml.safe_load(on_disk) == merged else _dumped(merged)
        except yaml.YAMLError:  # another stage is just writing it
            return _dumped(merged)

    return edit


def _dumped(content: Mapping[str, Any]) -> bytes:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode()


def _fail(stage: Stage, told: Mapping[str, Any], tail: deque[str], dvc: DvcResource) -> None:
    error = mask_credentials(told["error"])
    if told["reason"] == "busy":
        raise DatasetError(
            f"Stage {stage.address} of {dvc.root} waited {dvc.lock_timeout:g} s for another DVC process: {error} Wait "
            "for that process, stop it, or raise lock_timeout."
        )
    command = " && ".join(stage.cmd)
    metadata = {STAGE: stage.address, CMD: command, "dvc/output": _quoted(tail)}
    if told["reason"] == "command":
        last = mask_credentials(describe_problem("\n".join(tail)))
        raise dg.Failure(f"Stage {stage.address} failed: `{command}` in {dvc.root}: {last} ({error})", metadata)
    raise dg.Failure(
        f"DVC cannot run stage {stage.address} of {dvc.root}: {error}. `dvc repro --single-item {stage.address}` shows "
        "the same there; if data is missing, `dvc pull` it or run what makes it.",
        metadata,
        allow_retries=False,
    )


def _quoted(lines: "deque[str]") -> dg.MarkdownMetadataValue:
    text = mask_credentials("\n".join(lines))
    return dg.MetadataValue.md(f"```\n{text}\n```")
