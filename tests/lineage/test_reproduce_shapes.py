"""Trainings of every shape are run again: backfills, models that are returned, sweeps, projects without a lock file."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from dagster_mlops.cli import app
from dagster_mlops.core.run_files import REPRODUCES_TAG, TRIAL_TAG
from dagster_mlops.errors import ReproductionError, TrainingRunError
from dagster_mlops.lineage.reproduction.comparison import Verdict
from dagster_mlops.lineage.reproduction.environment import install, packages
from dagster_mlops.lineage.reproduction.rerun import rerun
from dagster_mlops.mlflow import MlflowResource
from dagster_mlops.mlflow.sweep.best import tried_before
from dagster_mlops.mlflow.training.packages import requirements
from tests.support import known_warnings
from tests.support.modes import readable_by_others
from tests.support.training_project import Project

pytestmark = [
    pytest.mark.thorough,  # `test_reproduce.py` has one of each verdict
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("warm_tools"),
    *known_warnings.MLFLOW,
]

PIPELINE = """
import os
from pathlib import Path
import dagster as dg
import pandas as pd
from dagster_mlops.dvc import DvcResource, dvc_io_manager
from dagster_mlops.mlflow import MlflowResource, training_asset
from dagster_mlops.mlflow.io_manager import mlflow_model_io_manager
from dagster_mlops.mlflow.models import FittedModel, log_model
from dagster_mlops.mlflow.sweep import sweep_asset, sweep_trials

HOME = Path(os.environ["TEST_HOME"])
HUBS = dg.StaticPartitionsDefinition(["EWR", "JFK", "LGA"])

@dg.asset(io_manager_key="dvc_io_manager")
def rows() -> pd.DataFrame:
    hours = [float(hour) for hour in range(24)] * 6
    return pd.DataFrame({"hour": hours, "hub": HUBS.get_partition_keys() * 48, "late": [int(h > 12) for h in hours]})

# As a partition for each day: the next time that the code is loaded, there are more.
DAYS = dg.StaticPartitionsDefinition(os.environ.get("TEST_DAYS", "mon,tue").split(","))

@dg.asset(io_manager_key="dvc_io_manager", partitions_def=DAYS)
def days(rows: pd.DataFrame) -> pd.DataFrame:
    return rows

def fitted(rows, **options):
    from sklearn.tree import DecisionTreeClassifier
    return DecisionTreeClassifier(random_state=0, **options).fit(rows[["hour"]], rows["late"])

@training_asset(
    registered_model_name="ranged", partitions_def=HUBS, backfill_policy=dg.BackfillPolicy.single_run(),
)
def ranged(context: dg.AssetExecutionContext, rows: pd.DataFrame) -> None:
    import mlflow
    rows = rows[rows["hub"].isin(context.partition_keys)]
    mlflow.log_metric("rows", len(rows))
    log_model(fitted(rows), rows[["hour"]])

SHOPS = dg.DynamicPartitionsDefinition(name="shops")

@training_asset(
    registered_model_name="worded", partitions_def=SHOPS,
    ins={"returned": dg.AssetIn(metadata={"mlflow/model": "returned@best"}, input_manager_key="models")},
)
def worded(rows: pd.DataFrame, returned) -> None:
    import mlflow
    mlflow.log_metric("before", returned.get_depth())
    words = rows["late"].map({0: "in time", 1: "late"})
    from sklearn.tree import DecisionTreeClassifier
    log_model(DecisionTreeClassifier(random_state=0).fit(rows[["hour"]], words), rows[["hour"]])

@dg.asset(io_manager_key="pickles")
def pile() -> int:
    return 3

@training_asset(registered_model_name="piled")
def piled(rows: pd.DataFrame, pile: int) -> None:
    log_model(fitted(rows, max_depth=pile), rows[["hour"]])

@dg.asset(io_manager_key="models")
def returned(days: pd.DataFrame) -> FittedModel:
    return FittedModel(fitted(days, max_depth=1), days[["hour"]], metrics={"rows": len(days)}, params={"max_depth": 1})

def search(trial, rows: pd.DataFrame) -> float:
    import mlflow
    with (HOME / "trials").open("a") as trials:
        trials.write(f"{trial.number}\\n")
    depth, by = trial.suggest_int("depth", 1, 3), trial.suggest_categorical("by", ["gini"])
    model = fitted(rows, max_depth=depth, criterion=by)
    mlflow.log_metric("beside", trial.params["depth"])
    log_model(model, rows[["hour"]])
    return model.score(rows[["hour"]], rows["late"]) + trial.params["depth"] / 100

