"""The recipe of a training: everything that a repetition takes, and whether it is still there."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from dagster_mlops.core.failures import raised_as
from dagster_mlops.core.git import runs_no_code_of_checkouts
from dagster_mlops.core.run_files import (
    CODE,
    CONFIG_NOT_KEPT,
    KEPT,
    PACKAGES,
    READS,
    STEP,
    SYSTEM,
    files_hash,
    sha256_of,
)
from dagster_mlops.errors import DagsterMlopsError, NotFoundError, ProvenanceError
from dagster_mlops.lineage.chain.names import find_ref
from dagster_mlops.lineage.chain.sources import EventLog, Tools
from dagster_mlops.lineage.chain.walk import Link, plain, trace
from dagster_mlops.lineage.reproduction.code import Ingredient, code_ingredients, find_repository
from dagster_mlops.lineage.reproduction.environment import (
    NO_UV,
    Environment,
    committed,
    find_requirements,
    find_uv,
)
from dagster_mlops.lineage.reproduction.tracked import find_tracked
from dagster_mlops.lineage.reproduction.trust import PYTHON, requirements_problem, safe_step, step_problem, switches
from dagster_mlops.provenance import Dataset, Inaccessible, ModelVersion, Record, Ref, TrainingRun, TrainingSet
from dagster_mlops.tools import KeepsRuns, RebuildsData

NOT_HASHED = "its record has no hash of them, so that whoever can write to the artifact store may have changed them."
# In MLflow, someone may have changed what Dagster's event log has as well.
_WITNESSED = ("code_commit", "dirty", "lock_hash", "files_hash", "python", "seed")
_SECRET = 'a run keeps no secrets. Give them as environment variables, {"env": "NAME"}, which it keeps by name.'


@dataclass(frozen=True)
class Recipe:
    """A training run and the ingredients that a repetition takes.

    `files` are those that the run keeps below ``code/``, `repository` is the checkout that has its commit, if any,
    `chain` everything that it was made from, `rebuilds` the training sets, by asset, that are rebuilt because their
    dataset is lost, and `tracked` the datasets, by path in the checkout, that the training read there by itself.
    `definitions` is the file that the caller names for definitions outside of the checkout. `witness` is the run's
    record in Dagster's event log, and `witness_sha256` the hash of its model there: whoever can only write to the
    tracker has made neither.
    """

    run: TrainingRun
    version: ModelVersion | None
    chain: Link
    files: Mapping[str, bytes] = field(repr=False)
    repository: Path | None
    ingredients: tuple[Ingredient, ...]
    rebuilds: Mapping[str, TrainingSet] = field(default_factory=dict)
    tracked: Mapping[str, Ref] = field(default_factory=dict)
    definitions: Path | None = None
    witness: TrainingRun | None = None
    witness_sha256: str = ""

    @property
    def missing(self) -> list[Ingredient]:
        """The ingredients that are needed and not accessible."""
        return [part for part in self.ingredients if part.needed and part.bucket != "accessible"]

    @property
    def complete(self) -> bool:
        """True if every needed ingredient is accessible."""
        return not self.missing

    def in_environment(self, environment: Environment) -> "Recipe":
        """A copy of the recipe for `environment`; the lock file is not needed in the current one."""
        if environment == "new":
            return self
        parts = [replace(part, needed=part.needed and part.kind != "environment") for part in self.ingredients]
        return replace(self, ingredients=tuple(parts))

    @property
    def step(self) -> dict[str, Any]:
        """The recorded step, with nothing of a place outside of the checkout; empty for a run that has none."""
        return safe_step(json.loads(self.files.get(STEP, b"{}")), definitions=self.definitions)

    @property
    def reads(self) -> dict[str, Any]:
        """The recorded reads that nothing versions: files, addresses and environment variables."""
        return json.loads(self.files.get(READS, b"{}"))

    @property
    def unknown(self) -> list[Ingredient]:
        """The ingredients that nothing versions, so that a rerun reads them as they are then."""
        return [part for part in self.ingredients if part.bucket == "unknown"]

    @property
    def system(self) -> dict[str, Any]:
        """The recorded machine."""
        return json.loads(self.files.get(SYSTEM, b"{}"))

    @property
    def switches(self) -> dict[str, str]:
        """The recorded environment variables that a rerun sets."""
        return switches(self.system)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        facts = {"run": self.run, "model_version": self.version, "complete": self.complete}
        return plain({**facts, "ingredients": self.ingredients})


def find_recipe(
    what: str,
    *,
    at: str = "",
    repo: Path | None = None,
    definitions: Path | None = None,
    tools: Tools | None = None,
    events: EventLog | None = None,
    allow: Iterable[str] = (),
) -> Recipe:
    """The recipe of the training that `what` names, or of the one that made what it names; see :func:`find_ref`.

        recipe = find_recipe("arrival_delay@champion", at="sqlite:////srv/mlflow.db")
        [i for i in recipe.ingredients if i.bucket != "accessible"]

    Args:
        what: The training run, the model that it made, or a prediction of that model.
        at: Tracking URI; default: the one in Dagster's event log, else ``MLFLOW_TRACKING_URI``.
        repo: Checkout of the code; default: the recorded one, else the working directory.
        definitions: File with the definitions, for a training whose definitions are outside of the checkout.
        tools: Tools to ask; default: the installed ones.
        events: Dagster's event log, which has addresses and fills gaps.
        allow: Further places at which tools may be asked; see :func:`trace`.

    Raises:
        NotFoundError: No training run of that name is found.
    """
    tools = tools or Tools(allow=allow)
    if repo:
        tools.places.add(str(repo.absolute()))
    start = find_ref(what, at=at, tools=tools, events=events)
    chain = trace(start, tools=tools, instance=events)
    version = chain.record if isinstance(chain.record, ModelVersion) else None
    runs = [link for link in chain.walk() if link.ref.role == TrainingRun.role]
    # A version without a record may be another model of its run than the one that the training returned.
    made_by_it = takewhile(lambda link: link.ref.role != TrainingRun.role, chain.walk())
    unknown = next((link for link in made_by_it if link.bucket == "unknown" and not _is_hashed(link.record)), None)
    if unknown or not runs or not isinstance(runs[0].record, TrainingRun):
        where = f"at {start.at}" if start.at else "anywhere: name the tracking URI with --at"
        reason = (unknown or chain).reason
        raise NotFoundError(f"{what!r} does not name a training run that is known {where}. {reason}")
    link, run = runs[0], runs[0].record
    versions = (record for record, _ in events.entries(ModelVersion)) if events else ()
    version_on_record = next((record for record in versions if record.run_id == run.run_id and record.sha256), None)
    version = version or version_on_record
    witness = _witness(run, events)
    try:
        stored, problem = tools.tool_for(link.ref, KeepsRuns).files(link.ref, CODE), ""
        files = {name: content for name, content in stored.items() if name in KEPT}
    except DagsterMlopsError as error:
        files, problem = {}, str(error)
    with raised_as(ProvenanceError, f"{CODE}/{STEP} of run {run.run_id} is damaged, not JSON", ValueError):
        step = json.loads(files.get(STEP, b"{}"))
    repository = find_repository(run, step, repo)
    is_callers = repository and not tools.places.refusal(Ref("git", "commit", run.code_commit, at=str(repository)))
    if is_callers:
        tools.places.add(str(repository))  # also for what else keeps files in this checkout
    inputs, rebuilds = _inputs(link, step, tools)
    # A checkout that only the record names has not been named to the reader, either.
    with nullcontext() if is_callers else runs_no_code_of_checkouts():
        tracked, unversioned = find_tracked(run, files, repository, tools)
        ingredients = [
            Ingredient("run", f"MLflow run {run.run_id[:12]}", link.bucket, link.reason),
            *([] if problem else _files(run, files, witness)),
            *code_ingredients(run, files, repository, problem),
            _environment(run, files, repository),
            _step(step, problem, definitions, is_committed=bool(run.code_commit)),
            *(Ingredient("config", name or "value", "inaccessible", _SECRET) for name in step.get(CONFIG_NOT_KEPT, ())),
            *inputs,
            *unversioned,
            _model(run, tools),
        ]
    return Recipe(
        run,
        version,
        link,
        files,
        repository,
        tuple(ingredients),
        rebuilds,
        tracked,
        definitions,
        witness,
        version_on_record.sha256 if version_on_record else "",
    )


def _witness(run: TrainingRun, events: EventLog | None) -> TrainingRun | None:
    """The run's record in Dagster's event log."""
    entry = events.find(run.ref) if events else None
    record = entry.record if entry else None
    return record if isinstance(record, TrainingRun) and record.run_id == run.run_id else None


def _environment(run: TrainingRun, files: Mapping[str, bytes], repository: Path | None) -> Ingredient:
    requirements = find_requirements(run, files, repository)
    if requirements:
        file, content = requirements
        name, has_uv = f"{file}, Python {run.python}", find_uv() is not None
        if not PYTHON.fullmatch(run.python):
            return Ingredient("environment", name, "faulty", f"{run.python!r} is not a version of Python.")
        # What the commit holds is code, which runs anyway.
        is_committed = content == committed(file, run, repository)
        if problem := "" if is_committed else requirements_problem(file, content):
            hint = "A run's file may only name packages by version. Commit a lock file, or use the current environment."
            return Ingredient("environment", name, "faulty", f"{problem}. {hint}")
        return Ingredient("environment", name, "accessible" if has_uv else "inaccessible", "" if has_uv else NO_UV)
    if run.lock_hash:
        reason = "neither the run nor the commit has the recorded lock file."
        return Ingredient("environment", f"lock file {run.lock_hash[:10]}", "deleted", reason)
    reason = f"there was no lock file, and the run has no file {CODE}/{PACKAGES}."
    return Ingredient("environment", "packages", "unknown", reason)


def _files(run: TrainingRun, files: Mapping[str, bytes], witness: TrainingRun | None) -> list[Ingredient]:
    """The run's own files, where they have changed since it was made or may have."""
    name = f"files in {CODE}/"
    if witness:
        for fact in _WITNESSED:
            recorded = getattr(witness, fact)
            if recorded != getattr(run, fact) and (recorded or fact != "files_hash"):
                reason = f"its {fact} in the tracker is not the one in Dagster's event log: someone has changed it."
                return [Ingredient("run", "record", "faulty", reason)]
    if not run.files_hash:
        return [Ingredient("run", name, "unknown", NOT_HASHED, needed=False)]
    if files_hash({name: sha256_of(content) for name, content in files.items()}) == run.files_hash:
        return []
    reason = "someone has changed, added or deleted one since the run: they do not have the recorded hash."
    return [Ingredient("run", name, "faulty", reason)]


