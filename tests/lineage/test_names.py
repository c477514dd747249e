"""One way of naming a model, a run or a prediction for every command, and what was never kept is said to be unknown."""

import dataclasses
import importlib.util
import json
import os
import subprocess
from pathlib import Path

import dagster as dg
import pytest
from typer.testing import CliRunner

from dagster_mlops import cli
from dagster_mlops.core.code_state import code_state
from dagster_mlops.core.commands import COMPLETE, INCOMPLETE, USAGE
from dagster_mlops.core.files import own_folder
from dagster_mlops.lineage import EventLog, status, trace
from dagster_mlops.lineage.chain.names import find_ref
from dagster_mlops.mlflow import MlflowResource
from dagster_mlops.mlflow.server.connection import connect
from dagster_mlops.provenance import Deployment, FeatureView, ModelVersion, Package, Record, Ref, TrainingRun
from tests.support import known_warnings

pytestmark = [*known_warnings.MLFLOW, *known_warnings.DAGSTER_BETA]


EXAMPLE = """
import dagster as dg
import mlflow
import pandas as pd
from dagster_mlops.mlflow import promotion_asset, training_asset
from dagster_mlops.mlflow.models import log_model
from sklearn.linear_model import LogisticRegression


@dg.asset
def visits() -> pd.DataFrame:
    return pd.DataFrame({"pages": range(40), "churned": [0, 1] * 20})


@training_asset(registered_model_name="churn", seed=7)
def churn_model(visits: pd.DataFrame) -> None:
    features = visits[["pages"]]
    mlflow.log_metric("auc", 0.75)
    log_model(LogisticRegression().fit(features, visits["churned"]), features)


champion = promotion_asset(name="champion", candidate=churn_model.key, registered_model_name="churn", metric="auc")
"""


