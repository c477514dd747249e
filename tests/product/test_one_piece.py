"""Each small idea about processes and files has one place; what is needed elsewhere is named with its reason."""

import re
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[2] / "plugins" / "dagster_mlops"

# By rule: the pattern, and the files that may have it.
RULES = {
    "starts a process": (
        r"\bsubprocess\.(run|Popen|call|check_\w+)\b|\bos\.(system|exec\w+|spawn\w+)\(",
        {"core/child.py"},
    ),
    "knows how a process is ended": (r"\bos\.killpg\b|start_new_session", {"core/child.py", "core/_child_script.py"}),
    "locks a file": (
        r"^\s*(import|from) (fcntl|filelock|zc)\b",
        {
            "core/files.py",
            "feast/point_in_time/writing.py",  # locks folders, which a FileLock cannot
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
            "serving/blue_green.py",  # while a deployment answers its last requests
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
