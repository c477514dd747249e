"""Keys in the uncommitted code of a training: they do not reach MLflow, and the verdict on a rerun says so."""

import json
import os
from pathlib import Path

import dagster as dg
import pytest

from dagster_mlops.core.keys import MARK
from dagster_mlops.lineage.reproduction.rerun import rerun
from dagster_mlops.mlflow import MlflowResource
from tests.support import known_warnings
from tests.support.training_project import PIPELINE, Project

pytestmark = [
    pytest.mark.slow,
    pytest.mark.thorough,  # `tests/core/test_code_state.py` has the parts of it
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("warm_tools"),
    *known_warnings.MLFLOW,
]

TOKEN, PASSWORD = "ghp_" + "0123456789abcdefghijABCDEFGHIJ012345", "hunter2-of-ann"
PRIVATE = (
    "-----BEGIN " + "OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gt\n"
)
KEYS = {
    ".env": f"DB_PASSWORD={PASSWORD}\n",
    "id_rsa": PRIVATE,
    ".aws/credentials": f"[default]\naws_secret_access_key = {PASSWORD}\n",
    "gcp.json": json.dumps({"type": "service_account", "private_key": PRIVATE}),
    "deploy.py": f"KEY = '''{PRIVATE}'''\n",
}


def contents(folder: Path) -> bytes:
    return b"\n".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_no_key_reaches_mlflow_and_the_verdict_is_open(tmp_path, monkeypatch):
    project = Project(tmp_path / "project")
    for name, text in KEYS.items():
        (project.code / name).parent.mkdir(exist_ok=True)
        (project.code / name).write_text(text)
    (project.code / "rows.csv").write_text("of a customer\n")
    project.write(f'TOKEN = "{TOKEN}"\nLATE_FROM = 12\n')
    run_id = project.train()
    client = MlflowResource(tracking_uri=project.uri).client()
    artifacts = Path(str(client.get_run(run_id).info.artifact_uri).removeprefix("file://"))
    stored = contents(artifacts) + (project.home / "mlflow.db").read_bytes() + contents(project.home / "dagster")
    for key in (TOKEN, PASSWORD, PRIVATE.splitlines()[1], "of a customer"):
        assert key.encode() not in stored
    recipe = project.recipe(run_id)
    assert MARK in recipe.files["uncommitted.diff"] and b"LATE_FROM = 12" in recipe.files["uncommitted.diff"]
    named = {part.name for part in recipe.ingredients if part.kind == "code"}
    assert {f"uncommitted {name}" for name in (*KEYS, "rows.csv")} <= named and recipe.complete
    of_code = {"keys in pipeline.py", "keys in deploy.py", "keys in gcp.json"}
    assert {part.name for part in recipe.unknown} == of_code
    with dg.DagsterInstance.from_config(str(project.home / "dagster")) as instance:
        [event] = instance.fetch_materializations(dg.AssetKey("model"), limit=1).records
        metadata = event.asset_materialization.metadata if event.asset_materialization else {}
        table = metadata["mlflow/code_not_kept"].value
        rows = {str(row.data["file"]) for row in table.records}  # type: ignore[union-attr]
        log = [entry.message for entry in instance.all_logs(event.run_id)]
    assert rows == {*KEYS, "pipeline.py"}
    [warning] = [message for message in log if "looks like a key" in message]
    assert all(name in warning for name in (*KEYS, "pipeline.py")) and "rows.csv" not in warning

    monkeypatch.setenv("TEST_HOME", str(project.home))
    (tmp_path / "work").mkdir()
    verdict = rerun(recipe, tmp_path / "work", environment="current", variables=["TEST_HOME"], consent=True)
    assert verdict.strength == "too little to tell"
    assert set(verdict.different) == {f"code {name}" for name in of_code}


def test_capture_can_be_turned_off_or_on_for_more(tmp_path, monkeypatch):
    choice = 'uncommitted_code=os.environ["TEST_CODE"], experiment="delay"'
    project = Project(tmp_path / "project", PIPELINE.replace('experiment="delay"', choice))
    (project.code / "rows.csv").write_text("1\n")
    (project.code / ".env").write_text(f"DB_PASSWORD={PASSWORD}\n")
    project.write("LATE_FROM = 13\n")
    monkeypatch.setenv("TEST_CODE", "none")
    recipe = project.recipe(project.train())
    assert "uncommitted.diff" not in recipe.files and recipe.run.dirty
    [missing] = recipe.missing
    assert missing.kind == "code" and 'uncommitted_code="none"' in missing.reason
    monkeypatch.setenv("TEST_CODE", "all")
    recipe = project.recipe(project.train())
    assert b"rows.csv" in recipe.files["uncommitted.diff"] and PASSWORD.encode() not in recipe.files["uncommitted.diff"]
    monkeypatch.setenv("TEST_HOME", str(project.home))
    (tmp_path / "work").mkdir()
    verdict = rerun(recipe, tmp_path / "work", environment="current", variables=["TEST_*"], consent=True)
    assert verdict.reproduced, verdict.different
    assert os.listdir(tmp_path / "work" / "code").count("rows.csv") == 1
