"""A tool joins by one entry point; one that is broken is named, and the others go on."""

import importlib
import inspect
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dagster_mlops.errors import MissingExtraError, ToolError
from dagster_mlops.lineage import trace
from dagster_mlops.provenance import Accessible, Answer, Dataset, Deleted, Inaccessible, Ref
from dagster_mlops.tools import (
    KeepsDatasets,
    KeepsRuns,
    RebuildsData,
    answer_within,
    installed_tools,
    time_limit,
    tool_for,
)
from tests.support.packages import install_package

SHELF = """
    from dagster_mlops.provenance import Accessible, Dataset

    class Shelf:
        def resolve(self, ref):
            path, _, md5 = ref.id.rpartition("@")
            upstream = (type(ref)("crashing", "dataset", "x", at="/x"),)
            return Accessible(Dataset(tool="shelf", path=path, md5=md5, repo=ref.at, upstream=upstream))
    """

RUDE = """
    import time
    from dagster_mlops.provenance import Accessible, Dataset, Deleted

    class Unprintable(Exception):
        def __str__(self):
            raise ValueError

    class Greedy:
        def __init__(self, url): ...
        def resolve(self, ref): ...

    class Sleepy:
        def __init__(self): time.sleep(60)
        def resolve(self, ref): ...

    class Chatty:
        def resolve(self, ref): return "x" * 10_000_000

    class Verbose:
        def resolve(self, ref): return Deleted("y" * 10_000_000)

    class Plain:
        def resolve(self, ref): return Accessible({"path": "a"})

    class Binary:
        def resolve(self, ref): return Deleted(b"gone")

    class Swapped:
        def resolve(self, ref): return Accessible(Dataset(tool="dvc", path="other", md5="1", repo="/"))

    class Fatal:
        def resolve(self, ref): raise KeyboardInterrupt("mine")

    class Mystery:
        def resolve(self, ref): raise Unprintable
    """
_RUDE = {
    "Greedy": ("inaccessible", "missing 1 required positional argument: 'url'"),
    "Sleepy": ("inaccessible", "sleepy did not answer within 1 s"),
    "Chatty": ("faulty", "The tool chatty returned 'xxx"),
    "Verbose": ("deleted", "(10,000,000 characters)"),
    "Plain": ("faulty", "The tool plain returned a malformed answer"),
    "Binary": ("faulty", "The tool binary returned a malformed answer"),
    "Swapped": ("faulty", "asked for swapped:dataset:a@1 and answered with the record of dvc:dataset:other@1"),
    "Fatal": ("faulty", "The tool fatal failed: KeyboardInterrupt: mine"),
    "Mystery": ("faulty", "The tool mystery failed: Unprintable"),
}


@pytest.fixture
def packages(monkeypatch, tmp_path):
    tools = {
        "shelf": "acme_shelf:Shelf",
        "crashing": "acme_crash:Tool",
        "leaving": "acme_exit:Tool",
        "absent": "acme_nowhere:Tool",
        "mute": "builtins:object",
        **{name.lower(): f"acme_rude:{name}" for name in _RUDE},
    }
    files = {"acme_shelf": SHELF, "acme_crash": "raise RuntimeError('no licence')", "acme_exit": "raise SystemExit(3)"}
    files["acme_rude"] = RUDE
    install_package(monkeypatch, tmp_path / "site", files=files, tools=tools)


@pytest.mark.usefixtures("packages")
def test_a_tool_that_cannot_be_loaded_is_named_with_the_reason_and_the_others_answer():
    chain = trace(Ref("shelf", "dataset", "a@1", at="/shelf"), allow=["/x"])
    assert isinstance(chain.record, Dataset) and chain.bucket == "accessible"
    [link] = chain.upstream
    assert link.bucket == "inaccessible"
    assert "'crashing' (acme_crash:Tool) cannot be loaded: RuntimeError: no licence" in link.reason


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("name", _RUDE)
def test_whatever_a_tool_does_the_chain_goes_on_and_names_it(name):
    bucket, reason = _RUDE[name]
    chain = trace(Ref(name.lower(), "dataset", "a@1"), timeout=1)
    assert chain.bucket == bucket and reason in chain.reason and len(chain.reason) < 5_000
    assert not chain.complete


@pytest.mark.usefixtures("packages")
def test_asking_whether_a_tool_is_installed_does_not_load_it():
    start = time.monotonic()
    assert "sleepy" in installed_tools() and "nobody" not in installed_tools()
    assert time.monotonic() - start < 5


