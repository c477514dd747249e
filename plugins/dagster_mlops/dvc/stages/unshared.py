"""Notes of the stages whose results are not shared yet: a kill between dvc.lock and the push loses no version."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from dagster_mlops.core.files import if_free
from dagster_mlops.dvc.resource import DvcResource
from dagster_mlops.dvc.stages.project import Project, Stage, TrackedData
from dagster_mlops.dvc.store import lock_files, objects, pointers
from dagster_mlops.dvc.store.contents import content_of
from dagster_mlops.provenance import NAMESPACE


@contextmanager
def unshared(dvc: DvcResource, stage: Stage) -> Iterator[None]:
    """Keep a note of a stage until the body, which runs it and shares its result, has ended without an error."""
    folder = _folder(dvc)
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / quote(stage.address, safe="")
    with if_free(note) as ours:
        yield
        if ours:
            note.unlink(missing_ok=True)


def push_unshared(dvc: DvcResource, project: Project) -> None:
    """Push what ``dvc.lock`` names of the stages that earlier runs left, and the data that these read.

    Their next runs overwrite what is named there.

    A stage that another process runs is left to it. Content that is not in the cache any more is passed over.

    Raises:
        DatasetError: the remote cannot be reached.
    """
    folder = _folder(dvc)
    for note in sorted(folder.iterdir()) if folder.is_dir() else ():
        with if_free(note) as ours:
            if not ours:
                continue
            for stage in project.stages:
                if stage.address == unquote(note.name):
                    _push(dvc, stage, project)
            note.unlink(missing_ok=True)


def _push(dvc: DvcResource, stage: Stage, project: Project) -> None:
    with dvc.open(locked=False) as repo:
        for out, remote in _left(dvc, stage, project):
            if "md5" in out and objects.cached(repo, content_of(out)):
                objects.push(repo, content_of(out), out["size"], remote)


def _left(dvc: DvcResource, stage: Stage, project: Project) -> Iterator[tuple[dict[str, Any], str | None]]:
    """The outputs of a stage, and the added data that it reads, that may be pushed, each with its remote."""
    lock = pointers.content_at(dvc.root, Path(stage.file).with_name("dvc.lock").as_posix(), None)
    definitions = {out.path: out for out in stage.outs if out.cached and out.push}
    for out in (lock_files.stages_in(lock or b"").get(stage.name) or {}).get("outs", ()):
        if definition := definitions.get(stage.in_repo(out["path"])):
            yield out, definition.remote or dvc.remote
    makers = [maker for dep in stage.deps for maker in project.makers(dep)]
    for file in {maker.file for maker in makers if isinstance(maker, TrackedData) and not maker.imported}:
        pointer = pointers.parse_pointer(pointers.content_at(dvc.root, file, None) or b"")
        remote, may_be_pushed = dvc.place_of(pointer)
        if pointer and may_be_pushed:
            yield pointer["outs"][0], remote


def _folder(dvc: DvcResource) -> Path:
    return dvc.root / ".dvc" / "tmp" / NAMESPACE / "unshared"