def _step(step: Mapping[str, Any], problem: str, definitions: Path | None, *, is_committed: bool) -> Ingredient:
    if step:
        name = f"asset {step['asset']}{f' [{p}]' if (p := step['partition']) else ''}"
        if foreign := step_problem(step, definitions=definitions):
            hint = "" if is_committed else " Code outside of git has no checkout: commit it, and train again."
            return Ingredient("step", name, "faulty", foreign + hint)
        if step.get("location"):
            return Ingredient("step", name, "accessible")
        reason = "a script passed its assets to dg.materialize(…): the file or module that defines them is unknown."
        hint = "Run it by dagster asset materialize -f FILE or -m MODULE."
        return Ingredient("step", name, "unknown", f"{reason} {hint}")
    bucket, reason = ("inaccessible", problem) if problem else ("deleted", f"the run has no file {CODE}/{STEP}.")
    return Ingredient("step", "asset, config and inputs", bucket, reason)


def _model(run: TrainingRun, tools: Tools) -> Ingredient:
    """The recorded model, with which the new one is compared."""
    try:
        problem = tools.tool_for(run.ref, KeepsRuns).find_model(run.ref)
    except DagsterMlopsError as error:
        problem = Inaccessible(str(error))
    bucket, reason = (problem.bucket, problem.reason) if problem else ("accessible", "")
    return Ingredient("model", f"of run {run.run_id[:12]}", bucket, reason)


