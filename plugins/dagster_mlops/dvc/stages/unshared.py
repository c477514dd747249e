"""Notes of the stages whose results are not shared yet: a kill between dvc.lock and the push loses no version."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote

from dagster_mlops.core.files import if_free
from dagster_mlops.dvc.resource import DvcResource
from dagster_mlops.dvc.stages.project import Stage
from dagster_mlops.dvc.store import objects, pointers
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


def push_unshared(dvc: DvcResource, stages: dict[str, Stage]) -> None:
    """Push what ``dvc.lock`` names of the stages, by address, that earlier runs left: their next runs overwrite it.

    A stage that another process runs is left to it. Content that is not in the cache any more is passed over.

    Raises:
        DatasetError: the remote cannot be reached.
    """
    folder = _folder(dvc)
    for note in sorted(folder.iterdir()) if folder.is_dir() else ():
        with if_free(note) as ours:
            if not ours:
                continue
            if stage := stages.get(unquote(note.name)):
                _push(dvc, stage)
            note.unlink(missing_ok=True)


def _push(dvc: DvcResource, stage: Stage) -> None:
    lock = pointers.content_at(dvc.root, Path(stage.file).with_name("dvc.lock").as_posix(), None)
    entry = pointers.stages_in(lock or b"").get(stage.name) or {}
    definitions = {out.path: out for out in stage.outs if out.cached and out.push}
    with dvc.open(locked=False) as repo:
        for out in entry.get("outs", ()):
            definition = definitions.get(stage.in_repo(out["path"]))
            if definition and "md5" in out and objects.cached(repo, content_of(out)):
                objects.push(repo, content_of(out), out["size"], definition.remote or dvc.remote)


def _folder(dvc: DvcResource) -> Path:
    return dvc.root / ".dvc" / "tmp" / NAMESPACE / "unshared"
