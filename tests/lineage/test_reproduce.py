"""`dagster-mlops reproduce`: a training is run again from what is on record, or what stands in the way is named."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest
from typer.testing import CliRunner

from dagster_mlops.cli import app
from dagster_mlops.errors import NotFoundError, ProvenanceError, ReproductionError
from dagster_mlops.lineage import reproduction_asset
from dagster_mlops.lineage.chain.sources import Tools
from dagster_mlops.lineage.reproduction.comparison import explain
from dagster_mlops.lineage.reproduction.recipe import find_recipe
from dagster_mlops.lineage.reproduction.rerun import rerun
from dagster_mlops.mlflow import MlflowResource
from dagster_mlops.provenance import Accessible, Dataset, Inaccessible, TrainingRun, TrainingSet
from tests.support import known_warnings
from tests.support.answers import Answers
from tests.support.training_project import PIPELINE, Project

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("warm_tools"),
    *known_warnings.MLFLOW,
]

# The same training on features that Feast joins.
WITH_FEATURES = (
    PIPELINE.replace(
        """    hours = [float(hour) for hour in range(24)] * 5
    return pd.DataFrame({"hour": hours, "late": [int(hour > LATE_FROM) for hour in hours]})
""",
        """    moments = pd.date_range("2024-01-02", periods=120, freq="h", tz="UTC").as_unit("us")
    return pd.DataFrame({"user": 1, "event_timestamp": moments, "late": [int(m.hour > LATE_FROM) for m in moments]})

training_set = training_set_asset(
    name="training_set", feature_service="clock", entities=rows.key, io_manager_key="dvc_io_manager"
)
""",
    )
    .replace("rows: pd.DataFrame)", "training_set: pd.DataFrame)")
    .replace("    fitted =", "    rows = training_set\n    fitted =")
    .replace("assets=[rows, model]", "assets=[rows, training_set, model]")
    .replace("    resources={", '    resources={\n        "feast": FeastResource(repo=str(HOME / "features")),')
    .replace("HOME = Path", "from dagster_mlops.feast import FeastResource, training_set_asset\n\nHOME = Path")
)
SETTINGS = """
project: clock
provider: local
registry: {registry_type: sql, path: "sqlite:///HOME/registry.db", cache_ttl_seconds: 0}
online_store: {type: sqlite, path: "HOME/online.db"}
offline_store: {type: dagster_mlops.feast.offline_store.AsofOfflineStore}
entity_key_serialization_version: 3
"""
DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64

user = Entity(name="user", join_keys=["user"], value_type=ValueType.INT64)
clock = FeatureView(
    name="clock", entities=[user], ttl=timedelta(days=1), schema=[Field(name="hour", dtype=Float64)],
    source=FileSource(name="clock", path="HOME/clock.parquet", timestamp_field="event_timestamp"),
)
service = FeatureService(name="clock", features=[clock])
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Trained three times: as committed; with an uncommitted change of data and code; and by chance."""
    return Project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def trained(project: Project) -> dict[str, str]:
    committed = project.train()
    project.write("LATE_FROM = 17  # not committed\n")
    (project.code / "notes.py").write_text("NEW = 1\n")
    changed = project.train(strength=0.5)
    by_chance = project.train(select="model", chance=True)
    # Six months later: the code has moved on, and so has the data.
    project.write("LATE_FROM = 3\n")
    project.commit()
    return {"committed": committed, "changed": changed, "chance": by_chance}


@pytest.fixture
def cli(project: Project, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, dict]]:
    monkeypatch.setenv("TEST_HOME", str(project.home))

    def run(*arguments: str) -> tuple[int, dict]:
        done = CliRunner().invoke(app, ["reproduce", *arguments, "--at", project.uri, "--json"])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, json.loads(done.stdout) if done.exit_code < 2 else {"error": done.stderr}

    return run


def outcomes(verdict: dict) -> dict[str, str]:
    return {f"{found['kind']} {found['name']}": found["outcome"] for found in verdict["findings"]}