def _is_hashed(record: Record | None) -> bool:
    """True for a record of a model version that a training wrote; others have no hash of the model."""
    return not isinstance(record, ModelVersion) or bool(record.sha256)


def _inputs(run: Link, step: Mapping[str, Any], tools: Tools) -> tuple[list[Ingredient], dict[str, TrainingSet]]:
    """The data that the training read, and the training sets that have to be rebuilt, by asset.

    A training set whose dataset is there need not be rebuilt; one whose dataset is lost can be.
    """
    links: Sequence[Link] = [link for link in run.upstream if link.ref.role != "commit" and not link.ref.is_unknown]
    records = {link.ref: link.record for link in links if link.record}
    # The run's own copy of a record also counts if the tool no longer answers.
    records |= {record.ref: record for _, inputs in records_read(step) for record, _ in inputs}
    read = [(link.bucket == "accessible", records[link.ref]) for link in links if link.ref in records]
    stored = {record.dagster_asset for record in records.values() if isinstance(record, Dataset)}
    incomplete = {r.dagster_asset for accessible, r in read if isinstance(r, Dataset) and not accessible}
    rebuilds = {
        record.dagster_asset: record
        for accessible, record in read
        if accessible and isinstance(record, TrainingSet) and record.dagster_asset in incomplete
        if record.snapshot and not record.dagster_partition and tools.has(record.ref, RebuildsData)
    }
    ingredients = []
    for link in links:
        record, reason = records.get(link.ref), link.reason
        asset = record.dagster_asset if record else ""
        if features := link.ref.role == TrainingSet.role:
            needed = asset in rebuilds or asset not in stored
        else:
            needed = asset not in rebuilds or link.bucket == "accessible"
            reason += "" if needed else f"; {rebuilds[asset].ref.tool} rebuilds it"
        name = record.path if isinstance(record, Dataset) else link.ref.id
        ingredients.append(Ingredient("features" if features else "data", name, link.bucket, reason, needed))
    refs = {link.ref for link in links}
    for asset, inputs in records_read(step):
        for record, _ in inputs:
            place = _place(record)
            if place not in refs and asset not in rebuilds and (refusal := tools.places.refusal(place)):
                ingredients.append(Ingredient("data", place.id, refusal.bucket, refusal.reason))
    for read in step.get("reads", []):
        if read["loaded"] and not read["records"]:
            reason = "its IO manager keeps no versions: which one was read is unknown. Store it by one that does."
            ingredients.append(Ingredient("data", f"asset {read['asset']}", "unknown", reason))
        elif not read["records"]:
            reason = "nothing keeps a version of it: a rerun cannot tell whether it is the same."
            ingredients.append(Ingredient("data", f"asset {read['asset']}", "unknown", reason, needed=False))
    return ingredients, rebuilds


def _place(record: Record) -> Ref:
    """The ref of what a record describes, at the place where an IO manager of a rerun reads it: that of its facts."""
    return replace(record, of=None).ref if type(record).role else record.ref


def records_read(step: Mapping[str, Any]) -> list[tuple[str, list[tuple[Record, Mapping[str, Any]]]]]:
    """The assets that a step has read, with their records at that time, each with its stored form."""
    return [
        (read["asset"], [(Record.from_dict(stored), stored) for stored in read["records"]])
        for read in step.get("reads", [])
    ]
