"""Runs a stage of a DVC project, and stores its outputs as DVC and git do."""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from dagster_mlops.core.child import ChildError, last_line, run_child
from dagster_mlops.core.git import git
from dagster_mlops.dvc.metadata_keys import CMD, STAGE
from dagster_mlops.dvc.resource import DvcResource
from dagster_mlops.dvc.stages.project import Stage
from dagster_mlops.dvc.store import objects, pointers, remotes
from dagster_mlops.dvc.store.git_commit import Edit, toplevel
from dagster_mlops.errors import DatasetError
from dagster_mlops.provenance import mask_credentials

_TAIL = 40  # lines of output shown when a stage fails
_GRACE = 5.0  # seconds between asking a stage to stop and killing it
_COMMITTED = 1_000_000  # bytes; a larger file that git would track is left for the user to commit


@dataclass(frozen=True)
class StageRun:
    """The result of a stage: its `outcome` (executed, restored or unchanged), and its `entry` in ``dvc.lock``.

    `metrics` are the parsed metric files below its outputs, `plots` the plots of them in ``dvc plots show``.
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

    DVC runs in a separate process that ends with this one, even if this one is killed. Its lock on the repository is
    free while the command runs; its read and write locks on the stage's inputs and outputs are held.

    Args:
        dvc: Repository.
        stage: Stage, none of whose inputs is brought up to date.
        log: Function for the lines that DVC and the command print, called at most once a second.
        force: Whether to execute even if nothing changed.
        pull: Whether to fetch inputs and recorded outputs that the workspace lacks from cache and remote.
        env: Environment variables for the command, such as the ``PATH`` of its virtual environment.

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
        sys.stdout.write("".join(f"{line}\n" for line in lines))  # at once, because the step's output may be captured
        sys.stdout.flush()
        log(mask_credentials("\n".join(lines)))

    try:
        answer = run_child(
            Path(__file__).with_name("_reproduce_script.py"),
            request,
            timeout=None,
            cwd=dvc.root,
            env={**os.environ, "DVC_NO_ANALYTICS": "1", "PYTHONUNBUFFERED": "1", **(env or {})},
            output=show,
            grace=_GRACE,
        )
    except ChildError as failure:
        metadata = {"dvc/output": _quoted(tail), "dvc/exit_code": failure.returncode or 0}
        text = f"DVC ended while it ran stage {stage.address}: {mask_credentials(failure.reason)}"
        raise dg.Failure(text, metadata) from failure
    if "error" in answer:
        raise _failure(stage, answer, tail, dvc)
    return StageRun(seconds=time.monotonic() - started, **answer)


def share(dvc: DvcResource, stage: Stage, run: StageRun, message: str) -> str:
    """Push a stage's outputs and commit its entry in ``dvc.lock``, if the resource does so; returns the commit.

    It holds only the entry of this stage, the outputs that git tracks, and the lines by which git ignores the others.

    Raises:
        DatasetError: the remote does not take the content, or git refuses.
    """
    cached_paths = {out.path for out in stage.outs if out.cached}
    outs = [out for out in run.outs if "md5" in out and stage.in_repo(out["path"]) in cached_paths]
    if dvc.push and outs:
        with dvc.open(locked=False) as repo:
            for out in outs:
                objects.push(repo, out["md5"], out["size"], dvc.remote)
    top = toplevel(dvc.root)
    if not dvc.commit or top is None:
        return ""
    lock = dvc.root / Path(stage.file).with_name("dvc.lock")
    cached_by_place = {dvc.root / out.path: out.cached for out in stage.outs if "://" not in out.path}
    edits: dict[Path, Edit] = {lock: partial(_with_entry, lock, stage.name, run.entry)}
    edits |= pointers.ignored(*(place for place, cached in cached_by_place.items() if cached))
    files = [file for place, cached in cached_by_place.items() if not cached for file in _files(top, place)]
    return dvc.commit_files(top, files, edits, message)


def _files(top: Path, place: Path) -> list[Path]:
    """The files of an output that git tracks, with deleted ones and without large ones."""
    on_disk = [file for file in place.rglob("*") if not file.is_dir()] if place.is_dir() else [place]
    in_git = git(top, "ls-files", "-z", "--", str(place)).stdout.split(b"\0")
    deleted = [file for name in in_git if name and not os.path.lexists(file := top / os.fsdecode(name))]
    small = [file for file in on_disk if os.path.lexists(file) and file.lstat().st_size <= _COMMITTED]
    return [*small, *deleted]


def _with_entry(lock: Path, name: str, entry: Mapping[str, Any], old: bytes) -> bytes:
    merged: dict[str, Any] = yaml.safe_load(old) or {"schema": "2.0"}
    stages = merged.setdefault("stages", {})
    if stages.get(name) == entry:
        return old
    stages[name] = dict(entry)
    on_disk = lock.read_bytes()
    with suppress(yaml.YAMLError):  # another stage is writing it
        # DVC's own bytes if they have the same meaning, so that git does not see the file on disk as modified.
        if yaml.safe_load(on_disk) == merged:
            return on_disk
    return yaml.safe_dump(merged, sort_keys=False, allow_unicode=True).encode()


def _failure(stage: Stage, answer: Mapping[str, Any], tail: deque[str], dvc: DvcResource) -> Exception:
    error = mask_credentials(answer["error"])
    if answer["reason"] == "busy":
        return DatasetError(
            f"Stage {stage.address} of {dvc.root} waited {dvc.lock_timeout:g} s for another DVC process: {error} Wait "
            "for that process, stop it, or raise lock_timeout."
        )
    command = " && ".join(stage.cmd)
    metadata = {STAGE: stage.address, CMD: command, "dvc/output": _quoted(tail)}
    if answer["reason"] == "command":
        last = mask_credentials(last_line("\n".join(tail)))
        return dg.Failure(f"Stage {stage.address} failed: `{command}` in {dvc.root}: {last} ({error})", metadata)
    return dg.Failure(
        f"DVC cannot run stage {stage.address} of {dvc.root}: {error}. `dvc repro --single-item {stage.address}` shows "
        "the same there; if data is missing, `dvc pull` it or run its stage.",
        metadata,
        allow_retries=False,
    )


def _quoted(lines: "deque[str]") -> dg.MarkdownMetadataValue:
    text = mask_credentials("\n".join(lines))
    return dg.MetadataValue.md(f"```\n{text}\n```")