OPTIONS = {"metric": "score", "direction": "maximize", "storage": f"sqlite:///{HOME}/studies.db"}
searched = sweep_asset(registered_model_name="searched", n_trials=4, n_jobs=2, name="searched", **OPTIONS)(search)
stepped = sweep_trials(name="stepped", registered_model_name="stepped", n_trials=1, **OPTIONS)(search)

@dg.definitions
def defs() -> dg.Definitions:
    return dg.Definitions(
        assets=[rows, days, ranged, worded, pile, piled, returned, searched, *stepped.assets],
        resources={
            "pickles": dg.FilesystemIOManager(base_dir=str(HOME / "pickles")),
            "dvc": DvcResource(repo=str(HOME / "data"), remote_url=str(HOME / "remote")),
            "dvc_io_manager": dvc_io_manager,
            "models": mlflow_model_io_manager,
            "mlflow": MlflowResource(tracking_uri=f"sqlite:///{HOME}/mlflow.db", experiment="delays"),
        },
    )
"""


# All in one process: each takes seconds to start.
TRAIN = """
import os
import dagster as dg
from mlflow import MlflowClient
from dagster._core.definitions.reconstruct import ReconstructableRepository  # no public way to run a job of a file

def make(*assets, **tags):
    keys = [dg.AssetKey(asset) for asset in assets]
    config = {"execution": {"config": {"in_process": {}}}}
    with dg.execute_job(job, instance, asset_selection=keys, tags=tags, run_config=config) as done:
        assert done.success

