"""Runs a training again: its code in a checkout of its own, its data, its environment; then compares."""

import sys
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dagster_mlops.core.child import ChildError, run_child
from dagster_mlops.core.run_files import DIFF, MONITORING, REPRODUCES_TAG, TRIAL, TRIAL_TAG
from dagster_mlops.errors import DagsterMlopsError, ReproductionError
from dagster_mlops.lineage.chain.tools import Tools
from dagster_mlops.lineage.reproduction.checkout import check_out
from dagster_mlops.lineage.reproduction.environment import Environment, ambient, find_requirements, install
from dagster_mlops.lineage.reproduction.recipe import Recipe, records_read
from dagster_mlops.lineage.reproduction.verdict import Verdict, judge
from dagster_mlops.tools import KeepsRuns, RebuildsData

TIMEOUT = 6 * 3600.0  # seconds


def rerun(
    recipe: Recipe,
    folder: Path,
    *,
    environment: Environment = "new",
    golden: Path | None = None,
    tolerance: float = 1e-9,
    timeout: float = TIMEOUT,
    tools: Tools | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Verdict:
    """Run the training of `recipe` again below `folder`, which is empty, and compare what comes out.

    The code is cloned at its commit, with what was uncommitted; the data are read back by the IO managers of the code
    itself, at the versions of then; MLflow's run of now goes into a database in `folder`. Nothing that exists changes.

    Args:
        environment: ``new`` installs the lock file of then into an environment of its own; ``current`` takes this one.
        golden: A Parquet file of model inputs to compare predictions on; else the reference distribution that the run
            keeps, or the input example that the model has.
        tolerance: How far metrics and predictions may be apart, relative to their size (of predictions: the largest).
        timeout: Seconds that the training may take.
        tell: Called with a line of progress.

    Raises:
        ReproductionError: something that is needed is not there, or the training fails now.
    """
    if golden and not golden.is_file():
        raise ReproductionError(f"there is no file {golden} to compare predictions on.")
    recipe = recipe.in_environment(environment)
    if not recipe.complete:
        told = "; ".join(f"{one.kind} {one.name} is {one.bucket}: {one.reason}" for one in recipe.missing)
        raise ReproductionError(f"run {recipe.run.run_id} cannot be run again. {told}")
    tools = tools or Tools()
    keeper = tools.tool_for(recipe.run.ref, KeepsRuns)
    tell(f"code: commit {recipe.run.code_commit[:10]}{' with uncommitted changes' if recipe.run.dirty else ''}")
    code = _checkout(recipe, folder / "code")
    python = Path(sys.executable) if environment == "current" else _environment(recipe, folder / "venv", code, tell)
    files = _make_again(recipe, folder / "data", tools, tell)
    model = keeper.fetch_model(recipe.run.ref, folder / "model")
    scratch = folder / "dagster"
    scratch.mkdir()
    task = {
        "run_id": recipe.run.run_id,
        "step": recipe.step,
        "seeds": _seeds(recipe),
        "files": files,
        "tags": {
            REPRODUCES_TAG: recipe.run.run_id,
            **({TRIAL_TAG: recipe.files[TRIAL].decode()} if TRIAL in recipe.files else {}),
        },
        "scratch": str(scratch),
        "model": str(model),
        "golden": str(golden.absolute() if golden else _reference(recipe, keeper, folder)),
    }
    tell(f"training: {recipe.step['asset']}")
    found = _run(python, keeper.rerun, task, code, recipe.system.get("environment", {}), timeout, tell)
    return judge(recipe, found, tolerance=tolerance, environment=environment)


def _checkout(recipe: Recipe, folder: Path) -> Path:
    """The code of then in a clone."""
    assert recipe.repository is not None  # the recipe is complete
    diff = recipe.files[DIFF] if recipe.run.dirty else b""
    submodules = recipe.step["code"].get("submodules", {})
    check_out(recipe.repository, recipe.run.code_commit, folder, submodules=submodules, diff=diff)
    return folder


def _environment(recipe: Recipe, folder: Path, code: Path, tell: Callable[[str], None]) -> Path:
    """A new environment as it was then, and its Python."""
    found = find_requirements(recipe.run, recipe.files, recipe.repository)
    assert found is not None  # the recipe is complete
    name, content = found
    tell(f"environment: installing {name} of then, Python {recipe.run.python}")
    return install(name, content, python=recipe.run.python, folder=folder, code=code)


def _make_again(recipe: Recipe, folder: Path, tools: Tools, tell: Callable[[str], None]) -> dict[str, str]:
    """Parquet files, by asset, of the training sets whose datasets are lost."""
    files = {}
    for number, (asset, record) in enumerate(recipe.again.items()):
        tell(f"data: {record.ref.tool} makes {asset} again, {record.ref.id}")
        try:
            files[asset] = str(tools.tool_for(record.ref, RebuildsData).rebuild(record.ref, folder / str(number)))
        except DagsterMlopsError as error:
            raise ReproductionError(f"the data of {asset} are lost, and cannot be made again: {error}") from error
    return files


def _reference(recipe: Recipe, keeper: KeepsRuns, folder: Path) -> Path | str:
    """The rows that the run keeps as the reference of its model: thousands, where an input example has a few."""
    kept = keeper.files(recipe.run.ref, MONITORING)
    for name in sorted(kept):
        if name.startswith("reference") and name.endswith(".parquet"):
            file = folder / name
            file.write_bytes(kept[name])
            return file
    return ""


def _seeds(recipe: Recipe) -> list[dict[str, Any]]:
    """What Dagster has to know for IO managers to load the versions of then: the newest materializations of then."""
    seeds: dict[tuple[str, str], dict[str, Any]] = {}
    for asset, records in records_read(recipe.step):
        for record, stored in records:
            # What is only observed here was made as another asset, elsewhere.
            partition = record.dagster_partition if record.dagster_asset == asset else ""
            seed = seeds.setdefault((asset, partition), {"asset": asset, "partition": partition, "metadata": {}})
            # As it was stored, and under its name of that time: the library that reads it may be as old.
            seed["metadata"][f"dagster_mlops/{stored.get('kind') or record.role}"] = stored
    return list(seeds.values())


def _run(
    python: Path,
    script: Path,
    task: Mapping[str, Any],
    code: Path,
    switches: Mapping[str, str],
    timeout: float,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """What the script has found; its messages are told as they come."""
    environment = {**ambient(), **switches, "DAGSTER_HOME": task["scratch"], "PYTHONDONTWRITEBYTECODE": "1"}
    messages: deque[str] = deque(maxlen=15)

    def show(lines: list[str]) -> None:
        messages.extend(lines)
        for line in lines:
            tell(line)

    try:
        return run_child(script, task, cwd=code, env=environment, python=str(python), output=show, timeout=timeout)
    except ChildError as failure:
        limit = f" It took longer than {timeout:.0f} s." if failure.returncode is None else ""
        tail = "\n".join(messages)
        raise ReproductionError(f"the training fails when it is run again ({failure.how}).{limit}\n{tail}") from failure
