"""What it takes to run a training again, and how much of it is still there."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dagster_mlops.core.run_files import CODE, STEP, SYSTEM
from dagster_mlops.errors import DagsterMlopsError, NotFoundError, ProvenanceError
from dagster_mlops.lineage.chain.event_log import EventLog
from dagster_mlops.lineage.chain.tools import Tools
from dagster_mlops.lineage.chain.walk import Link, trace
from dagster_mlops.lineage.reproduction.environment import Environment, find_requirements
from dagster_mlops.lineage.reproduction.ingredients import Ingredient, code_ingredients, find_repository
from dagster_mlops.provenance import (
    Dataset,
    ModelVersion,
    Record,
    Ref,
    TrainingRun,
    TrainingSet,
)
from dagster_mlops.tools import KeepsRuns, RebuildsData

_RUN_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Recipe:
    """A training run, what is known of how it came about, and what of it is still there.

    `files` are those that the run keeps below ``code/``, `repository` is the checkout that has its commit, if any,
    `chain` everything that it was made from, and `again` the training sets, by asset, whose dataset is lost and which
    can be made again.
    """

    run: TrainingRun
    version: ModelVersion | None
    chain: Link
    files: Mapping[str, bytes] = field(repr=False)
    repository: Path | None
    ingredients: tuple[Ingredient, ...]
    again: Mapping[str, TrainingSet] = field(default_factory=dict)

    @property
    def missing(self) -> list[Ingredient]:
        """What it takes and is not accessible."""
        return [found for found in self.ingredients if found.needed and found.bucket != "accessible"]

    @property
    def complete(self) -> bool:
        """Whether all that it takes is accessible."""
        return not self.missing

    def in_environment(self, environment: Environment) -> "Recipe":
        """The same, to be run in this environment: the current one takes no lock file."""
        if environment == "new":
            return self
        found = [replace(one, needed=one.needed and one.kind != "environment") for one in self.ingredients]
        return replace(self, ingredients=tuple(found))

    @property
    def step(self) -> dict[str, Any]:
        """The step as the run kept it; empty for a run that kept none."""
        return json.loads(self.files.get(STEP, b"{}"))

    @property
    def system(self) -> dict[str, Any]:
        """The machine as the run kept it."""
        return json.loads(self.files.get(SYSTEM, b"{}"))

    @property
    def inputs(self) -> list[Record]:
        """The records of the assets that the training read, as they were then."""
        kept = [record for _, records in records_read(self.step) for record, _ in records]
        return kept or [link.record for link in self.chain.upstream if link.record]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "run": self.run.to_dict(),
            "model_version": self.version.to_dict() if self.version else None,
            "complete": self.complete,
            "ingredients": [vars(ingredient) for ingredient in self.ingredients],
        }


def find_recipe(
    what: str, *, at: str = "", repo: Path | None = None, tools: Tools | None = None, events: EventLog | None = None
) -> Recipe:
    """What it takes to run the training again that `what` names: a run id, ``model/version`` or ``model@alias``.

        recipe = find_recipe("arrival_delay@champion", at="sqlite:////srv/mlflow.db")
        [i for i in recipe.ingredients if i.bucket != "accessible"]

    Args:
        what: The training run, or the model that it made.
        at: The tracking URI; else where Dagster's event log knows the thing, else ``MLFLOW_TRACKING_URI``.
        repo: A checkout of the code; else the one that the run was started from.
        tools: The tools to ask; all that are installed unless given.
        events: Dagster's event log, which knows where things are and fills gaps.

    Raises:
        NotFoundError: no training run is known by that name.
    """
    tools = tools or Tools()
    start = _ref(what, at, events)
    chain = trace(start, tools=tools, instance=events)
    version = chain.record if isinstance(chain.record, ModelVersion) else None
    runs = [link for link in chain.walk() if link.ref.role == TrainingRun.role]
    if not runs or not isinstance(runs[0].record, TrainingRun):
        where = f"at {start.at}" if start.at else "anywhere: name the tracking URI with --at, or set DAGSTER_HOME"
        raise NotFoundError(f"{what!r} names no training run that is known {where}. {chain.reason}")
    link, run = runs[0], runs[0].record
    try:
        files, lost = tools.tool_for(link.ref, KeepsRuns).files(link.ref, CODE), ""
    except DagsterMlopsError as error:
        files, lost = {}, str(error)
    try:
        step = json.loads(files.get(STEP, b"{}"))
    except ValueError as error:
        raise ProvenanceError(f"{CODE}/{STEP} of run {run.run_id} is damaged, it is no JSON: {error}") from error
    repository = find_repository(run, step, repo)
    inputs, again = _inputs(link, step, tools)
    ingredients = [
        Ingredient("run", f"MLflow run {run.run_id[:12]}", link.bucket, link.reason),
        *code_ingredients(run, files, repository, lost),
        _environment(run, files, repository),
        _step(step, lost),
        *_config(step),
        *inputs,
        _model(run, tools),
    ]
    return Recipe(run, version, link, files, repository, tuple(ingredients), again)


def _ref(what: str, at: str, events: EventLog | None) -> Ref:
    """Where to begin, and where it is kept."""
    tool, _, rest = what.partition(":")
    if tool == "mlflow" and ":" in rest:
        kind, _, identifier = rest.partition(":")
    else:
        kind, identifier = (TrainingRun.role if _RUN_ID.fullmatch(what) else ModelVersion.role), what
    if kind == ModelVersion.role and not re.fullmatch(r".+[/@][^/@]+", identifier):
        raise NotFoundError(f"{what!r} names no training: give a run id, MODEL/VERSION or MODEL@ALIAS.")
    return Ref("mlflow", kind, identifier, at=at or _address(kind, identifier, events))


def _address(kind: str, identifier: str, events: EventLog | None) -> str:
    if events:
        if found := events.find(Ref("mlflow", kind, identifier)):
            return found.record.ref.at
        name = re.split(r"[/@]", identifier)[0]
        for record, _ in events.entries(ModelVersion):
            if record.name == name:
                return record.tracking_uri
    return os.environ.get("MLFLOW_TRACKING_URI", "")


def _environment(run: TrainingRun, files: Mapping[str, bytes], repository: Path | None) -> Ingredient:
    found = find_requirements(run, files, repository)
    if found is None:
        name = f"lock file {run.lock_hash[:10]}" if run.lock_hash else "packages"
        where = "neither the run nor the commit has" if run.lock_hash else "no lock file was there, and the run lacks"
        return Ingredient("environment", name, "deleted", f"{where} what was installed then any more.")
    return Ingredient("environment", f"{found[0]}, Python {run.python}", "accessible")


def _step(step: Mapping[str, Any], lost: str) -> Ingredient:
    if step:
        name = f"asset {step['asset']}{f' [{p}]' if (p := step['partition']) else ''}"
        if step.get("location"):
            return Ingredient("step", name, "accessible")
        reason = "a script handed its assets to dg.materialize(…): no file or module is known that defines them."
        how = "Run it by dagster asset materialize -f FILE or -m MODULE."
        return Ingredient("step", name, "deleted", f"{reason} {how}")
    if lost:
        return Ingredient("step", "asset, config and inputs", "inaccessible", lost)
    return Ingredient(
        "step", "asset, config and inputs", "deleted", f"the run has no file {CODE}/{STEP}: an older version made it."
    )


def _model(run: TrainingRun, tools: Tools) -> Ingredient:
    """What the new model is compared with."""
    name = f"of run {run.run_id[:12]}"
    try:
        lost = tools.tool_for(run.ref, KeepsRuns).find_model(run.ref)
    except DagsterMlopsError as error:
        return Ingredient("model", name, "inaccessible", str(error))
    return Ingredient("model", name, lost.bucket, lost.reason) if lost else Ingredient("model", name, "accessible")


def _config(step: Mapping[str, Any]) -> list[Ingredient]:
    """The values of the step's config that held a credential, which the run has not kept."""
    reason = 'a run keeps no secrets. Give them as environment variables, {"env": "NAME"}, which it keeps by name.'
    return [Ingredient("config", name or "value", "inaccessible", reason) for name in step.get("secrets", ())]


