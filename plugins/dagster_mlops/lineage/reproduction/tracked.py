"""The files that a training read by itself: those that its commit tracks, and those without a version."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from dagster_mlops.core.files import digest
from dagster_mlops.core.inside import inside
from dagster_mlops.core.run_files import READS
from dagster_mlops.errors import DagsterMlopsError, ReproductionError
from dagster_mlops.lineage.chain.sources import Tools
from dagster_mlops.lineage.reproduction.code import Ingredient
from dagster_mlops.lineage.reproduction.trust import leads_out
from dagster_mlops.provenance import Ref, TrainingRun
from dagster_mlops.tools import KeepsDatasets, TracksFiles


def find_tracked(
    run: TrainingRun, files: Mapping[str, bytes], repository: Path | None, tools: Tools
) -> tuple[dict[str, Ref], list[Ingredient]]:
    """The datasets that the commit of `run` tracks at the paths that the training read, and all such reads.

    A file in the checkout that git ignores, as it ignores what DVC tracks, is a dataset of that commit. Any other file
    has no version: a rerun reads it as it is then.
    """
    reads = json.loads(files.get(READS, b"{}"))
    tracked: dict[str, Ref] = {}
    ingredients = []
    for name, facts in reads.get("files", {}).items():
        ref = None if leads_out(name) else _tracked_at(repository, name, run.code_commit, tools)
        if ref is not None:
            tracked[name] = ref
            answer = tools.ask(ref)
            ingredients.append(Ingredient("data", f"file {name}", answer.bucket, getattr(answer, "reason", "")))
        else:
            ingredients.append(
                Ingredient("data", f"file {name}", "unknown", _state(name, facts["sha256"]), needed=False)
            )
    for address in reads.get("addresses", ()):
        reason = "nothing versions it: a rerun reads it as it is then."
        ingredients.append(Ingredient("data", address, "unknown", reason, needed=False))
    return tracked, ingredients


def restore_tracked(tracked: Mapping[str, Ref], code: Path, tools: Tools) -> None:
    """Put the datasets into the checkout `code`, at the paths that its commit tracks.

    Raises:
        ReproductionError: One cannot be read.
    """
    for ref in dict.fromkeys(tracked.values()):
        path, _, version = ref.id.rpartition("@")
        try:
            local = tools.tool_for(ref, KeepsDatasets).datasets(ref.at).read_path(path, md5=version)
        except DagsterMlopsError as error:
            raise ReproductionError(f"{path}, which the training read in its checkout, is lost: {error}") from error
        # Where the repository of the datasets is a folder of the checkout, the name in it is the longer one.
        name = next(name for name, other in tracked.items() if other == ref)
        target = inside(code, name[: name.index(path) + len(path)], error=ReproductionError)
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if local.is_dir() else shutil.copyfile
        copy(local, target)


def _tracked_at(repository: Path | None, name: str, commit: str, tools: Tools) -> Ref | None:
    if repository is None:
        return None
    for tool in tools.names:
        ref = Ref(tool, "dataset", "", at=str(repository))
        if tools.has(ref, TracksFiles):
            try:
                if dataset := tools.tool_for(ref, TracksFiles).tracked_at(repository, name, commit):
                    return dataset
            except DagsterMlopsError:
                continue
    return None


def _state(name: str, sha256: str) -> str:
    file, text = Path(name), "nothing versions it: a rerun reads it as it is then."
    if not file.is_absolute():
        return f"git ignores it, and nothing else tracks it at this commit: {text}"
    if not file.is_file():
        return f"it is not there any more. {text}"
    same = bool(sha256) and digest(file) == sha256
    return f"{text} Now it has the recorded content." if same else f"{text} Now it has another content."
