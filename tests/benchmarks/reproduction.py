"""The reference champion run again six months later, and with each of its ingredients broken in turn.

The demo runs once, with an uncommitted change in its code. Then caches, the Dagster instance and the Feast registry are
deleted: the DVC remote, the git history and the tracking store are left.
"""

import json
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import ROOT, console, environment, show

CHAMPION = "arrival_delay/1"


class World:
    """A clean clone of the repository, and the state that the demo has left."""

    def __init__(self, folder: Path) -> None:
        self.code, self.state = folder / "code", folder / "state"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(self.code)], check=True)
        training = self.code / "assets" / "training.py"
        training.write_text(training.read_text() + "\n# not committed\n")
        (self.state / "dagster").mkdir(parents=True)
        shutil.copy(self.code / "resources" / "dagster.yaml", self.state / "dagster")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        paths = {"PYTHONPATH": str(self.code / "plugins"), "DAGSTER_MLOPS_PORT": str(port)}
        self.env = environment(self.state, **paths)
        self.database = self.state / "mlflow" / "mlflow.db"

    def demo(self) -> None:
        """The whole lifecycle; the deployment that it leaves is stopped."""
        with (self.state / "demo.log").open("w") as log:
            for module in (["assets.demo"], ["dagster_mlops.cli", "serving", "stop", str(self.state / "serving")]):
                command = [sys.executable, "-m", *module]
                done = subprocess.run(command, cwd=self.code, env=self.env, stdout=log, stderr=log, check=False)
                if done.returncode:
                    raise SystemExit(f"{module[0]} failed:\n{Path(log.name).read_text()[-3000:]}")

    def age(self) -> None:
        """Six months later."""
        history, data = self.state / "history", self.state / "data"
        subprocess.run(["git", "clone", "--quiet", "--mirror", str(data), str(history)], check=True)
        for name in ("dagster", "data", "feast", "serving", "bentoml", "reports"):
            shutil.rmtree(self.state / name, ignore_errors=True)
        subprocess.run(["git", "clone", "--quiet", str(history), str(data)], check=True)
        git = ["git", "-C", str(self.code), "-c", "user.name=b", "-c", "user.email=b@example.com"]
        (self.code / "assets" / "training.py").write_text("raise ImportError('main has moved on')\n")
        subprocess.run([*git, "commit", "--quiet", "--all", "--message", "Move on"], check=True)
        del self.env["DAGSTER_HOME"]

    def ask(self, *arguments: str) -> tuple[int, dict[str, Any], float]:
        """Exit code, answer and seconds of `dagster-mlops reproduce`."""
        shutil.rmtree(self.state / "data" / ".dvc" / "cache", ignore_errors=True)  # what an answer before has fetched
        command = [sys.executable, "-m", "dagster_mlops.cli", "reproduce", CHAMPION, "--json"]
        command += ["--env", "DAGSTER_MLOPS_*", "--yes", *arguments]  # the event log is gone
        at, began = ["--at", f"sqlite:///{self.database}"], time.monotonic()
        done = subprocess.run([*command, *at], cwd=self.code, env=self.env, capture_output=True, text=True, check=False)
        told = json.loads(done.stdout) if done.returncode < 2 else {"error": done.stderr.strip().splitlines()}
        return done.returncode, told, time.monotonic() - began

    @property
    def run(self) -> Path:
        """The folder of the champion's run, with its artifacts."""
        [step] = [path for path in (self.state / "mlflow").rglob("step.json") if path.parent.name == "code"]
        return step.parent.parent

    def stored(self) -> Path:
        """The training set in the DVC remote."""
        md5 = self.ask("--dry-run")[1]["run"]["upstream"]
        [ref] = [ref for ref in map(str, md5) if "training_set.parquet" in ref]
        digest = ref.rpartition("@")[2][:32]
        return self.state / "dvc-remote" / "files" / "md5" / digest[:2] / digest[2:]


@contextmanager
def moved(path: Path) -> Iterator[None]:
    """Something is not where it was."""
    away = path.with_name(f"{path.name}.away")
    path.rename(away)
    try:
        yield
    finally:
        away.rename(path)


@contextmanager
def rewritten(path: Path, change: Callable[[bytes], bytes]) -> Iterator[None]:
    """A file has another content."""
    before, mode = path.read_bytes(), path.stat().st_mode
    path.chmod(0o644)
    path.write_bytes(change(before))
    try:
        yield
    finally:
        path.write_bytes(before)
        path.chmod(mode)


