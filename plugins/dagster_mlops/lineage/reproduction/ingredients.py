"""The ingredients of a training; here, its code."""

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

    An ingredient that is not `needed` only explains the training, which can be run again without it.
    """

    kind: str
    name: str
    bucket: str
    reason: str = ""
    needed: bool = True


def find_repository(run: TrainingRun, step: Mapping[str, Any], repo: Path | None) -> Path | None:
    """The first checkout that has the commit of the run (`repo` alone, if it is given), or None."""
    recorded = [step.get("code", {}).get("toplevel", "")]
    recorded += [ref.at for ref in run.upstream if ref.role == "commit" and ref.id == run.code_commit]
    for folder in [repo] if repo else [*map(Path, filter(None, recorded)), Path.cwd()]:
        if folder.is_dir() and git(folder, "cat-file", "-e", f"{run.code_commit}^{{commit}}").returncode == 0:
            return top_level(folder)
    return None


def code_ingredients(
    run: TrainingRun, files: Mapping[str, bytes], repository: Path | None, problem: str
) -> list[Ingredient]:
    """Commit, uncommitted changes and submodules; `files` are those below ``code/``, or `problem` says why not."""
    if not run.code_commit:
        return [Ingredient("code", "commit", "deleted", "the code was not in a git repository when the run was made.")]
    short = f"commit {run.code_commit[:10]}"
    step = json.loads(files.get(STEP, b"{}"))
    code, definitions = step.get("code", {}), Path(step.get("location", {}).get("python_file", ""))
    if repository is None:
        origin = code.get("origin", "")
        clone = f"Clone {origin} and name" if origin else "Name"
        return [Ingredient("code", short, "inaccessible", f"no checkout here has it. {clone} a checkout with --repo.")]
    ingredients = [Ingredient("code", short, "accessible")]
    if run.dirty:
        ingredients.append(_diff(run, files.get(DIFF), repository, problem))
    if definitions.is_absolute():
        bucket = "accessible" if definitions.is_file() else "inaccessible"
        reason = "they are outside the checkout, so that today's file is run."
        ingredients.append(Ingredient("code", f"definitions {definitions} as of today", bucket, reason))
    for path, commit in code.get("submodules", {}).items():
        name, source = f"submodule {path} {commit[:10]}", submodule(repository, path, commit)
        reason = "" if source else f"{repository} has no checkout of it. Run there: git submodule update --init {path}"
        ingredients.append(Ingredient("code", name, "accessible" if source else "inaccessible", reason))
    for name in code.get("left_out", ()):  # perhaps the training did not read it
        kind = "of a submodule" if name in code.get("submodules", {}) else "that are large or a repository"
        reason = f"a run does not keep uncommitted files {kind}."
        ingredients.append(Ingredient("code", f"uncommitted {name}", "deleted", reason, needed=False))
    return ingredients


def _diff(run: TrainingRun, diff: bytes | None, repository: Path, problem: str) -> Ingredient:
    name = f"uncommitted changes {run.dirty[:10]}"
    if diff is None:
        if problem:
            return Ingredient("code", name, "inaccessible", problem)
        return Ingredient("code", name, "deleted", f"the run no longer has its file {CODE}/{DIFF}.")
    if hashlib.sha256(diff).hexdigest() != run.dirty:
        return Ingredient("code", name, "faulty", f"{CODE}/{DIFF} of the run does not have the recorded hash.")
    if refusal := _refusal(repository, run.code_commit, diff):
        return Ingredient("code", name, "faulty", f"git does not apply them to the commit: {refusal}")
    return Ingredient("code", name, "accessible")


def _refusal(repository: Path, commit: str, diff: bytes) -> str:
    """The reason that git does not apply a diff to a commit; tried in a separate index, not in the checkout."""
    with tempfile.TemporaryDirectory() as scratch:
        index = {"GIT_INDEX_FILE": str(Path(scratch, "index"))}
        for arguments, stdin in ((("read-tree", commit), b""), ((*APPLY, "--cached", "-"), diff)):
            answer = git(repository, *arguments, stdin=stdin, env=index, timeout=GIT_TIMEOUT)
            if answer.returncode:
                return answer.stderr.decode(errors="replace").strip()
    return ""
