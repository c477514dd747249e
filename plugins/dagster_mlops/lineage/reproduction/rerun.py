"""Runs a training again, with its recorded code, data and environment, and compares the result."""

import json
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dagster_mlops.core.child import ChildError, run_child
from dagster_mlops.core.failures import raised_as
from dagster_mlops.core.model_digest import changed, model_digest
from dagster_mlops.core.model_judgement import judge_model
from dagster_mlops.core.run_files import DIFF, MONITORING, REPRODUCES_TAG, TRIAL, TRIAL_TAG
from dagster_mlops.errors import DagsterMlopsError, ModelVersionError, ReproductionError
from dagster_mlops.lineage.chain.sources import Tools
from dagster_mlops.lineage.reproduction.code import check_out
from dagster_mlops.lineage.reproduction.comparison import EXACT, Verdict, judge
from dagster_mlops.lineage.reproduction.environment import (
    Environment,
    child_variables,
    find_requirements,
    install,
    names_not_passed,
)
from dagster_mlops.lineage.reproduction.recipe import Recipe, records_read
from dagster_mlops.lineage.reproduction.tracked import restore_tracked
from dagster_mlops.lineage.reproduction.whose import refuse_unknown_code, whose_code, whose_packages
from dagster_mlops.tools import KeepsRuns, RebuildsData, datasets_only_where

TIMEOUT = 6 * 3600.0  # seconds
# No tool must write bytecode into the checkout, or connect to its maker, which would look like an input.
_QUIET = {"PYTHONDONTWRITEBYTECODE": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "DVC_NO_ANALYTICS": "1"}
_PASSED = (
    "It sees no environment variables but those of the machine. Name the others that it needs: --env NAME, or "
    "variables=[…] of the asset. It runs in a clone of the code: a relative path of a resource leads into the clone, "
    "which has only what git has."
)
_ANSWER_TIMEOUT = 1800.0  # seconds: a large model on thousands of rows
_ANSWERS = "_answers_script.py"  # beside a tracker's script of reruns


