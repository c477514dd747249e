"""Boosters and networks are trained again, and judged by what they have learned."""

import json
import shutil
from pathlib import Path

import pytest

from dagster_mlops.lineage.reproduction.comparison import Verdict
from dagster_mlops.lineage.reproduction.rerun import rerun
from dagster_mlops.mlflow import MlflowResource
from tests.support import known_warnings, native_models
from tests.support.training_project import Project

pytestmark = [
    pytest.mark.formats,
    pytest.mark.slow,
    pytest.mark.thorough,
    pytest.mark.timeout(900),
    *known_warnings.MLFLOW,
]

PIPELINE = """
import os
from pathlib import Path
import dagster as dg
import native_models
import numpy as np
import pandas as pd
from dagster_mlops.dvc import DvcResource, dvc_io_manager
from dagster_mlops.mlflow import MlflowResource, training_asset
from dagster_mlops.mlflow.models import log_model

HOME = Path(os.environ["TEST_HOME"])

@dg.asset(io_manager_key="dvc_io_manager")
def rows() -> pd.DataFrame:
    drawn = np.random.default_rng(0)
    hours = drawn.uniform(0, 24, 200)
    return pd.DataFrame({"hour": hours, "late": (drawn.random(200) * 24 < hours).astype(int)})

def training(fit, name, seed):
    @training_asset(name=name, registered_model_name=name)
    def train(rows: pd.DataFrame) -> None:
        log_model(*fit(rows[["hour"]], rows["late"], seed()))
    return train

trainings = [
    training(native_models.FITS[kind], f"{kind}{suffix}", seed)
    for kind in os.environ["TEST_KINDS"].split(",")
    for suffix, seed in (("", lambda: 3), ("_drawn", lambda: int.from_bytes(os.urandom(3))))
]

defs = dg.Definitions(
    assets=[rows, *trainings],
    resources={
        "dvc": DvcResource(repo=str(HOME / "data"), remote_url=str(HOME / "remote")),
        "dvc_io_manager": dvc_io_manager,
        "mlflow": MlflowResource(tracking_uri=f"sqlite:///{HOME}/mlflow.db", experiment="delay"),
    },
)
"""
KINDS = ["xgboost", "xgboost_booster", "lightgbm", "lightgbm_booster", "catboost", "torch", "keras"]
INSTALLED = [kind for kind in KINDS if native_models.installed(kind)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A training of each installed kind with a seed, and one without, all in one process."""
    if not INSTALLED:
        pytest.skip("none of these libraries is installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_KINDS", ",".join(INSTALLED))
        project = Project(tmp_path_factory.mktemp("project"), PIPELINE)
        (project.code / "native_models.py").write_text(Path(native_models.__file__).read_text())
        project.commit()
        config = {"execution": {"config": {"in_process": {}}}}
        command = ("-m", "dagster", "asset", "materialize", "-f", "pipeline.py", "--select", "*")
        project.python(*command, "--config-json", json.dumps(config))
    return project


def judged(project: Project, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Verdict:
    monkeypatch.setenv("TEST_HOME", str(project.home))
    monkeypatch.setenv("TEST_KINDS", ",".join(INSTALLED))
    folder.mkdir()
    return rerun(project.recipe(f"{name}/1"), folder, environment="current", variables=["TEST_*"])


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    if request.param not in INSTALLED:
        pytest.skip(f"{request.param} is not installed")
    return request.param


def test_the_same_seed_learns_the_same_and_another_one_does_not(project, kind, tmp_path, monkeypatch):
    again = judged(project, kind, tmp_path / "again", monkeypatch)
    assert again.strength == "reproduced", (again.different, again.unknown)
    assert "learned values" in again.evidence or "files" in again.evidence
    drawn = judged(project, f"{kind}_drawn", tmp_path / "drawn", monkeypatch)
    assert drawn.strength == "not the same"
    assert "learned values" in {found.name for found in drawn.findings if found.outcome == "differed"}


def test_the_weights_of_another_training_are_found_before_anything_runs(project, kind, tmp_path):
    client, places = MlflowResource(tracking_uri=project.uri).client(), []
    for name in (kind, f"{kind}_drawn"):
        run = client.get_run(client.get_model_version(name, "1").run_id or "")
        [model] = client.search_logged_models([run.info.experiment_id], f"source_run_id='{run.info.run_id}'")
        places.append(Path(str(model.artifact_location).removeprefix("file://")))
    place, other = places
    described = (place / "MLmodel").read_text()
    before = shutil.move(place, tmp_path / "before")
    shutil.copytree(other, place)
    (place / "MLmodel").write_text(described)
    try:
        [missing] = project.recipe(f"{kind}/1").missing
    finally:
        shutil.rmtree(place)
        shutil.move(before, place)
    assert (missing.kind, missing.bucket) == ("model", "faulty") and "someone changed" in missing.reason
