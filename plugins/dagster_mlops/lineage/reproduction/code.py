"""The code of a training: whether it is still there, and a clone of it with its submodules and uncommitted changes."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagster_mlops.core.code_state import APPLY
from dagster_mlops.core.git import git, runs_no_code_of_checkouts
from dagster_mlops.core.inside import inside, plain_name
from dagster_mlops.core.run_files import CODE, DIFF, STEP
from dagster_mlops.errors import ReproductionError
from dagster_mlops.lineage.reproduction.trust import COMMIT
from dagster_mlops.provenance import TrainingRun

_GIT_TIMEOUT = 900.0  # seconds: a large repository, of which git may have to fetch files

WITHOUT_KEYS = "what looks like a key was not kept: the recorded code is not all of what ran."

# The user's own hooks and line-end conversions would change the files.
_AS_IS = ("-c", "core.hooksPath=/dev/null", "-c", "core.autocrlf=false")


@dataclass(frozen=True)
class Ingredient:
    """One thing that a training was made of. `bucket` is that of a link in a trace.

    An ingredient that is not `needed` only explains the training, which can be run again without it.
    """

    kind: str
    name: str
    bucket: str
    reason: str = ""
    needed: bool = True


def find_repository(run: TrainingRun, step: Mapping[str, Any], repo: Path | None) -> Path | None:
    """The first checkout that has the commit of the run (`repo` alone, if it is given), or None."""
    if not COMMIT.fullmatch(run.code_commit):
        return None
    recorded = [step.get("code", {}).get("toplevel", "")]
    recorded += [ref.at for ref in run.upstream if ref.role == "commit" and ref.id == run.code_commit]
    with runs_no_code_of_checkouts():  # a record may name any folder
        for folder in [repo] if repo else [*map(Path, filter(None, recorded)), Path.cwd()]:
            if folder.is_dir() and git(folder, "cat-file", "-e", f"{run.code_commit}^{{commit}}").returncode == 0:
                return top_level(folder)
    return None


def code_ingredients(
    run: TrainingRun, files: Mapping[str, bytes], repository: Path | None, problem: str
) -> list[Ingredient]:
    """Commit, uncommitted changes and submodules; `files` are those below ``code/``, or `problem` says why not."""
    if not run.code_commit:
        reason = "the code was not in a git repository when the run was made. Commit it, and train again."
        return [Ingredient("code", "commit", "unknown", reason)]
    short = f"commit {run.code_commit[:10]}"
    if not COMMIT.fullmatch(run.code_commit):
        return [
            Ingredient("code", short, "faulty", "it is not the hash of a commit: someone wrote the record by hand.")
        ]
    code = json.loads(files.get(STEP, b"{}")).get("code", {})
    if repository is None:
        origin = code.get("origin", "")
        clone = f"Clone {origin} and name" if origin else "Name"
        return [Ingredient("code", short, "inaccessible", f"no checkout here has it. {clone} a checkout with --repo.")]
    ingredients = [Ingredient("code", short, "accessible")]
    if run.dirty:
        ingredients.append(_diff(run, code, files.get(DIFF), repository, problem))
    for name in code.get("without_keys", ()):
        ingredients.append(Ingredient("code", f"keys in {name}", "unknown", WITHOUT_KEYS, needed=False))
    for path, commit in code.get("submodules", {}).items():
        name, source = f"submodule {path} {commit[:10]}", submodule(repository, path, commit)
        reason = "" if source else f"{repository} has no checkout of it. Run there: git submodule update --init {path}"
        ingredients.append(Ingredient("code", name, "accessible" if source else "inaccessible", reason))
    left_out = code.get("left_out", {})
    for name in left_out:  # perhaps the training did not read it
        kind = "of a submodule" if name in code.get("submodules", {}) else "that are large or a repository"
        why = f"{left_out[name]}." if isinstance(left_out, Mapping) else f"uncommitted files {kind} are not."
        ingredients.append(Ingredient("code", f"uncommitted {name}", "deleted", f"not kept: {why}", needed=False))
    return ingredients


def _diff(run: TrainingRun, code: Mapping[str, Any], diff: bytes | None, repository: Path, problem: str) -> Ingredient:
    name = f"uncommitted changes {run.dirty[:10]}"
    if diff is None:
        reason = problem or f"the run no longer has its file {CODE}/{DIFF}."
        if code.get("uncommitted") == "none":
            reason = 'the run did not keep them: its resource has uncommitted_code="none".'
        return Ingredient("code", name, "inaccessible" if problem else "deleted", reason)
    if hashlib.sha256(diff).hexdigest() != run.dirty:
        return Ingredient("code", name, "faulty", f"{CODE}/{DIFF} of the run does not have the recorded hash.")
    if refusal := _refusal(repository, run.code_commit, diff):
        marked = ", ".join(code.get("without_keys", ()))
        cause = f" Lines of the commit that look like keys are not kept, in {marked}." if marked else ""
        return Ingredient("code", name, "faulty", f"git does not apply them to the commit: {refusal}{cause}")
    return Ingredient("code", name, "accessible")


def _refusal(repository: Path, commit: str, diff: bytes) -> str:
    """The reason that git does not apply a diff to a commit; tried in a separate index, not in the checkout."""
    with tempfile.TemporaryDirectory() as scratch:
        index = {"GIT_INDEX_FILE": str(Path(scratch, "index"))}
        for arguments, stdin in ((("read-tree", commit), b""), ((*APPLY, "--cached", "-"), diff)):
            answer = git(repository, *arguments, stdin=stdin, env=index, timeout=_GIT_TIMEOUT)
            if answer.returncode:
                return answer.stderr.decode(errors="replace").strip()
    return ""


def top_level(folder: Path) -> Path:
    """The top of the checkout that `folder` is in; a bare repository is its own."""
    answer = git(folder, "rev-parse", "--show-toplevel")
    return Path(os.fsdecode(answer.stdout.strip())) if answer.returncode == 0 else folder.absolute()


def submodule(repository: Path, path: str, commit: str) -> Path | None:
    """The repository that has this commit of a submodule: its checkout, or git's own copy if it is not checked out."""
    if not COMMIT.fullmatch(commit):
        return None
    plain_name(path, error=ReproductionError)
    common = git(repository, "rev-parse", "--path-format=absolute", "--git-common-dir").stdout.strip()
    for folder in (repository / path, Path(os.fsdecode(common), "modules", path)):
        # Without a git directory of its own, git would answer for the repository around it.
        is_repository = (folder / ".git").exists() or (folder / "HEAD").exists()
        if is_repository and git(folder, "cat-file", "-e", f"{commit}^{{commit}}").returncode == 0:
            return folder
    return None