def rerun(
    recipe: Recipe,
    folder: Path,
    *,
    environment: Environment = "new",
    golden: Path | None = None,
    tolerance: float = EXACT,
    timeout: float = TIMEOUT,
    variables: Sequence[str] = (),
    branches: Sequence[str] | None = None,
    consent: bool = False,
    tools: Tools | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Verdict:
    """Run the training of `recipe` again below `folder`, which is empty, and compare the results.

    The code is cloned at its commit, with its uncommitted changes; the IO managers of that code read the recorded
    versions of the data; the new MLflow run goes into a database in `folder`. Nothing outside `folder` changes.

    Args:
        environment: ``new`` installs the recorded lock file into a new environment; ``current`` uses this one.
        golden: Parquet file of model inputs to compare predictions on; default: the reference distribution that the
            run keeps, or the model's input example.
        tolerance: Largest difference of metrics and predictions, relative to their size (of predictions: the largest).
        timeout: Time limit of the training in seconds.
        variables: Names of environment variables that the training may see, or patterns such as ``AWS_*``, beside
            those of the machine (`PATH`, `HOME`, `LANG`, proxies) and the recorded ones that change results.
        branches: Patterns of branches, one of which must have the commit: then nothing uncommitted runs either, no run
            that is not in Dagster's event log, and no model that is neither on record there nor data.
        consent: True to run uncommitted changes, and to install packages that neither the checkout's lock file nor
            this environment has, though the run is not in Dagster's event log: only the tracker says so.
        tell: Called with each line of progress, first with those that say whose code and packages will run.

    Raises:
        ReproductionError: A needed ingredient is missing, or the training fails.
    """
    if not 0 <= tolerance < 1:  # at 1, any two numbers of one sign would be the same; NaN fails, too
        raise ReproductionError(f"a tolerance of {tolerance} compares nothing. Give a share below 1, such as 1e-6.")
    if golden and not golden.is_file():
        raise ReproductionError(f"there is no file {golden} to compare predictions on.")
    recipe = recipe.in_environment(environment)
    if not recipe.complete:
        problems = "; ".join(f"{part.kind} {part.name} is {part.bucket}: {part.reason}" for part in recipe.missing)
        raise ReproductionError(f"run {recipe.run.run_id} cannot be run again. {problems}")
    sources = (recipe.run.ref, *recipe.tracked.values(), *(record.ref for record in recipe.rebuilds.values()))
    tools = tools or Tools(allow=[ref.at for ref in sources])  # all of which were asked for the recipe
    tracker = tools.tool_for(recipe.run.ref, KeepsRuns)
    assert recipe.repository is not None  # the recipe is complete
    if branches is not None:
        refuse_unknown_code(recipe, recipe.repository, branches)
    for line in whose_code(recipe, recipe.repository, consent=consent):
        tell(line)
    requirements = None
    if environment == "new":
        requirements = find_requirements(recipe.run, recipe.files, recipe.repository)
        assert requirements is not None  # the recipe is complete
        for line in whose_packages(recipe, *requirements, consent=consent):
            tell(line)
    model = tracker.fetch_model(recipe.run.ref, folder / "model")
    for sha256 in (recipe.version.sha256 if recipe.version else "", recipe.witness_sha256):
        if problem := changed(model_digest(model), sha256):
            raise ReproductionError(problem)
    if branches is not None and not recipe.witness_sha256:
        with raised_as(ReproductionError, "its model has no hash in Dagster's event log", ModelVersionError):
            judge_model(f"of run {recipe.run.run_id}", model, expected=(), allow_pickle=False)
    if golden and (problem := _unlike_inputs(golden, model)):
        raise ReproductionError(problem)
    code, diff = folder / "code", recipe.files[DIFF] if recipe.run.dirty else b""
    submodules = recipe.step["code"].get("submodules", {})
    check_out(recipe.repository, recipe.run.code_commit, code, submodules=submodules, diff=diff)
    python = Path(sys.executable)
    if requirements:
        name, content = requirements
        tell(f"environment: installing the recorded {name}, Python {recipe.run.python}")
        python = install(name, content, python=recipe.run.python, folder=folder / "venv", code=code)
    restore_tracked(recipe.tracked, code, tools)
    files = _rebuild(recipe, folder / "data", tools, tell)
    scratch = folder / "dagster"
    scratch.mkdir()
    trial = {TRIAL_TAG: recipe.files[TRIAL].decode()} if TRIAL in recipe.files else {}
    task = {
        "run_id": recipe.run.run_id,
        "step": recipe.step,
        "seeds": _seeds(recipe),
        "files": files,
        "tags": {REPRODUCES_TAG: recipe.run.run_id, **trial},
        "scratch": str(scratch),
        "model": str(model),
        "golden": str(golden.absolute() if golden else _reference(recipe, tracker, folder)),
        "golden_name": "--golden" if golden else "the run's reference",
    }
    tell(f"training: {recipe.step['asset']}")
    if unseen := names_not_passed(recipe.reads.get("variables", {}), variables):
        tell(f"environment variables that the recorded run read, and this one does not see: {', '.join(unseen)}")
    env = {**child_variables(variables), **recipe.switches, "DAGSTER_HOME": str(scratch), **_QUIET}
    options: dict[str, Any] = {"cwd": code, "env": env, "python": str(python)}
    result = _answer(tracker.rerun, task, tell, timeout=timeout, **options)
    if "rerun" in (models := result.get("models") or {}):
        tell("comparison: each model answers in a process of its own")
        result["models"] = _compare_models(tracker.rerun, task, models, tolerance, tell, **options)
    hidden_variables = names_not_passed(result.get("absent", ()), variables)
    return judge(recipe, {**result, "hidden": hidden_variables}, tolerance=tolerance, environment=environment)


def _compare_models(
    script: Path,
    task: Mapping[str, Any],
    models: Mapping[str, Any],
    tolerance: float,
    tell: Callable[[str], None],
    **options: Any,
) -> dict[str, Any]:
    """The differences of the recorded and the new model, on the first rows that both of them take."""
    problem = models.get("problem", "no rows to compare on: name some with --golden")
    saved = [str(Path(task["scratch"], f"{name}.pickle")) for name in ("recorded", "rerun", "again")]

    def ask(model: str, rows: str, *, save: str, other: str = "") -> dict[str, Any]:
        request = {"script": _ANSWERS, "step": task["step"], "model": model, "rows": rows, "save": save, "other": other}
        return run_child(script, {**request, "tolerance": tolerance}, timeout=_ANSWER_TIMEOUT, **options)

    def differs(facts: Mapping[str, Any]) -> bool:
        return bool(facts["largest_difference"] is None or facts["largest_difference"] > tolerance or facts["others"])

    for source, rows in models.get("rows_files", ()):
        try:
            recorded = ask(task["model"], rows, save=saved[0])
            facts = ask(models["rerun"], rows, save=saved[1], other=saved[0])
            # A model whose answers are drawn anew at each call differs from itself, too.
            is_drawn = differs(facts) and differs(ask(task["model"], rows, save=saved[2], other=saved[0]))
        except ChildError as error:  # a model may raise anything: then nothing was compared
            problem = error.reason[:500]
            tell(f"on rows of {source}, the models cannot be compared: {problem}")
        else:
            reads = [
                part for facts in (recorded, facts) for part in (facts["reads"]["files"], facts["reads"]["addresses"])
            ]
            outside = list(dict.fromkeys(name for names in reads for name in names))
            return {**models, **facts, "drawn": is_drawn, "outside": outside, "rows_from": source, "problem": ""}
    return {**models, "problem": problem}


def _unlike_inputs(golden: Path, model: Path) -> str:
    """The reason why the rows in a file are not inputs of a model, by its signature; empty for those that may be."""
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.read_metadata(golden)
    except (OSError, ValueError) as error:
        return f"{golden} cannot be read as a Parquet file: {error}"
    signature = yaml.safe_load((model / "MLmodel").read_text()).get("signature") or {}
    columns = json.loads(signature.get("inputs") or "[]")
    required = [column["name"] for column in columns if "name" in column and column.get("required", True)]
    if missing := sorted(set(required) - set(file.schema.to_arrow_schema().names)):
        return f"{golden} has no column {', '.join(missing[:5])}, which the model takes."
    return "" if file.num_rows else f"{golden} has no rows."


def _rebuild(recipe: Recipe, folder: Path, tools: Tools, tell: Callable[[str], None]) -> dict[str, str]:
    """Parquet files of the training sets whose datasets are lost, by asset."""
    files = {}
    for number, (asset, record) in enumerate(recipe.rebuilds.items()):
        tell(f"data: {record.ref.tool} rebuilds {asset}, {record.ref.id}")
        tool = tools.tool_for(record.ref, RebuildsData)
        problem = f"the data of {asset} are lost, and cannot be rebuilt"
        with raised_as(ReproductionError, problem, DagsterMlopsError), datasets_only_where(tools.places.refusal):
            files[asset] = str(tool.rebuild(record.ref, folder / str(number)))
    return files


def _reference(recipe: Recipe, tracker: KeepsRuns, folder: Path) -> Path | str:
    """The reference distribution that the run keeps: thousands of rows, while an input example has a few."""
    for name, content in sorted(tracker.files(recipe.run.ref, MONITORING).items()):
        if name.startswith("reference") and name.endswith(".parquet"):
            file = folder / name
            file.write_bytes(content)
            return file
    return ""


def _seeds(recipe: Recipe) -> list[dict[str, Any]]:
    """The materializations by which IO managers load the recorded versions."""
    seeds: dict[tuple[str, str], dict[str, Any]] = {}
    for asset, records in records_read(recipe.step):
        for record, stored in records:
            # An observed asset has a record that another asset made, elsewhere.
            partition = record.dagster_partition if record.dagster_asset == asset else ""
            seed = seeds.setdefault((asset, partition), {"asset": asset, "partition": partition, "metadata": {}})
            # In its stored form, under its name of that time: the library that reads it may be as old.
            seed["metadata"][f"dagster_mlops/{stored.get('kind') or record.role}"] = stored
    return list(seeds.values())


def _answer(
    script: Path, task: Mapping[str, Any], tell: Callable[[str], None], *, timeout: float, **options: Any
) -> dict[str, Any]:
    """The answer of the script; its output is passed on as it comes."""
    messages: deque[str] = deque(maxlen=15)

    def show(lines: list[str]) -> None:
        messages.extend(lines)
        for line in lines:
            tell(line)

    try:
        return run_child(script, task, output=show, timeout=timeout, **options)
    except ChildError as error:
        limit = f" It took longer than {timeout:.0f} s." if error.returncode is None else ""
        tail = "\n".join(messages)
        text = f"the training fails when it is run again ({error.how}).{limit}\n{tail}\n{_PASSED}"
        raise ReproductionError(text) from error
