"""Runs stages of a DVC project, and stores their outputs as DVC and git do."""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from dagster_mlops.core import markdown
from dagster_mlops.core.child import ChildError, child_session, last_line
from dagster_mlops.core.environment import whole_environment
from dagster_mlops.core.git import git
from dagster_mlops.core.masked_errors import masked_error
from dagster_mlops.core.site_cache import site_cache_variables
from dagster_mlops.dvc.metadata_keys import CMD, STAGE
from dagster_mlops.dvc.resource import DvcResource
from dagster_mlops.dvc.stages.project import Project, Stage
from dagster_mlops.dvc.store import objects, pointers, remotes
from dagster_mlops.dvc.store.contents import Content
from dagster_mlops.dvc.store.cut_off import parse_yaml
from dagster_mlops.dvc.store.git_commit import Edit, refuse_unmerged
from dagster_mlops.dvc.store.git_commit import run as git_output
from dagster_mlops.errors import DatasetError
from dagster_mlops.provenance import mask_credentials

_TAIL = 40  # lines of output shown when a stage fails
_GRACE = 5.0  # seconds between asking a stage to stop and killing it
_COMMITTED = 1_000_000  # bytes; a larger file that git would track is left for the user to commit


@dataclass(frozen=True)
class StageRun:
    """The result of a stage: its `outcome` (executed, restored or unchanged), and its `entry` in ``dvc.lock``.

    `metrics` are the parsed metric files below its outputs, `plots` the plots of them in ``dvc plots show``. `saved`
    are the `.dvc` files of data that was edited, `frozen` the entries of frozen stages whose outputs were, with file
    and name. `pushes` are the contents that may be pushed, `legacy` the hashes of inputs that DVC 2 versioned, by path.
    `top` is the folder of the git repository, empty without git.
    """

    outcome: str
    entry: Mapping[str, Any]
    metrics: Mapping[str, Any]
    plots: list[dict[str, Any]]
    seconds: float
    saved: Sequence[str] = ()
    frozen: Sequence[tuple[str, str, Mapping[str, Any]]] = ()
    pushes: Sequence[Mapping[str, Any]] = ()
    legacy: Mapping[str, str] = field(default_factory=dict)
    top: str = ""

    @property
    def outs(self) -> list[dict[str, Any]]:
        """The outputs in ``dvc.lock``: ``path`` relative to the stage's `wdir`, ``md5``, ``size``."""
        return [dict(out) for out in self.entry.get("outs", ())]


Run = Callable[..., StageRun]


@contextmanager
def stage_runs(
    dvc: DvcResource,
    project: Project,
    *,
    log: Callable[[str], Any],
    force: bool = False,
    pull: bool = True,
    env: Mapping[str, str] | None = None,
) -> Iterator[Run]:
    """A function that brings a stage up to date by ``dvc repro --single-item``; valid until the block ends.

    It takes the stage, and the names of what makes its inputs: `sources`, .dvc files and frozen stages, and `makers`,
    the other stages, none of which it runs.

    DVC runs in a separate process that ends with this one, even if this one is killed. Its lock on the repository is
    free while the command runs; its read and write locks on the stage's inputs and outputs are held.

    Args:
        dvc: Repository.
        project: Project in it.
        log: Function for the lines that DVC and the command print, called at most once a second.
        force: Whether to execute even if nothing changed.
        pull: Whether to fetch inputs and recorded outputs that the workspace lacks from cache and remote.
        env: Environment variables for the command, such as the ``PATH`` of its virtual environment.

    Raises:
        dagster.Failure: the command failed (its last lines are in the metadata), or DVC refuses the stage.
        DatasetError: another process holds the inputs or outputs for `lock_timeout` seconds.
    """
    tail: deque[str] = deque(maxlen=_TAIL)

    def show(lines: list[str]) -> None:
        tail.extend(lines)
        sys.stdout.write("".join(f"{line}\n" for line in lines))  # at once, because the step's output may be captured
        sys.stdout.flush()
        log(mask_credentials("\n".join(lines)))

    options = {
        "repo": str(dvc.root),
        "config": dvc.config(),
        "waits": {scheme: dict.fromkeys(names, remotes.READ_TIMEOUT) for scheme, names in remotes.WAITS.items()},
        "lock_timeout": dvc.lock_timeout,
        "force": force,
        "pull": pull,
        "push": dvc.push,
        "remote": dvc.remote,
        **{name: getattr(project, name) for name in ("read", "metrics", "plots")},
    }
    with child_session(
        Path(__file__).with_name("_reproduce_script.py"),
        cwd=dvc.root,
        env={
            **whole_environment(),
            **site_cache_variables(dvc.root),
            "DVC_NO_ANALYTICS": "1",
            "PYTHONUNBUFFERED": "1",
            **(env or {}),
        },
        output=show,
        grace=_GRACE,
    ) as child:

        def run(stage: Stage, *, sources: Sequence[str] = (), makers: Sequence[str] = ()) -> StageRun:
            started = time.monotonic()
            tail.clear()
            try:
                answer = child.ask({**options, "target": stage.address, "sources": sources, "makers": makers})
            except ChildError as failure:
                facts = {"dvc/output": _quoted(tail), "dvc/exit_code": failure.returncode or 0}
                text = f"DVC ended while it ran stage {stage.address}: {mask_credentials(failure.reason)}"
                raise dg.Failure(text, facts) from masked_error(failure)
            if "error" in answer:
                raise _failure(stage, answer, tail, dvc)
            return StageRun(seconds=time.monotonic() - started, **answer)

        yield run