class World:
    """MLflow and Dagster after the README's example ran outside of git, with a plain asset as training data."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        self.home.mkdir()
        (self.home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
        (folder / "example.py").write_text(EXAMPLE)
        spec = importlib.util.spec_from_file_location("names_example", folder / "example.py")
        assert spec and spec.loader
        example = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(example)
        assets = [example.visits, example.churn_model, example.champion]
        resources = {"mlflow": MlflowResource(tracking_uri=self.uri)}
        with dg.DagsterInstance.from_config(str(self.home)) as instance:
            assert dg.materialize(assets, instance=instance, resources=resources).success
            event = instance.get_latest_materialization_event(example.churn_model.key)
        assert event and event.asset_materialization
        record = TrainingRun.from_metadata(event.asset_materialization.metadata)
        assert record
        self.run_id = record.run_id

    def trace(self, *arguments: str) -> tuple[int, dict]:
        done = CliRunner().invoke(cli.app, ["trace", *arguments, "--json", "--dagster-home", str(self.home)])
        assert done.stdout, done.output
        return done.exit_code, json.loads(done.stdout)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def test_what_was_never_kept_is_unknown_and_the_chain_is_not_complete(world):
    code, chain = world.trace("churn@champion")
    assert code == INCOMPLETE and chain["complete"] is False
    found = {(link["ref"]["role"], link["bucket"]): link["reason"] for link in chain["links"]}
    assert {key for key in found if key[1] != "accessible"} == {("asset", "unknown"), ("commit", "unknown")}
    assert "git" in found["commit", "unknown"] and "IO manager" in found["asset", "unknown"]
    shown = CliRunner().invoke(cli.app, ["trace", "churn@champion", "--dagster-home", str(world.home)])
    assert "visits UNKNOWN" in shown.stdout and "not complete: of 4 links 2 accessible, 2 unknown" in shown.stdout
    assert "DELETED" not in shown.stdout


@pytest.mark.parametrize(
    ("role", "made_of"),
    [
        (FeatureView(name="v", project="p", repo="/r", version="1"), "dataset"),
        (Package(tag="t:1", home="/h", model_name="m", model_version="1"), "model_version"),
        (ModelVersion(name="m", version="1", tracking_uri="sqlite:///x"), "training_run"),
    ],
)
def test_what_must_have_been_made_from_something_names_what_is_on_no_record(role: Record, made_of: str):
    with dg.DagsterInstance.ephemeral() as instance:
        instance.report_runless_asset_event(dg.AssetMaterialization("a", metadata=role.to_metadata()))
        [_, unknown] = trace(role.ref, tools={}, instance=instance).walk()
    assert (unknown.bucket, unknown.ref.role) == ("unknown", made_of) and unknown.reason


NAMES = [
    "churn@champion",
    "churn/1",
    "churn",
    "models:/churn@champion",
    "models:/churn/1",
    "mlflow:model_version:churn/1",
]
NAMES += ["mlflow:model_version:churn@champion", "mlflow:model_version:churn"]


@pytest.mark.parametrize("name", NAMES)
def test_a_model_has_the_same_names_for_every_command(world, name):
    _, chain = world.trace(name)
    assert chain["ref"] == Ref("mlflow", "model_version", "churn/1", at=world.uri).to_dict()
    done = CliRunner().invoke(cli.app, ["reproduce", name, "--dry-run", "--json", "--dagster-home", str(world.home)])
    assert json.loads(done.stdout)["run"]["run_id"] == world.run_id


def test_a_rerun_that_is_impossible_says_so_and_what_to_do(world, monkeypatch):
    monkeypatch.setattr("dagster_mlops.lineage.reproduction.recipe.find_uv", lambda: None)
    arguments = ["reproduce", "churn@champion", "--environment", "current", "--dagster-home", str(world.home)]
    done = CliRunner().invoke(cli.app, arguments)
    shown = " ".join(done.stdout.split())
    assert done.exit_code == INCOMPLETE and "It cannot be run again: of 5 ingredients, 3 unknown." in shown
    assert "Commit it, and train again." in shown and "pip install uv" not in shown, "the current one needs no uv"


def test_a_run_is_named_by_its_id(world):
    _, chain = world.trace(world.run_id)
    assert chain["ref"]["id"] == world.run_id and chain["links"][0]["bucket"] == "accessible"


def test_what_the_pages_of_dagster_and_mlflow_show_can_be_pasted(world):
    with dg.DagsterInstance.from_config(str(world.home)) as instance:
        [dagster_run] = [run.run_id for run in instance.get_runs()]
        version, run = (Ref("mlflow", role, id, at=world.uri) for role, id in _version_and_run(world))
        names = {
            "churn_model": version,
            "http://localhost:3000/assets/churn_model?view=lineage": version,
            "http://localhost:5000/#/models/churn/versions/1": version,
            dagster_run: version,
            dagster_run[:8]: version,
            f"http://localhost:3000/runs/{dagster_run}?selection=x": version,
            f"http://localhost:5000/#/experiments/1/runs/{world.run_id}": run,
            f"http://localhost:5000/#/experiments/1/runs/{world.run_id}/artifacts": run,
            f"runs:/{world.run_id}/model": run,
            world.run_id[:12]: run,
        }
        assert {name: find_ref(name, events=EventLog(instance)) for name in names} == names


def _version_and_run(world: World) -> list[tuple[str, str]]:
    return [("model_version", "churn/1"), ("training_run", world.run_id)]


@pytest.mark.parametrize("name", ["churn@champion", "churn/1"])
def test_without_dagster_the_address_of_mlflow_is_enough(world, name, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", world.uri)
    assert find_ref(name) == Ref("mlflow", "model_version", "churn/1", at=world.uri)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert find_ref(name, at=world.uri) == Ref("mlflow", "model_version", "churn/1", at=world.uri)


@pytest.mark.parametrize("command", ["trace", "reproduce"])
@pytest.mark.parametrize("name", ["foo/1", "foo@champion", "foo", "0a1b2c3"])
def test_an_unknown_name_is_told_what_is_known_and_not_to_set_what_is_set(world, command, name, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(world.home))
    done = CliRunner().invoke(cli.app, [command, name])
    assert done.exit_code == USAGE
    assert name in done.stderr and "models churn" in done.stderr and "--at" in done.stderr
    assert "DAGSTER_HOME" not in done.stderr


def test_the_champion_of_a_registry_that_is_down_is_the_last_on_record(world, tmp_path):
    database = world.folder / "mlflow.db"
    database.rename(tmp_path / "away.db")
    try:
        code, chain = world.trace("churn@champion")
    finally:
        (tmp_path / "away.db").rename(database)
    assert code == INCOMPLETE and chain["ref"]["id"] == "churn/1"
    assert chain["links"][0]["bucket"] == "inaccessible" and chain["links"][0]["source"] == "dagster"


def test_status_names_the_champion_where_nothing_serves_it(world):
    done = CliRunner().invoke(cli.app, ["status", "--dagster-home", str(world.home)])
    assert done.exit_code == COMPLETE, done.output
    assert "churn/1 (champion)" in done.stdout and "auc 0.75" in done.stdout
    [promoted] = json.loads(
        CliRunner().invoke(cli.app, ["status", "--json", "--dagster-home", str(world.home)]).stdout
    )["promoted"]
    assert promoted["alias"] == "champion" and promoted["training_run"]["run_id"] == world.run_id


VERSION = "5d41402abc4b2a76b9719d911017c592"


@pytest.mark.parametrize("pasted", [VERSION, VERSION[:16], VERSION[:7]])
@pytest.mark.parametrize("form", ["{}", "feast:feature_view:flights/weather@{}"])
def test_a_version_that_dagsters_ui_shows_can_be_pasted(pasted, form):
    view = FeatureView(name="weather", project="flights", repo="/features", version=VERSION)
    later = FeatureView(name="weather", project="flights", repo="/features", version="0" * 32)
    with dg.DagsterInstance.ephemeral() as instance:
        for record in (view, later):
            instance.report_runless_asset_event(dg.AssetMaterialization("weather", metadata=record.to_metadata()))
        assert find_ref(form.format(pasted), events=EventLog(instance)) == view.ref


def test_a_data_version_leads_to_what_was_made_with_it():
    view = FeatureView(name="weather", project="flights", repo="/features", version=VERSION)
    with dg.DagsterInstance.ephemeral() as instance:
        tags = {"dagster/data_version": "fedcba9876543210"}
        instance.report_runless_asset_event(dg.AssetMaterialization("w", metadata=view.to_metadata(), tags=tags))
        assert find_ref("fedcba9876543210", events=EventLog(instance)) == view.ref


def test_two_deployments_of_one_name_in_two_places_are_both_shown():
    live = Deployment(
        name="churn",
        id="d",
        package="churn:1",
        model_name="churn",
        model_version="1",
        url="http://127.0.0.1:9",
        state_dir="/",
        prediction_log="/log",
    )
    with dg.DagsterInstance.ephemeral() as instance:
        for n, place in enumerate(("/a", "/b", "/a")):
            record = dataclasses.replace(live, state_dir=place, id=f"d{n}")
            instance.report_runless_asset_event(dg.AssetMaterialization(f"x{n}", metadata=record.to_metadata()))
        shown = {(each.deployment.state_dir, each.deployment.id) for each in status(instance).production}
    assert shown == {("/a", "d2"), ("/b", "d1")}


def test_the_command_finds_what_the_project_says(world, tmp_path, monkeypatch):
    """As `dg` does: the project around the working directory, and its .env file."""
    (tmp_path / "pyproject.toml").write_text("[tool.dg]\ndirectory_type = 'project'\n")
    (tmp_path / ".env").write_text(f"DAGSTER_HOME={world.home}\n")
    (tmp_path / "src" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "src" / "deep")
    monkeypatch.setenv("DAGSTER_HOME", "")
    monkeypatch.delenv("DAGSTER_HOME")
    assert "churn/1" in CliRunner().invoke(cli.app, ["status"]).stdout
    os.environ.pop("DAGSTER_HOME", None)
    (tmp_path / ".env").unlink()
    assert CliRunner().invoke(cli.app, ["status"]).exit_code == USAGE
    (tmp_path / ".tmp_dagster_home_x").symlink_to(world.home)  # of a `dg dev` that runs without DAGSTER_HOME
    assert "churn/1" in CliRunner().invoke(cli.app, ["status"]).stdout


def test_what_the_plugins_write_is_not_the_users_code(tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    subprocess.run(["git", "-C", tmp_path, "commit", "-q", "--allow-empty", "-m", "Begin"], check=True)
    connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (tmp_path / "mlflow.db-wal").write_bytes(b"what SQLite writes beside it")
    (tmp_path / "mlartifacts" / "model.pkl").write_bytes(b"model")
    (own_folder(tmp_path / "state" / "reports") / "drift.html").write_text("<html>")
    assert code_state(tmp_path / "model.py").dirty_hash == ""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "code.py").write_text("x = 1\n")
    own_folder(tmp_path / "kept")
    assert b"kept/code.py" in code_state(tmp_path / "model.py").diff