def _inputs(run: Link, step: Mapping[str, Any], tools: Tools) -> tuple[list[Ingredient], dict[str, TrainingSet]]:
    """The data that the training read, and what of it has to be made again, by asset.

    A training set need not be made again when a dataset holds it; one whose dataset is lost can be.
    """
    kept = [record for _, records in records_read(step) for record, _ in records]
    links: Sequence[Link] = [link for link in run.upstream if link.ref.role != "commit"]
    # What the run has kept counts also where a tool cannot be asked any more.
    known = {**{link.ref: link.record for link in links if link.record}, **{record.ref: record for record in kept}}
    stored = {record.dagster_asset for record in known.values() if isinstance(record, Dataset)}
    lost = {
        record.dagster_asset
        for link in links
        if link.bucket != "accessible" and isinstance(record := known.get(link.ref), Dataset)
    }
    again = {
        record.dagster_asset: record
        for link in links
        if link.bucket == "accessible"
        and isinstance(record := known.get(link.ref), TrainingSet)
        and record.dagster_asset in lost
        and record.snapshot
        and not record.dagster_partition
        and tools.has(record.ref, RebuildsData)
    }
    found = []
    for link in links:
        record, reason = known.get(link.ref), link.reason
        asset = record.dagster_asset if record else ""
        if features := link.ref.role == TrainingSet.role:
            needed = asset in again or asset not in stored
        else:
            needed = asset not in again or link.bucket == "accessible"
            reason += "" if needed else f"; {again[asset].ref.tool} makes it again"
        name = record.path if isinstance(record, Dataset) else link.ref.id
        found.append(Ingredient("features" if features else "data", name, link.bucket, reason, needed))
    for read in step.get("reads", []):
        if read["loaded"] and not read["records"]:
            reason = "its IO manager keeps no versions, so what it held then is not known. Store it with the DVC one"
            found.append(Ingredient("data", f"asset {read['asset']}", "deleted", reason))
    return found, again


def records_read(step: Mapping[str, Any]) -> list[tuple[str, list[tuple[Record, Mapping[str, Any]]]]]:
    """The assets that a step has read, and the records of what was read, each with its stored form."""
    return [
        (read["asset"], [(Record.from_dict(stored), stored) for stored in read["records"]])
        for read in step.get("reads", [])
    ]
