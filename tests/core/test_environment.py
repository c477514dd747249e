"""The part of the worker's environment that a child process gets."""

import subprocess
import sys

import pytest

from dagster_mlops.core.environment import STORES, child_environment, whole_environment

SECRETS = [
    "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "DATABASE_URL", "DAGSTER_PG_PASSWORD", "MLFLOW_TRACKING_TOKEN",
    "PGPASSWORD", "HF_TOKEN", "HF_HUB_TOKEN", "NVIDIA_API_KEY", "OMP_PASSWORD", "PYTHON_KEYRING_CREDENTIALS",
    "GITHUB_TOKEN", "https_proxy", "SSH_AUTH_SOCK", "GOOGLE_APPLICATION_CREDENTIALS", "SLACK_WEBHOOK", "CUDA_SECRET",
    "XLA_PWD", "JAX_CRED", "XLA_secret",
]  # fmt: skip
NEEDED = {
    "OMP_NUM_THREADS": "1", "LC_NUMERIC": "C", "TOKENIZERS_PARALLELISM": "false", "NVIDIA_VISIBLE_DEVICES": "all",
    "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": "/srv/code", "TZ": "UTC", "MLFLOW_DISABLE_TELEMETRY": "true",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _worker(monkeypatch):
    for name in SECRETS:
        monkeypatch.setenv(name, f"hidden {name}")
    for name, value in NEEDED.items():
        monkeypatch.setenv(name, value)


def test_a_child_gets_what_a_program_needs_and_no_secret(monkeypatch):
    variables = child_environment()
    assert NEEDED.items() <= variables.items() and {"PATH", "HOME"} <= set(variables)
    assert [name for name in SECRETS if name in variables] == []
    monkeypatch.setenv("HF_HUB_PROXY", "http://user:hidden@proxy:3128")
    assert "HF_HUB_PROXY" not in child_environment() and "HF_HUB_PROXY" in child_environment("HF_HUB_PROXY")
    command = [sys.executable, "-c", "import ssl, tempfile, locale; print(tempfile.gettempdir())"]
    assert subprocess.run(command, env=variables, capture_output=True, text=True).returncode == 0


def test_what_is_named_is_added_and_nothing_else():
    added = set(child_environment("DATABASE_URL", "HF_*")) - set(child_environment())
    assert added == {"DATABASE_URL", "HF_TOKEN", "HF_HUB_TOKEN"}
    stores = set(child_environment(*STORES)) - set(child_environment())
    assert stores >= {"AWS_SECRET_ACCESS_KEY", "GOOGLE_APPLICATION_CREDENTIALS", "https_proxy"}
    assert not stores & {"DATABASE_URL", "GITHUB_TOKEN", "MLFLOW_TRACKING_TOKEN", "DAGSTER_PG_PASSWORD"}


def test_the_users_commands_get_everything():
    assert set(SECRETS) <= set(whole_environment())
