"""Runs a training again: its code in a checkout of its own, its data, its environment; then compares."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from dagster_mlops.code_state import git
from dagster_mlops.errors import DagsterMlopsError, ReproductionError
from dagster_mlops.lineage.recipe import Recipe, find_lock
from dagster_mlops.lineage.tools import KeepsRuns, Tools
from dagster_mlops.lineage.verdict import Verdict, judge
from dagster_mlops.run_files import DIFF, MONITORING

Environment = Literal["new", "current"]
# A script's own folder would come first on its path, and modules in it before those of Python.
_SCRIPT = "import runpy, sys; del sys.path[0]; runpy.run_path(sys.argv[1], run_name='__main__')"
_INSTALL_TIMEOUT = 1800.0  # seconds: PyTorch with CUDA over a slow line


def rerun(
    recipe: Recipe,
    folder: Path,
    *,
    environment: Environment = "new",
    golden: Path | None = None,
    tolerance: float = 1e-9,
    timeout: float = 6 * 3600.0,
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
        tolerance: How far metrics and predictions may be apart, relative to their size.
        timeout: Seconds that the training may take.
        tell: Called with a line of progress.

    Raises:
        ReproductionError: something that is needed is not there, or the training fails now.
    """
    missing = [found for found in recipe.ingredients if found.needed and found.bucket != "accessible"]
    if missing:
        told = "; ".join(f"{found.kind} {found.name} is {found.bucket}: {found.reason}" for found in missing)
        raise ReproductionError(f"run {recipe.run.run_id} cannot be run again. {told}")
    tools = tools or Tools()
    keeper = tools.keeper(recipe.run.ref)
    tell(f"code: commit {recipe.run.code_commit[:10]}{' with uncommitted changes' if recipe.run.dirty else ''}")
    code = _checkout(recipe, folder / "code")
    tell(f"environment: {'the one at hand' if environment == 'current' else 'installing the lock file of then'}")
    python = Path(sys.executable) if environment == "current" else _install(recipe, folder / "venv", code)
    files = _make_again(recipe, folder / "data", tools, tell)
    model = keeper.fetch_model(recipe.run.ref, folder / "model")
    scratch = folder / "dagster"
    scratch.mkdir()
    task = {
        "run_id": recipe.run.run_id,
        "step": recipe.step,
        "seeds": _seeds(recipe),
        "files": files,
        "scratch": str(scratch),
        "model": str(model),
        "golden": str(golden.absolute() if golden else _reference(recipe, keeper, folder)),
    }
    tell(f"training: {recipe.step['asset']}")
    found = _run(python, keeper.rerun, task, code, recipe.system.get("environment", {}), timeout, tell)
    return judge(recipe, found, tolerance=tolerance, environment=environment)


def _checkout(recipe: Recipe, folder: Path) -> Path:
    """The code of then in a clone: whatever happens here, the user's repository stays as it is."""
    assert recipe.repository is not None  # the recipe is complete
    done = git(recipe.repository, "clone", "--quiet", "--shared", "--no-checkout", ".", str(folder))
    if done.returncode == 0:
        done = git(folder, "checkout", "--quiet", "--detach", recipe.run.code_commit)
    if done.returncode == 0 and recipe.run.dirty:
        done = git(folder, "apply", "-", stdin=recipe.files[DIFF])
    if done.returncode:
        raise ReproductionError(
            f"the code of then cannot be checked out: {done.stderr.decode(errors='replace').strip()}"
        )
    return folder


def _install(recipe: Recipe, folder: Path, code: Path) -> Path:
    """A new environment from the lock file of then, and its Python."""
    lock = find_lock(recipe.run, recipe.files, recipe.repository)
    assert lock is not None  # the recipe is complete
    name, content = lock
    file = folder.parent / name
    file.write_bytes(content)
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        raise ReproductionError("the environment of then is installed by uv, which is not here. Run: pip install uv")
    python = folder / "bin" / "python"
    commands = [[uv, "venv", "--quiet", "--python", recipe.run.python, str(folder)]]
    if name == "uv.lock":
        (code / name).write_bytes(content)
        commands.append([uv, "sync", "--quiet", "--frozen", "--all-extras", "--project", str(code)])
    elif name == "poetry.lock":
        raise ReproductionError("poetry.lock cannot be installed here. Take the environment at hand instead.")
    else:
        commands.append([uv, "pip", "sync", "--quiet", "--python", str(python), str(file)])
        if (code / "pyproject.toml").exists():
            commands.append(
                [uv, "pip", "install", "--quiet", "--no-deps", "--python", str(python), "--editable", str(code)]
            )
    for command in commands:
        try:
            done = subprocess.run(
                command,
                cwd=code,
                env={**_ambient(), "UV_PROJECT_ENVIRONMENT": str(folder)},
                capture_output=True,
                text=True,
                timeout=_INSTALL_TIMEOUT,
            )
        except subprocess.TimeoutExpired as late:
            raise ReproductionError(
                f"the environment of then was not installed from {name} in {_INSTALL_TIMEOUT:.0f} s."
            ) from late
        if done.returncode:
            raise ReproductionError(
                f"the environment of then cannot be installed from {name}: {done.stderr.strip()[-1500:]}"
            )
    return python


def _ambient() -> dict[str, str]:
    """This process's environment without what ties it to its own Python."""
    return {
        name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")
    }


def _make_again(recipe: Recipe, folder: Path, tools: Tools, tell: Callable[[str], None]) -> dict[str, str]:
    """Parquet files, by asset, of the training sets whose datasets are lost."""
    files = {}
    for number, (asset, record) in enumerate(recipe.again.items()):
        tell(f"data: {record.ref.tool} makes {asset} again, {record.ref.id}")
        maker = tools.maker(record.ref)
        assert maker is not None  # the recipe is complete
        try:
            files[asset] = str(maker.make_again(record.ref, folder / str(number)))
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
    for record in recipe.inputs:
        key = record.dagster_asset, record.dagster_partition
        seed = seeds.setdefault(key, {"asset": key[0], "partition": key[1], "metadata": {}})
        seed["metadata"][f"dagster_mlops/{record.kind}"] = record.to_dict()
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
    environment = {**_ambient(), **switches, "DAGSTER_HOME": task["scratch"], "PYTHONDONTWRITEBYTECODE": "1"}
    messages: deque[str] = deque(maxlen=15)
    with subprocess.Popen(
        [str(python), "-W", "ignore", "-c", _SCRIPT, str(script)],
        cwd=code,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdin and process.stdout
        watch = threading.Timer(timeout, process.kill)
        watch.start()
        try:
            process.stdin.write(json.dumps(task))
            process.stdin.close()
            for line in process.stdout:
                messages.append(line.rstrip())
                tell(line.rstrip())
            ended = process.wait()
        except BaseException:
            process.kill()
            raise
        finally:
            watch.cancel()
    if ended:
        late = f" It was ended after {timeout:.0f} s." if ended < 0 else ""
        tail = "\n".join(messages)
        raise ReproductionError(f"the training fails when it is run again (exit code {ended}).{late}\n{tail}")
    return json.loads(Path(task["scratch"], "found.json").read_text())