def test_a_training_with_uncommitted_code_comes_out_the_same_after_code_and_data_have_moved_on(project, trained, cli):
    shutil.rmtree(project.home / "data" / ".dvc" / "cache")  # the remote has it
    before = sorted(os.listdir(project.code))
    # What is kept for monitoring is more to compare on than the 24 rows of the input example.
    reference = project.home / "reference-1f.parquet"
    pd.DataFrame({"late": 0, "hour": [h / 7 for h in range(100)]}).to_parquet(reference)
    client = MlflowResource(tracking_uri=project.uri).client()
    client.log_artifact(trained["changed"], str(reference), "monitoring")
    code, verdict = cli(trained["changed"], "--environment", "current", "--env", "TEST_*", "--yes")
    assert code == 0 and verdict["reproduced"], verdict
    found = outcomes(verdict)
    decisive = ["code uncommitted changes", "data rows.parquet", "seed seed", "metric accuracy", "metric draw"]
    assert {found[name] for name in [*decisive, "model predictions for 100 rows", "params all 3"]} == {"matched"}
    assert before == sorted(os.listdir(project.code)), "the checkout is as it was"
    assert len(client.search_model_versions("name='delay'")) == 3, "the registry is as it was"


@pytest.mark.thorough
def test_a_result_that_is_left_to_chance_is_not_reproduced_and_named(trained, cli):
    code, verdict = cli(trained["chance"], "--environment", "current", "--env", "TEST_*", "--yes")
    assert code == 1 and not verdict["reproduced"]
    different = {name for name, outcome in outcomes(verdict).items() if outcome == "differed"}
    assert "metric draw" in different and not different & {"metric accuracy", "data rows.parquet", "seed seed"}


def test_an_asset_runs_the_training_again_and_its_check_says_what_is_missing(project, trained, monkeypatch):
    monkeypatch.setenv("TEST_HOME", str(project.home))

    def evaluate(training: str):
        options = {"tracking_uri": project.uri, "repo": str(project.code), "variables": ["TEST_HOME"]}
        asset = reproduction_asset(training=training, environment="current", deps=["model"], **options)
        with dg.DagsterInstance.from_config(str(project.home / "dagster")) as instance:
            done = dg.materialize([asset], instance=instance)
        [event], [found] = done.asset_materializations_for_node("reproduction"), done.get_asset_check_evaluations()
        return {name: value.value for name, value in event.metadata.items()}, found

    metadata, found = evaluate("delay/1")
    assert found.passed and found.asset_check_key == dg.AssetCheckKey(dg.AssetKey("reproduction"), "reproducible")
    assert metadata["reproduce/run"] == trained["committed"] and metadata["reproduce/different"] == 0
    (project.home / "mlflow.db").rename(project.home / "away.db")
    metadata, gone = evaluate("delay/1")
    (project.home / "away.db").rename(project.home / "mlflow.db")
    assert not gone.passed and "is not on this machine" in (gone.description or "")
    assert metadata["reproduce/reproduced"] == 0


def test_a_model_is_named_by_version_and_alias(project, trained):
    MlflowResource(tracking_uri=project.uri).client().set_registered_model_alias("delay", "champion", "2")
    for name in ("delay/2", "delay@champion", f"mlflow:training_run:{trained['changed']}"):
        assert project.recipe(name).run.run_id == trained["changed"]
    versions = MlflowResource(tracking_uri=project.uri).client().search_model_versions("name='delay'")
    newest = project.recipe("delay").version
    assert newest and int(newest.version) == max(int(version.version) for version in versions)
    problems = {
        "delay@nobody": "no model 'delay' with an alias",
        "nobody": "nothing here is named",
        "0" * 32: "has no run",
    }
    for nobody, problem in problems.items():
        with pytest.raises(NotFoundError, match=problem):
            project.recipe(nobody)


