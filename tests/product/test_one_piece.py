"""Each small idea about processes and files has one place; what is needed elsewhere is named with its reason."""

import ast
import re
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[2] / "plugins" / "dagster_mlops"

# By rule: the pattern, and the files that may have it.
RULES = {
    "starts a process": (
        r"\bsubprocess\.(run|Popen|call|check_\w+)\b|\bos\.(system|exec\w+|spawn\w+)\(",
        {
            "core/child.py",
            "serving/runtime/log/background.py",  # which runs in a package, too, that has no core/child.py
        },
    ),
    "knows how a process is ended": (r"\bos\.killpg\b|start_new_session", {"core/child.py", "core/_child_script.py"}),
    # It runs no program that a checkout names, where the checkout is not the user's.
    "starts git": (r"""["']git["'], \*|\[["']git["']|^\s*(import|from) (git|dulwich|pygit2)\b""", {"core/git.py"}),
    # A member may be named ../x: see core/inside.py.
    "unpacks an archive": (r"\bextract(all)?\(|unpack_archive", set()),
    "locks a file": (
        r"^\s*(import|from) (fcntl|filelock|zc)\b",
        {
            "core/files.py",
            "feast/point_in_time/writing.py",  # locks folders, which a FileLock cannot
            "serving/local/program.py",  # a lock that the program takes over, and so holds as long as it runs
            "serving/runtime/log/rotation.py",  # these two run in a package, too, that has no core/files.py
            "serving/runtime/log/synced_file.py",
        },
    ),
    "names a process by the clock": (r"\bcreate_time\(", {"core/processes.py"}),
    "puts a draft in place": (
        r"\bos\.replace\(|\bmkstemp\(|NamedTemporaryFile\(",
        {
            "core/files.py",
            "dvc/store/repository.py",  # a tool wrote the draft of these three
            "dvc/store/objects.py",
            "dvc/store/pointers.py",
        },
    ),
    "reads a file for its hash": (r"hashlib\.\w+\(\w+\.read_bytes\(\)\)", {"mlflow/training/_rerun_script.py"}),
    "reads an error code of MLflow": (r"\.error_code\b", {"mlflow/server/client.py"}),
    "waits": (
        r"\btime\.sleep\(",
        {
            "core/waits.py",
            "gto/models.py",  # until the next second of the clock, which orders tags
            "mlflow/runs/active.py",  # once, for as long as another process may take
            "mlflow/runs/signals.py",  # before a signal is sent once more
            "mlflow/sweep/loop.py",  # between two looks at threads that end by themselves
            "serving/local/trial.py",  # between two looks at traffic
        },
    ),
    "hands on the environment": (
        r"\*\*os\.environ\b|=\s*os\.environ\b(?![.\[])|dict\(os\.environ\)|os\.environ\.(copy|items)\(",
        {
            "core/environment.py",
            "core/git.py",  # without git's own variables; the user's credential helpers may read any other
            "mlflow/training/reads.py",  # to see which of them a training reads
            "mlflow/upstream.py",  # MLflow's settings
            "provenance/credentials.py",  # to mask its secrets
            "lineage/reproduction/environment.py",
        },
    ),
    "writes to the disk at once": (
        r"\bos\.f(data)?sync\(",
        {
            "core/private_files.py",
            "serving/runtime/log/synced_file.py",  # which shares one fsync among those who wait
        },
    ),
    # Dagster's own function makes two instances with databases in memory.
    "loads the value of an asset": (
        r"\bload_asset_value\(",
        {
            "core/upstream.py",
            "mlflow/training/_rerun_script.py",  # of definitions, in an environment that may have an older library
            "monitoring/live/asset_values.py",  # of a repository: a sensor has no step
        },
    ),
    "runs git": (r"""\[\s*["']git["']""", {"core/git.py"}),
}


@pytest.mark.parametrize("rule", RULES)
def test_one_place_each(rule):
    pattern, allowed = RULES[rule]
    found = {
        file.relative_to(LIBRARY).as_posix()
        for file in LIBRARY.rglob("*.py")
        if re.search(pattern, file.read_text(), re.MULTILINE)
    }
    assert found == allowed


STARTERS = {"start", "run_program", "run_child", "child_session"}


def test_whoever_starts_a_child_says_which_environment_it_gets():
    """By default it would be all of the worker's, with its secrets."""
    silent = set()
    for file in LIBRARY.rglob("*.py"):
        text = file.read_text()
        if "core.child import" in text:
            calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
            calls = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in STARTERS]
            if any(not {"env", None} & {keyword.arg for keyword in call.keywords} for call in calls):
                silent.add(file.relative_to(LIBRARY).as_posix())
    assert silent == {"mlflow/training/capture.py"}  # the driver's own program, which lists GPUs
