"""What a first day runs into: misspelt names, tools that are missing, files that nobody asked for."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from dagster_mlops.bentoml import BentomlResource, bento_asset
from dagster_mlops.core import validate_asset_names
from dagster_mlops.core.code_state import code_state
from dagster_mlops.errors import DagsterMlopsError
from dagster_mlops.evaluation import evaluation_checks
from dagster_mlops.evidently import EvidentlyResource, drift_check
from dagster_mlops.lineage.reproduction import environment
from dagster_mlops.lineage.reproduction.recipe import _environment, _step
from dagster_mlops.mlflow import MlflowResource, metric_checks, promotion_asset
from dagster_mlops.provenance import TrainingRun
from tests.support import known_warnings

pytestmark = [*known_warnings.MLFLOW, *known_warnings.DAGSTER_BETA]


@dg.asset
def rain_model() -> None: ...


@dg.asset
def rain_features() -> None: ...


MISSPELT = {
    "promotion": promotion_asset(
        name="champion", candidate="rain_modell", registered_model_name="rain", metric="auc", registry="mlflow"
    ),
    "bento": bento_asset(promoted="rain_modle"),
}


@pytest.mark.parametrize("what", MISSPELT)
def test_a_misspelt_asset_is_told_the_one_that_is_meant(what):
    resources = {"mlflow": MlflowResource(), "bentoml": BentomlResource(tracking_uri="sqlite:///m.db")}
    result = dg.materialize([rain_model, rain_features, MISSPELT[what]], resources=resources, raise_on_error=False)
    errors = [e.step_failure_data.error.to_string() for e in result.all_events if e.is_step_failure]  # pyright: ignore[reportOptionalMemberAccess]
    [told] = errors
    assert "Did you mean rain_model?" in told and "Materialize it first" not in told


def test_an_asset_that_is_only_not_made_yet_is_no_misspelling():
    champion = promotion_asset(name="champion", candidate="rain_model", registered_model_name="rain", metric="auc")
    result = dg.materialize(
        [rain_model, champion], selection=["champion"], resources={"mlflow": MlflowResource()}, raise_on_error=False
    )
    [error] = [e.step_failure_data.error.to_string() for e in result.all_events if e.is_step_failure]  # pyright: ignore[reportOptionalMemberAccess]
    assert "Did you mean" not in error and "Materialize a training_asset" in error


@dg.asset(deps=[dg.AssetKey(["lake", "flights"])])
def forecast() -> None: ...


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"assets": [MISSPELT["promotion"]]}, "rain_modell, which asset champion names. Did you mean rain_model?"),
        ({"assets": [MISSPELT["bento"]]}, "rain_modle, which asset bento names. Did you mean rain_model?"),
        (
            {"asset_checks": metric_checks(asset="rainmodel", bounds={"auc": 0.7})},
            "rainmodel, which check metric_auc names",
        ),
        (
            {"asset_checks": evaluation_checks(evaluation="rain", bounds={"auc": 0.7})},
            "rain, which check metric_auc names",
        ),
        (
            {"asset_checks": [drift_check(asset="rain_model", reference="rain_feature")]},
            "rain_feature, which check drift",
        ),
        ({"assets": [forecast]}, "lake/flights, which asset forecast names."),
    ],
)
def test_definitions_that_name_an_asset_that_is_not_there_are_refused_when_they_load(wrong, says):
    assets = [rain_model, rain_features, *wrong.get("assets", ())]
    defs = dg.Definitions(assets=assets, asset_checks=wrong.get("asset_checks", ()))
    with pytest.raises(dg.DagsterInvalidDefinitionError, match=re.escape(says)):
        validate_asset_names(defs)


def test_assets_of_other_code_locations_are_named_or_declared():
    assets = [rain_model, rain_features, forecast]
    assert validate_asset_names(dg.Definitions(assets=assets), elsewhere=["lake/flights"]).assets
    assert validate_asset_names(dg.Definitions(assets=[*assets, dg.AssetSpec(dg.AssetKey(["lake", "flights"]))])).assets


@pytest.mark.parametrize("is_committed", [False, True])
def test_definitions_outside_of_git_can_be_run_again_once_they_are_committed(is_committed):
    step = {"asset": "rain_model", "partition": None, "location": {"python_file": "/home/ann/definitions.py"}}
    part = _step(step, "", None, is_committed=is_committed)
    assert part.bucket == "faulty" and ("commit it, and train again" in part.reason) is not is_committed


def test_what_is_kept_by_default_is_in_one_folder_that_git_ignores(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    subprocess.run(["git", "-C", tmp_path, "commit", "-q", "--allow-empty", "-m", "Begin"], check=True)
    (tmp_path / "user.py").touch()
    subprocess.run(["git", "-C", tmp_path, "add", "user.py"], check=True)
    subprocess.run(["git", "-C", tmp_path, "commit", "-q", "-m", "Code"], check=True)
    client = MlflowResource().client()
    run = client.create_run("0")
    client.log_text(run.info.run_id, "a model", "model.txt")
    page = "<html><head></head><script>var a = {}; var additional_graphs_a = {};</script></html>"
    snapshot: Any = type("Snapshot", (), {"get_html_str": lambda *_, **__: page, "json": lambda _: "{}"})()
    EvidentlyResource().save(snapshot, folder="drift", name="1")
    assert {path.name for path in tmp_path.iterdir()} == {".git", ".dagster_mlops", "user.py"}
    state = code_state(tmp_path / "user.py")
    assert state.commit and not state.dirty_hash and not state.left_out


def test_the_server_of_the_environment_is_the_default(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert MlflowResource().uri == "http://mlflow:5000"
    assert MlflowResource(tracking_uri="http://other:5000").uri == "http://other:5000"


def test_a_missing_installer_is_said_before_anything_runs(monkeypatch, tmp_path):
    run, files = (
        TrainingRun(run_id="r", tracking_uri="sqlite:///m.db", python="3.11.7"),
        {"environment.txt": b"pandas==2"},
    )
    assert _environment(run, files, None).bucket == "accessible"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = _environment(run, files, None)
    assert missing.bucket == "inaccessible" and "pip install uv" in missing.reason and missing.needed
    with pytest.raises(DagsterMlopsError, match="pip install uv"):
        environment.install("environment.txt", b"", python="3.11", folder=tmp_path / "env", code=Path.cwd())


def test_a_bento_is_built_where_pip_is_not_installed():
    # https://github.com/bentoml/BentoML/blob/v1.4.39/src/bentoml/_internal/configuration/__init__.py#L232
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert any(line.startswith("uv>=") for line in extras["bentoml"])