def test_two_trainings_differ_in_what_was_changed_and_nothing_else(project, trained, cli):
    code, why = cli("--explain", trained["committed"], trained["changed"])
    causes = {(cause["kind"], cause["name"]): (cause["before"], cause["after"]) for cause in why["causes"]}
    assert code == 1
    assert causes.keys() == {
        ("code", "uncommitted changes"),
        ("data", "rows.parquet"),
        ("config", "strength"),
        ("params", "C"),
    }
    assert causes["params", "C"] == ("1.0", "0.5")
    assert {metric["name"] for metric in why["metrics"]} == {"late_share"}
    same = explain(*[project.recipe(trained["committed"])] * 2)
    assert not same.causes and not same.metrics and not same.unknown
    code, _ = cli("--explain", trained["committed"], trained["committed"])
    assert code == 0


def test_what_is_gone_is_named_and_nothing_is_run(project, trained, cli, tmp_path):
    whole = project.recipe(trained["changed"])
    assert whole.complete and {found.kind for found in whole.ingredients} == {
        "run", "code", "environment", "step", "data", "model"
    }  # fmt: skip

    def buckets(**options) -> dict[str, str]:
        recipe = find_recipe(trained["changed"], **{"at": project.uri, **options})
        assert not recipe.complete
        with pytest.raises(ReproductionError, match="cannot be run again"):
            rerun(recipe, tmp_path / "never")
        return {found.kind: found.bucket for found in recipe.ingredients if found.bucket != "accessible"}

    assert not (tmp_path / "never").exists()
    assert buckets(repo=tmp_path) == {"code": "inaccessible"}
    shutil.rmtree(project.home / "data" / ".dvc" / "cache", ignore_errors=True)
    (project.home / "remote").rename(project.home / "away")
    assert buckets() == {"data": "inaccessible"}
    (project.home / "away").rename(project.home / "remote")
    client = MlflowResource(tracking_uri=project.uri).client()
    kept = Path(str(client.get_run(trained["changed"]).info.artifact_uri).removeprefix("file://"), "code")
    for name, kind, bucket in (
        ("uncommitted.diff", "code", "deleted"),
        ("step.json", "step", "deleted"),
    ):
        (kept / name).rename(kept / f"{name}.away")
        assert buckets() == {kind: bucket, "run": "faulty"}
        (kept / f"{name}.away").rename(kept / name)
    (kept / "uncommitted.diff").write_text("something else")
    assert buckets() == {"code": "faulty", "run": "faulty"}
    code, told = cli(trained["changed"], "--dry-run")
    assert code == 1 and not told["complete"]
    (kept / "uncommitted.diff").write_bytes(whole.files["uncommitted.diff"])
    client.delete_run(trained["changed"])
    assert buckets() == {"run": "deleted"}
    client.restore_run(trained["changed"])
    assert project.recipe(trained["changed"]).complete