with dg.DagsterInstance.get() as instance:
    job = ReconstructableRepository.for_file("pipeline.py", "defs").get_reconstructable_job("__ASSET_JOB")
    make("rows", "pile", "piled", "searched", "stepped_study")
    for day in ("mon", "tue"):
        make("days", **{"dagster/partition": day})
    make("returned")
    client = MlflowClient(f"sqlite:///{os.environ['TEST_HOME']}/mlflow.db")
    client.set_registered_model_alias("returned", "best", "1")
    instance.add_dynamic_partitions("shops", ["north"])
    make("worded", **{"dagster/partition": "north"})
    client.delete_registered_model_alias("returned", "best")
    make("ranged", **{"dagster/asset_partition_range_start": "EWR", "dagster/asset_partition_range_end": "JFK"})
    [trial] = instance.get_dynamic_partitions("stepped_trials")
    make("stepped_trials", **{"dagster/partition": trial})
    make("stepped")
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Everything trained once, in a repository without a lock file."""
    project = Project(tmp_path_factory.mktemp("project"), PIPELINE, lock="")
    project.python("-c", TRAIN)
    return project


def outcomes(verdict: Verdict) -> dict[str, str]:
    return {f"{finding.kind} {finding.name}": finding.outcome for finding in verdict.findings}


@pytest.mark.parametrize("name", ["worded", "searched", "ranged", "returned", "stepped"])
def test_a_training_of_this_shape_comes_out_the_same(project, name, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_HOME", str(project.home))
    studies, trials = project.home / "studies.db", project.home / "trials"
    before = studies.read_bytes(), trials.read_text()
    monkeypatch.setenv("TEST_DAYS", "mon,tue,wed")
    recipe = project.recipe(f"{name}/1")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{tmp_path}/registry.db")
    (tmp_path / "work").mkdir()
    verdict = rerun(recipe, tmp_path / "work", environment="current", variables=["TEST_*"])
    assert verdict.reproduced, verdict.different
    read = {"data days/mon.parquet", "data days/tue.parquet"} if name == "returned" else {"data rows.parquet"}
    metrics = {"ranged": {"rows"}, "returned": {"rows"}, "worded": {"before"}}.get(name, {"score", "beside"})
    assert {f"metric {metric}" for metric in metrics} | read <= outcomes(verdict).keys()
    [predictions] = [found for found in verdict.findings if found.name.startswith("predictions for")]
    # On the rows that it was trained on.
    assert "training input" in predictions.after and int(predictions.name.split()[2]) >= 24, predictions
    assert before[0] == studies.read_bytes(), "no study is begun or changed"
    tried = trials.read_text().removeprefix(before[1])
    assert len(tried.split()) == (1 if name in ("searched", "stepped") else 0), "only the best trial is run again"
    assert not (tmp_path / "registry.db").exists(), "nothing is registered where the environment says"
    monkeypatch.delenv("MLFLOW_REGISTRY_URI")
    client = MlflowResource(tracking_uri=project.uri).client()
    assert len(client.search_model_versions(f"name='{name}'")) == 1, "the registry is as it was"


def test_the_versions_that_were_installed_stand_in_for_a_lock_file(project, tmp_path):
    recipe = project.recipe("returned/1")
    [environment] = [ingredient for ingredient in recipe.ingredients if ingredient.kind == "environment"]
    assert environment.bucket == "accessible" and environment.name.startswith("environment.txt, Python 3")
    listed = packages(recipe.files["environment.txt"])
    assert listed == packages(requirements()) and listed["mlflow"]
    # What this machine alone has is not asked of an index.
    python = install(
        "environment.txt", b"# own==0.1 from file:///srv/own\n", python="3", folder=tmp_path / "new", code=tmp_path
    )
    assert python.is_file()
    with pytest.raises(ReproductionError, match=r"cannot be installed from environment\.txt: .*no-such-package"):
        wanted = b"no-such-package @ file:///no-such-package.whl\n"
        install("environment.txt", wanted, python="3", folder=tmp_path / "other", code=tmp_path)


def test_the_best_trial_is_kept_with_what_it_tried(project):
    kept = json.loads(project.recipe("searched/1").files["trial.json"])
    assert kept["params"]["depth"] in (1, 2, 3) and kept["params"]["by"] == "gini" and kept["number"] in range(4)


def test_an_input_that_nobody_versions_is_named(project):
    recipe = project.recipe("piled/1")
    [missing] = recipe.missing
    assert (missing.kind, missing.name, missing.bucket) == ("data", "asset pile", "unknown")
    assert "keeps no versions" in missing.reason


def test_a_model_that_is_gone_is_named(project, tmp_path):
    location = MlflowResource(tracking_uri=project.uri).client().get_model_version("returned", "1")
    [folder] = [file.parent for file in project.home.rglob("MLmodel") if location.run_id in file.read_text()]
    folder.rename(tmp_path / "away")
    [missing] = project.recipe("returned/1").missing
    (tmp_path / "away").rename(folder)
    assert (missing.kind, missing.bucket) == ("model", "deleted") and not project.recipe("returned/1").missing


def test_a_sweep_whose_best_trial_is_not_on_record_searches_for_nothing():
    def tried(**tags: str) -> str:
        context: Any = SimpleNamespace(run=SimpleNamespace(tags=tags))
        return tried_before(context)

    assert tried() == "" and tried(**{TRIAL_TAG: "{}", REPRODUCES_TAG: "0f"}) == "{}"
    with pytest.raises(TrainingRunError, match=r"run 0f was a sweep and no longer has its file code/trial\.json"):
        tried(**{REPRODUCES_TAG: "0f"})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--golden", "/nowhere/rows.parquet"], "there is no file /nowhere/rows.parquet"),
        (["--keep", "/proc/nowhere/work"], "cannot be run again here"),
        (["--tolerance", "-1"], "Invalid value for '--tolerance'"),
    ],
)
def test_what_cannot_be_asked_is_no_verdict(project, arguments, says, monkeypatch):
    monkeypatch.setenv("TEST_HOME", str(project.home))
    asked = ["reproduce", "returned/1", "--at", project.uri, "--environment", "current", "--env", "TEST_*", *arguments]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit), done.exception
    assert says in " ".join(done.output.split()), done.output


def test_the_folder_of_a_rerun_is_its_owners(project, tmp_path):
    folder = tmp_path / "new" / "work"
    asked = ["reproduce", "returned/1", "--at", project.uri, "--keep", str(folder), "--golden", "/nowhere/rows.parquet"]
    assert CliRunner().invoke(app, asked).exit_code == 2
    assert folder.is_dir() and readable_by_others(tmp_path / "new") == []


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_ending_the_command_ends_the_training(project, tmp_path, how):
    env = {**os.environ, "TEST_HOME": str(project.home), "TMPDIR": str(tmp_path)}
    asked = ["reproduce", "ranged/1", "--at", project.uri, "--environment", "current", "--env", "TEST_*"]
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-m", "dagster_mlops.cli", *asked]
        process = subprocess.Popen(command, cwd=project.code, env=env, stdout=log, stderr=log)
    deadline = time.monotonic() + 120
    while not (started := _inside(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(how)
    assert process.wait(30) != 0
    assert started and not _inside(tmp_path), "the training has ended"
    assert [file.name for file in tmp_path.iterdir()] == ["log"], "nothing is left of it"


def _inside(folder: Path) -> list[str]:
    """The processes that work below a folder."""
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and os.readlink(process / "cwd").startswith(f"{folder}/"):
                found.append(process.name)
    return found
