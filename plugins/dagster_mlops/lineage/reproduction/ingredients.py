"""What a training was made of, one by one; here, its code."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagster_mlops.core.code_state import APPLY
from dagster_mlops.core.git import git
from dagster_mlops.core.run_files import CODE, DIFF, STEP
from dagster_mlops.lineage.reproduction.checkout import GIT_TIMEOUT, submodule, top_level
from dagster_mlops.provenance import TrainingRun


@dataclass(frozen=True)
class Ingredient:
    """One thing that a training was made of. `bucket` is accessible, inaccessible, deleted or faulty.

    What is not `needed` explains the training, which can be run again without it.
    """

    kind: str
    name: str
    bucket: str
    reason: str = ""
    needed: bool = True


def find_repository(run: TrainingRun, step: Mapping[str, Any], given: Path | None) -> Path | None:
    """The first checkout at hand that has the commit of the run, or None."""
    kept = step.get("code", {}).get("toplevel", "")
    known = [ref.at for ref in run.upstream if ref.role == "commit" and ref.id == run.code_commit]
    for folder in [given] if given else [*map(Path, filter(None, [kept, *known])), Path.cwd()]:
        if folder.is_dir() and git(folder, "cat-file", "-e", f"{run.code_commit}^{{commit}}").returncode == 0:
            return top_level(folder)
    return None


def code_ingredients(
    run: TrainingRun, files: Mapping[str, bytes], repository: Path | None, lost: str
) -> list[Ingredient]:
    """Commit, uncommitted changes and submodules; `files` are those below ``code/``, `lost` says why there are none."""
    if not run.code_commit:
        return [Ingredient("code", "commit", "deleted", "the code was in no git repository when the run was made.")]
    short = f"commit {run.code_commit[:10]}"
    step = json.loads(files.get(STEP, b"{}"))
    kept, definitions = step.get("code", {}), Path(step.get("location", {}).get("python_file", ""))
    if repository is None:
        origin = kept.get("origin", "")
        clone = f"Clone {origin} and name" if origin else "Name"
        return [Ingredient("code", short, "inaccessible", f"no checkout here has it. {clone} a checkout with --repo.")]
    found = [Ingredient("code", short, "accessible")]
    if run.dirty:
        found.append(_diff(run, files.get(DIFF), repository, lost))
    if definitions.is_absolute():
        bucket = "accessible" if definitions.is_file() else "inaccessible"
        reason = "they are in no commit of the checkout, so what they say today is run."
        found.append(Ingredient("code", f"definitions {definitions} as of today", bucket, reason))
    for path, commit in kept.get("submodules", {}).items():
        name, there = f"submodule {path} {commit[:10]}", submodule(repository, path, commit)
        reason = "" if there else f"{repository} has no checkout of it. Run there: git submodule update --init {path}"
        found.append(Ingredient("code", name, "accessible" if there else "inaccessible", reason))
    for name in kept.get("left_out", ()):  # whether the training read it is not known
        what = "changed in the submodule" if name in kept.get("submodules", {}) else "large or a repository itself"
        reason = f"what is {what} and in no commit is not kept with the run."
        found.append(Ingredient("code", f"uncommitted {name}", "deleted", reason, needed=False))
    return found


def _diff(run: TrainingRun, diff: bytes | None, repository: Path, lost: str) -> Ingredient:
    name = f"uncommitted changes {run.dirty[:10]}"
    if diff is None:
        if lost:
            return Ingredient("code", name, "inaccessible", lost)
        return Ingredient("code", name, "deleted", f"the run no longer has its file {CODE}/{DIFF}.")
    if hashlib.sha256(diff).hexdigest() != run.dirty:
        return Ingredient("code", name, "faulty", f"{CODE}/{DIFF} of the run is not what was uncommitted then.")
    if problem := _apply_problem(repository, run.code_commit, diff):
        return Ingredient("code", name, "faulty", f"git does not apply them to the commit: {problem}")
    return Ingredient("code", name, "accessible")


def _apply_problem(repository: Path, commit: str, diff: bytes) -> str:
    """Why a diff does not fit a commit, tried in an index of its own: nothing in the checkout changes."""
    with tempfile.TemporaryDirectory() as scratch:
        index = {"GIT_INDEX_FILE": str(Path(scratch, "index"))}
        for arguments, stdin in ((("read-tree", commit), b""), ((*APPLY, "--cached", "-"), diff)):
            done = git(repository, *arguments, stdin=stdin, env=index, timeout=GIT_TIMEOUT)
            if done.returncode:
                return done.stderr.decode(errors="replace").strip()
    return ""