@pytest.mark.thorough
def test_a_training_set_whose_dataset_is_lost_is_made_again_by_feast(tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_HOME", str(tmp_path))
    project = Project(tmp_path, WITH_FEATURES)
    moments = pd.date_range("2024-01-01", periods=200, freq="h", tz="UTC").as_unit("us")
    times = pd.DataFrame({"user": 1, "event_timestamp": moments, "hour": [float(m.hour) for m in moments]})
    times.to_parquet(tmp_path / "clock.parquet", index=False)
    (tmp_path / "features").mkdir()
    for name, text in {"feature_store.yaml": SETTINGS, "definitions.py": DEFINITIONS}.items():
        (tmp_path / "features" / name).write_text(text.replace("HOME", str(tmp_path)))
    run = project.train()
    for folder in ("remote/files/md5", "data/.dvc/cache/files/md5"):
        stored = {file: file.read_bytes() for file in (tmp_path / folder).rglob("*") if file.is_file()}
        [lost] = [file for file, content in stored.items() if b"late" in content and b"hour" in content]
        lost.unlink()
    (tmp_path / "data" / "training_set.parquet").unlink()

    recipe = project.recipe(run)
    found = {i.kind: (i.bucket, i.needed) for i in recipe.ingredients}
    assert recipe.complete and found["data"] == ("deleted", False) and found["features"] == ("accessible", True)
    told: list[str] = []
    (tmp_path / "work").mkdir()
    verdict = rerun(recipe, tmp_path / "work", environment="current", variables=["TEST_HOME"], tell=told.append)
    assert verdict.reproduced, verdict.different
    assert any(line.startswith("data: feast rebuilds training_set") for line in told)
    (tmp_path / "clock.parquet").unlink()
    (tmp_path / "more").mkdir()
    with pytest.raises(ReproductionError, match=r"data of training_set are lost, and cannot be rebuilt: .*clock"):
        rerun(recipe, tmp_path / "more", environment="current", variables=["TEST_HOME"])


@pytest.mark.parametrize("asset", ["joined", "somewhere else"])
def test_a_lost_feature_store_is_not_needed_where_a_dataset_holds_the_training_set(asset):
    features = TrainingSet(
        feature_service="s", project="p", repo="/gone", registry_hash="r", entity_hash="e", dagster_asset="joined"
    )
    data = Dataset(path="joined.parquet", md5="0" * 32, repo="/data", dagster_asset=asset)
    run = TrainingRun(run_id="0" * 32, tracking_uri="sqlite:///m.db", upstream=(features.ref, data.ref))
    kept = [features.to_dict(), data.to_dict()]
    step = {"asset": "model", "partition": "", "reads": [{"asset": "joined", "loaded": True, "records": kept}]}
    tools = Tools(
        {
            "mlflow": Answers(Accessible(run), {"step.json": json.dumps(step).encode()}),
            "dvc": Answers(Accessible(data)),
            "feast": Answers(Inaccessible("the registry is gone")),
        }
    )
    found = {i.kind: i for i in find_recipe(run.run_id, at=run.tracking_uri, tools=tools).ingredients}
    assert found["features"].bucket == "inaccessible" and found["features"].needed == (asset != "joined")
    assert found["data"].name == "joined.parquet" and found["data"].needed


def test_a_lost_lock_file_is_not_needed_in_the_environment_at_hand():
    run = TrainingRun(run_id="0" * 32, tracking_uri="sqlite:///m.db", lock_hash="a" * 64)
    recipe = find_recipe(run.run_id, at=run.tracking_uri, tools=Tools({"mlflow": Answers(Accessible(run))}))
    assert "environment" in {ingredient.kind for ingredient in recipe.missing}
    assert "environment" not in {ingredient.kind for ingredient in recipe.in_environment("current").missing}


def test_a_step_that_is_damaged_is_said():
    run = TrainingRun(run_id="0" * 32, tracking_uri="sqlite:///m.db")
    tools = Tools({"mlflow": Answers(Accessible(run), {"step.json": b"{"})})
    with pytest.raises(ProvenanceError, match=r"code/step\.json of run 0+ is damaged"):
        find_recipe(run.run_id, at=run.tracking_uri, tools=tools)


def test_a_run_that_fails_now_says_what_it_said(project, trained, tmp_path, monkeypatch):
    monkeypatch.delenv("TEST_HOME", raising=False)
    recipe = project.recipe(trained["committed"])
    with pytest.raises(ReproductionError, match=r"(?s)fails when it is run again.*KeyError: 'TEST_HOME'"):
        rerun(recipe, tmp_path, environment="current")
    lock = b"no requirement at all ==\n"
    run = dataclasses.replace(recipe.run, lock_hash=hashlib.sha256(lock).hexdigest())
    broken = dataclasses.replace(recipe, run=run, files={**recipe.files, "requirements.lock": lock})
    (tmp_path / "other").mkdir()
    with pytest.raises(ReproductionError, match=r"cannot be installed from requirements\.lock"):
        rerun(broken, tmp_path / "other")