def refuse_conflicts(dvc: DvcResource, project: Project) -> None:
    """Refuse to run while a merge has left a ``dvc.lock`` in conflict: what a stage adds to it could not be committed.

    Raises:
        DatasetError: there is such a file.
    """
    locks = {str(Path(stage.file).with_name("dvc.lock")) for stage in project.stages}
    listing = git(dvc.root, "--literal-pathspecs", "ls-files", "--stage", "--unmerged", "-z", "--", *sorted(locks))
    rows = (os.fsdecode(row).partition("\t") for row in listing.stdout.split(b"\0") if row)
    refuse_unmerged(dvc.root, {path: entry for entry, _, path in rows})


def share(dvc: DvcResource, stage: Stage, run: StageRun, message: str) -> str:
    """Push a stage's outputs and commit its entry in ``dvc.lock``, if the resource does so; returns the commit.

    It holds only the entry of this stage, the outputs that git tracks, the lines by which git ignores the others, and
    the pointers of inputs that were edited.

    Raises:
        DatasetError: the remote does not take the content, or git refuses.
    """
    if dvc.push and run.pushes:
        with dvc.open(locked=False) as repo:
            for push in run.pushes:
                content = Content(push["md5"], push["algorithm"])
                objects.push(repo, content, push["size"], push["remote"])
    if not dvc.commit or not run.top:
        return ""
    top, lock = Path(run.top), dvc.root / Path(stage.file).with_name("dvc.lock")
    local = [out for out in stage.outs if "://" not in out.path]
    cached_by_place = {Path(os.path.normpath(dvc.root / out.path)): out.cached for out in local}
    places = [place for place, cached in cached_by_place.items() if not cached and place.is_relative_to(top)]
    ignored = pointers.ignored(*(place for place, cached in cached_by_place.items() if cached))
    is_new = run.outcome != "unchanged" or run.saved or run.frozen
    if not is_new and not _git(top, "status", "--porcelain", "--untracked-files=all", "--", lock, *places, *ignored):
        return _git(top, "log", "-1", "--format=%H", "--", (*places, lock)[0]).decode().strip()
    edits: dict[Path, Edit] = {}
    for file, name, entry in (*run.frozen, (stage.file, stage.name, run.entry)):
        lock = dvc.root / Path(file).with_name("dvc.lock")
        edits[lock] = partial(_with_entry, lock, name, entry, edits.get(lock, lambda old: old))
    edits |= ignored
    return dvc.commit_files(top, [*(dvc.root / file for file in run.saved), *_files(top, places)], edits, message)


def _files(top: Path, places: Sequence[Path]) -> list[Path]:
    """The files in outputs that git tracks or would track, with deleted ones and without large ones."""
    if not places:
        return []
    selection = ("--cached", "--others", "--exclude-standard", "--", *places)
    names = _git(top, "ls-files", "-z", *selection).split(b"\0")
    return [file for name in set(names) if name and _may_be_committed(file := top / os.fsdecode(name), top)]


def _git(top: Path, *arguments: str | Path) -> bytes:
    return git_output(top, "--literal-pathspecs", *map(str, arguments))


def _may_be_committed(file: Path, top: Path) -> bool:
    if any(parent.is_symlink() for parent in file.parents if parent.is_relative_to(top)):
        return False  # a folder that a link replaced: git removes what was in it when the link is added
    if file.is_symlink() or not os.path.lexists(file):
        return True
    return file.is_file() and file.stat().st_size <= _COMMITTED


def _with_entry(lock: Path, name: str, entry: Mapping[str, Any], earlier: Edit, old: bytes) -> bytes:
    old = earlier(old)
    merged: dict[str, Any] = parse_yaml(old) or {"schema": "2.0"}
    stages = merged.setdefault("stages", {})
    if stages.get(name) == entry:
        return old
    stages[name] = dict(entry)
    on_disk = lock.read_bytes()
    with suppress(yaml.YAMLError):  # another stage is writing it
        # DVC's own bytes if they have the same meaning, so that git does not see the file on disk as modified.
        if parse_yaml(on_disk) == merged:
            return on_disk
    return yaml.safe_dump(merged, sort_keys=False, allow_unicode=True).encode()


def _failure(stage: Stage, answer: Mapping[str, Any], tail: deque[str], dvc: DvcResource) -> Exception:
    error = mask_credentials(answer["error"])
    if answer["reason"] == "busy":
        return DatasetError(
            f"Stage {stage.address} of {dvc.root} waited {dvc.lock_timeout:g} s for another DVC process: {error} Wait "
            "for that process, stop it, or raise lock_timeout."
        )
    command = mask_credentials(" && ".join(stage.cmd))
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
    return markdown.metadata(markdown.block(mask_credentials("\n".join(lines))))