def check_out(repository: Path, commit: str, folder: Path, *, submodules: Mapping[str, str], diff: bytes = b"") -> None:
    """Clone `repository` into `folder` at `commit`; `repository` itself does not change.

    Raises:
        ReproductionError: A file or submodule is missing, or the diff does not apply.
    """
    _clone(repository, commit, folder)
    for path, revision in submodules.items():
        source = submodule(repository, path, revision)
        if source is None:
            raise ReproductionError(f"no checkout here has the submodule {path} at commit {revision[:10]}.")
        _clone(source, revision, inside(folder, path, error=ReproductionError))
    if diff:
        _git(folder, *APPLY, "-", stdin=diff)


def _clone(repository: Path, commit: str, folder: Path) -> None:
    options = ("--quiet", "--shared", "--no-checkout", "--template=", *_AS_IS)
    _git(repository, "clone", *options, str(repository), str(folder))
    promised = git(repository, "config", "--get-regexp", r"^remote\..*\.promisor$").stdout.decode()
    if promised:
        # Objects that a partial clone lacks are fetched from its own remote.
        address = git(repository, "remote", "get-url", promised[7:].split(".promisor")[0]).stdout.decode().strip()
        settings = {"remote.origin.url": address, "remote.origin.promisor": "true", "extensions.partialClone": "origin"}
        for name, value in {"core.repositoryFormatVersion": "1", **settings}.items():
            _git(folder, "config", name, value)
    _git(folder, "checkout", "--quiet", "--detach", commit)
    missing = _git(folder, "ls-files", "--deleted")
    if missing:
        raise ReproductionError(
            f"the recorded code cannot be checked out: {repository} is a partial clone that lacks "
            f"{len(missing.splitlines())} files, such as {missing.splitlines()[0]}. Name a full clone with --repo."
        )


def _git(folder: Path, *arguments: str, stdin: bytes = b"") -> str:
    answer = git(folder, *_AS_IS, *arguments, stdin=stdin, timeout=_GIT_TIMEOUT)
    if answer.returncode:
        problem = answer.stderr.decode(errors="replace").strip()
        raise ReproductionError(f"the recorded code cannot be checked out: {problem}")
    return os.fsdecode(answer.stdout)
