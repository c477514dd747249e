"""The author of the code that a rerun will run: named before it runs; a schedule refuses what no branch has."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from dagster_mlops.core.git import git, runs_no_code_of_checkouts
from dagster_mlops.core.run_files import DIFF
from dagster_mlops.errors import ReproductionError
from dagster_mlops.lineage.reproduction.recipe import Recipe
from dagster_mlops.lineage.reproduction.trust import branch_of
from dagster_mlops.provenance import mask_credentials

_MOST = 10  # names of changed files
_HINT = "A schedule runs what others have put into a branch. Run it by hand, or give reproduction_asset branches=None."


def refuse_unknown_code(recipe: Recipe, repository: Path, branches: Sequence[str]) -> None:
    """Refuse code that is not in the history of a branch with one of these names, and runs that Dagster does not know.

    Whoever can write to the tracker can add a run with a good commit, other packages and any file for a model.

    Raises:
        ReproductionError: It is not, or the run is not in Dagster's event log.
    """
    run = recipe.run
    if recipe.witness is None:
        raise ReproductionError(
            f"run {run.run_id} is not in Dagster's event log: whoever can write to {run.tracking_uri} may have made "
            f"it. {_HINT}"
        )
    if run.dirty:
        problem = f"{len(_changed(recipe))} uncommitted changes, which no branch has"
    elif branch_of(repository, run.code_commit, branches):
        return
    else:
        problem = f"commit {run.code_commit[:10]}, which no branch like {', '.join(branches)} of {repository} has"
    raise ReproductionError(f"run {run.run_id} was made by {problem}. {_HINT}")


def whose_code(recipe: Recipe, repository: Path) -> list[str]:
    """Lines that say whose code runs: commit, author, address, uncommitted changes, and who wrote the run."""
    run = recipe.run
    with runs_no_code_of_checkouts():  # such as the program that its configuration names for signatures
        log = git(
            repository, "show", "--no-patch", "--format=%an <%ae>, %ad: %s", "--date=short", run.code_commit, "--"
        )
        origin = git(repository, "remote", "get-url", "origin").stdout.decode(errors="replace").strip()
    place = f"{repository}{f' ({mask_credentials(origin)})' if origin else ''}"
    lines = [f"code: commit {run.code_commit[:10]} of {place}, {log.stdout.decode(errors='replace').strip()}"]
    if changed := _changed(recipe):
        names = ", ".join(changed[:_MOST]) + (", …" if len(changed) > _MOST else "")
        lines.append(f"code: with {len(changed)} uncommitted changes, which no commit has: {names}")
    user = run.tool_facts.get("user") or "an unknown user"
    lines.append(f"run: {run.run_id} at {run.tracking_uri}, written by {user}")
    return lines


def _changed(recipe: Recipe) -> list[str]:
    return list(_names(recipe.files.get(DIFF, b""))) if recipe.run.dirty else []


def _names(diff: bytes) -> Iterator[str]:
    for line in re.findall(rb"^diff --git (.+)$", diff, re.MULTILINE):
        name = line.decode(errors="replace").rstrip("\r")
        yield name[: len(name) // 2].strip('"').removeprefix("a/")