def test_a_command_of_a_plugin_that_cannot_be_loaded_is_named_and_the_others_go_on(tmp_path):
    folder = tmp_path / "acme-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[dagster_mlops.commands]\nacme = acme_crash:app\nlist = builtins:list\n")
    (tmp_path / "acme_crash.py").write_text("raise RuntimeError('no licence')")

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "dagster_mlops.cli", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    crash = run("acme", "x")
    assert (crash.returncode, crash.stderr.strip().splitlines()[-1]) == (
        2,
        "dagster-mlops: the commands 'acme' (acme_crash:app) cannot be loaded: RuntimeError: no licence",
    )
    assert "'list' (builtins:list) cannot be loaded: not a typer.Typer" in run("list", "x").stderr
    assert "acme" in run("--help").stdout
    unknown = run("trace", "wandb:training_run:1")
    assert unknown.returncode == 2 and "no tool 'wandb' is installed" in unknown.stderr


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("crashing", "RuntimeError: no licence"),
        ("leaving", "SystemExit: 3"),
        ("absent", "No module named 'acme_nowhere'"),
        ("mute", "has no method resolve"),
    ],
)
def test_every_way_to_be_broken_is_an_answer(name, reason):
    tools = installed_tools()
    answer = tools[name].resolve(Ref(name, "dataset", "x"))
    assert isinstance(answer, Inaccessible) and reason in answer.reason
    assert {"dvc", "mlflow", name} <= set(tools)
    with pytest.raises(ToolError, match=reason):
        tool_for(name, KeepsRuns)


def test_the_tools_of_this_library_say_what_they_can_do():
    capable = {
        capability: {name for name, tool in installed_tools().items() if isinstance(tool, capability)}
        for capability in (KeepsRuns, KeepsDatasets, RebuildsData)
    }
    assert capable == {KeepsRuns: {"mlflow"}, KeepsDatasets: {"dvc"}, RebuildsData: {"feast"}}
    with pytest.raises(ToolError, match="'git' is not a tool that keeps runs; such tools: mlflow"):
        tool_for("git", KeepsRuns)
    with pytest.raises(ToolError, match=r"'wandb' is installed; known: bentoml, dvc, feast, git, gto, k8s, mlflow"):
        tool_for("wandb", KeepsRuns)


def test_an_answer_in_time_is_given_a_late_one_is_none_and_an_error_is_raised_here():
    import threading

    assert answer_within(5, lambda: Deleted("gone")) == Deleted("gone")
    never = threading.Event()
    assert answer_within(0.05, lambda: Accessible(never.wait(60))) is None  # pyright: ignore[reportArgumentType]
    never.set()

    def fail() -> Inaccessible:
        raise KeyError("x")

    with pytest.raises(KeyError):
        answer_within(5, fail)


class Slow:
    """A tool that needs half a second, and by itself takes a tenth."""

    def resolve(self, ref: Ref) -> Answer:
        answer = answer_within(limit := time_limit(0.1), lambda: Deleted(str(time.sleep(0.5))))
        return answer or Inaccessible(f"late after {limit:g} s")


def test_the_limit_of_a_trace_is_that_of_the_tools():
    ref = Ref("slow", "dataset", "x@1")
    assert trace(ref, tools={"slow": Slow()}).reason == "late after 0.1 s"
    assert trace(ref, tools={"slow": Slow()}, timeout=20).bucket == "deleted"
    assert time_limit(7) == 7, "nothing of it is left"


@pytest.mark.parametrize("tool", ["dvc", "feast", "git", "mlflow"])
def test_every_tool_with_a_limit_takes_that_of_the_trace(tool):
    module = importlib.import_module(f"dagster_mlops.{tool}.tool")
    assert module.time_limit is time_limit and "time_limit(" in inspect.getsource(module)


def test_the_tool_that_the_docs_teach_keeps_its_contract_and_finds_damage(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "bring-your-own-tool.md").read_text()
    tool, contract, example = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(tool + contract, names)
    names["test_the_vault_keeps_its_contract"](tmp_path)
    (tmp_path / ("0" * 32)).write_bytes(b"damaged")
    damaged = Ref("vault", "dataset", f"raw/flights@{'0' * 32}", at=str(tmp_path))
    assert trace(damaged, tools={"vault": names["VaultTool"]()}).bucket == "faulty"
    exec(example, names)
    assert names["chain"].bucket == "inaccessible"  # /mnt/vault is not mounted here


@pytest.mark.parametrize(
    ("module", "advice"),
    [
        ("mlflow", "'dagster-mlops[mlflow]'"),
        ("dagster_k8s", "'dagster-mlops[k8s]'"),
        ("optuna", "'dagster-mlops[optuna]'"),
        ("envoy", "'dagster-mlops[bentoml]' (or [mlflow-serving], whichever you use)"),
        ("psutil", "'dagster-mlops[bentoml]' (or [gto], [mlflow], [mlflow-serving], [optuna], whichever you use)"),
    ],
)
def test_the_extras_that_bring_a_missing_module_follow_from_the_metadata(module, advice, monkeypatch):
    import sys

    from dagster_mlops.core.extras import extra as import_tool

    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == module:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    with pytest.raises(MissingExtraError, match=re.escape(advice) + "$"):
        import_tool(module)