@contextmanager
def changed(database: Path, there: str, back: str) -> Iterator[None]:
    """A statement was run in MLflow's database."""
    for statement in (there, None, back):
        if statement is None:
            yield
        else:
            with sqlite3.connect(database) as connection:
                connection.execute(statement)
            connection.close()


def run(rounds: int | None = None) -> dict[str, Any]:
    """Everything once; `rounds` changes nothing."""
    with tempfile.TemporaryDirectory(prefix="reproduction-") as folder:
        world = World(Path(folder))
        console.print("running the demo")
        world.demo()
        world.age()
        artifacts, stored = world.run, world.stored()
        uv = {"UV_OFFLINE": "1", "UV_CACHE_DIR": str(Path(folder, "empty"))}
        own = artifacts.parent.name
        breaks: dict[str, tuple[Any, tuple[str, ...]]] = {
            "nothing, new environment": (ExitStack(), ()),
            "nothing, the environment at hand": (ExitStack(), ("--environment", "current")),
            "no checkout has the commit": (ExitStack(), ("--repo", str(_empty_repository(Path(folder))))),
            "the uncommitted changes are deleted": (moved(artifacts / "code" / "uncommitted.diff"), ()),
            "the uncommitted changes are others": (
                rewritten(artifacts / "code" / "uncommitted.diff", lambda diff: diff + b"\n"), ()
            ),
            "the step is deleted": (moved(artifacts / "code" / "step.json"), ()),
            "the DVC remote is gone": (moved(world.state / "dvc-remote"), ()),
            "the training set is deleted in the remote": (moved(stored), ()),
            "the training set is damaged in the remote": (
                rewritten(stored, lambda rows: rows[: len(rows) // 2]), ("--environment", "current")
            ),
            "no package can be downloaded": (_set(world.env, uv), ()),
            "the model's files are gone": (moved(_model(world.state, own)), ("--environment", "current")),
            "the metric on record is another": (
                changed(
                    world.database,
                    f"update latest_metrics set value = value + 0.001 where key = 'auc' and run_uuid = '{own}'",
                    f"update latest_metrics set value = value - 0.001 where key = 'auc' and run_uuid = '{own}'",
                ),
                ("--environment", "current"),
            ),
            "the run is deleted in MLflow": (
                changed(
                    world.database,
                    f"update runs set lifecycle_stage = 'deleted' where run_uuid = '{own}'",
                    f"update runs set lifecycle_stage = 'active' where run_uuid = '{own}'",
                ),
                (),
            ),
            "the tracking store is gone": (moved(world.database), ()),
        }  # fmt: skip
        rows, found = [], {}
        for name, (broken, arguments) in breaks.items():
            with broken:
                code, told, seconds = world.ask(*arguments)
            found[name] = {"exit": code, "told": told, "seconds": seconds}
            rows.append((name, str(code), f"{seconds:.0f}", _verdict(told)))
            console.print(f"{name}: exit {code}, {seconds:.0f} s")
    show("The champion, run again", ["broken", "exit code", "seconds", "verdict"], rows)
    return found


@contextmanager
def _set(env: dict[str, str], more: dict[str, str]) -> Iterator[None]:
    env.update(more)
    try:
        yield
    finally:
        for name in more:
            del env[name]


def _model(state: Path, run_id: str) -> Path:
    """The folder of the model that the run has logged."""
    [found] = [path for path in (state / "mlflow" / "artifacts").rglob("MLmodel") if run_id in path.read_text()]
    return found.parent


def _empty_repository(folder: Path) -> Path:
    subprocess.run(["git", "init", "--quiet", str(folder / "elsewhere")], check=True)
    return folder / "elsewhere"


def _verdict(told: dict[str, Any]) -> str:
    """What the answer names, in a line."""
    if "error" in told:
        [first, *_] = [line for line in told["error"] if line.startswith("dagster-mlops: ")]
        return first.removeprefix("dagster-mlops: ")[:200]
    if "findings" in told:
        different = [f for f in told["findings"] if f["decides"] and f["outcome"] != "matched"]
        named = ", ".join(f"{f['kind']} {f['name']} ({f['before']} → {f['after']})" for f in different)
        return f"{told['strength']}: {named}" if named else f"reproduced, {len(told['findings'])} compared"
    lost = [i for i in told["ingredients"] if i["needed"] and i["bucket"] != "accessible"]
    return "; ".join(f"{i['kind']} {i['name']} {i['bucket']}: {i['reason'][:90]}" for i in lost)
