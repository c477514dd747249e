"""The author of what a rerun will run, code and packages: named before it runs, and refused where only a record has it.

A schedule refuses code that no branch has. By hand, what only the tracker has needs consent: code that no commit has,
and packages that are neither locked nor in use here, of a run that Dagster's event log does not know.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from dagster_mlops.core.code_state import LOCK_FILES
from dagster_mlops.core.git import git, runs_no_code_of_checkouts
from dagster_mlops.core.run_files import CODE, DIFF
from dagster_mlops.errors import ReproductionError
from dagster_mlops.lineage.reproduction.environment import committed, installed_versions, locked_versions
from dagster_mlops.lineage.reproduction.recipe import Recipe
from dagster_mlops.lineage.reproduction.trust import branch_of
from dagster_mlops.provenance import mask_credentials

_MOST = 10  # names of changed files, or of packages
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


def whose_code(recipe: Recipe, repository: Path, *, consent: bool) -> list[str]:
    """Lines that say whose code runs: commit, author, address, uncommitted changes, and who wrote the run.

    Raises:
        ReproductionError: There are uncommitted changes, which only the tracker has, and no consent to them.
    """
    run = recipe.run
    with runs_no_code_of_checkouts():  # such as the program that its configuration names for signatures
        log = git(
            repository, "show", "--no-patch", "--format=%an <%ae>, %ad: %s", "--date=short", run.code_commit, "--"
        )
        origin = git(repository, "remote", "get-url", "origin").stdout.decode(errors="replace").strip()
    place = f"{repository}{f' ({mask_credentials(origin)})' if origin else ''}"
    lines = [f"code: commit {run.code_commit[:10]} of {place}, {log.stdout.decode(errors='replace').strip()}"]
    if changed := _changed(recipe):
        lines.append(f"code: with {len(changed)} uncommitted changes, which no commit has: {_listed(changed)}")
        if recipe.witness is None and not consent:
            raise ReproductionError(
                f"run {run.run_id} was made by {len(changed)} uncommitted changes, which no commit has: "
                f"{_listed(changed)}. {_only_tracked(recipe)} Look at {CODE}/{DIFF} of the run; run them with --yes."
            )
    user = run.tool_facts.get("user") or "an unknown user"
    lines.append(f"run: {run.run_id} at {run.tracking_uri}, written by {user}")
    return lines


def whose_packages(recipe: Recipe, name: str, content: bytes, *, consent: bool) -> list[str]:
    """Lines that say which packages, of those to install, differ from what the checkout locks and what is here.

    Those of the commit's lock file are as good as its code. A package builds and loads itself with the caller's rights,
    and its name may be that of a popular one with a letter changed.

    Raises:
        ReproductionError: Neither has a package of that name, the run is not in Dagster's event log, and there is no
            consent to what only the tracker says.
    """
    run = recipe.run
    if content == committed(name, run, recipe.repository):
        return []
    available = installed_versions()
    for lock in LOCK_FILES:
        available |= locked_versions(lock, committed(lock, run, recipe.repository) or b"")
    recorded = locked_versions(name, content)
    new = [f"{package} {version}" for package, version in recorded.items() if package not in available]
    other_versions = [
        f"{p} {version} (here {available[p]})"
        for p, version in recorded.items()
        if available.get(p, version) != version
    ]
    if new and recipe.witness is None and not consent:
        raise ReproductionError(
            f"{name} of run {run.run_id} names packages that neither the checkout's lock file nor this environment "
            f"has: {', '.join(new)}. {_only_tracked(recipe)} If you know each of them, install them with --yes, or use "
            "--environment current."
        )
    kinds = {"neither locked in the checkout nor installed here": new, "in another version": other_versions}
    return [f"packages: {len(names)} {kind}: {_listed(names)}" for kind, names in kinds.items() if names]


def _only_tracked(recipe: Recipe) -> str:
    place = recipe.run.tracking_uri
    return f"The run is not in Dagster's event log, so that whoever can write to {place} may have put them there."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST]) + (", …" if len(names) > _MOST else "")


def _changed(recipe: Recipe) -> list[str]:
    return list(_names(recipe.files.get(DIFF, b""))) if recipe.run.dirty else []


def _names(diff: bytes) -> Iterator[str]:
    for line in re.findall(rb"^diff --git (.+)$", diff, re.MULTILINE):
        name = line.decode(errors="replace").rstrip("\r")
        yield name[: len(name) // 2].strip('"').removeprefix("a/")
