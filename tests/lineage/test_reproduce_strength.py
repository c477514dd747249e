"""A verdict says on what it rests: a training that came out otherwise, or that cannot be told, is not reproduced."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest
from typer.testing import CliRunner

from dagster_mlops.cli import app
from dagster_mlops.core.commands import UNKNOWN
from dagster_mlops.lineage import reproduction_asset
from dagster_mlops.lineage.reproduction.comparison import Verdict
from dagster_mlops.lineage.reproduction.rerun import rerun
from dagster_mlops.mlflow import MlflowResource
from tests.support import known_warnings
from tests.support.training_project import Project

pytestmark = [
    pytest.mark.slow,
    pytest.mark.thorough,  # `test_verdict.py` has the parts of it
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("warm_tools"),
    *known_warnings.MLFLOW,
]

PIPELINE = """
import os, random
from pathlib import Path
import dagster as dg
import numpy as np
import pandas as pd
from dagster_mlops.dvc import DvcResource, dvc_io_manager
from dagster_mlops.mlflow import MlflowResource, training_asset
from dagster_mlops.mlflow.models import log_model

HOME = Path(os.environ["TEST_HOME"])

@dg.asset(io_manager_key="dvc_io_manager")
def rows() -> pd.DataFrame:
    drawn = np.random.default_rng(0)
    hours = drawn.uniform(0, 24, 400)
    # The first rows are easy, so that any two models agree on them.
    late = [int(hour > 12) if i < 20 else int(drawn.random() > 0.5) for i, hour in enumerate(hours)]
    return pd.DataFrame({"hour": hours, "late": late})

@dg.asset
def plain() -> None: ...

def training(**options):
    return training_asset(**options)

@training_asset(registered_model_name="forest")
def forest(rows: pd.DataFrame) -> None:
    import mlflow
    from mlflow.models import infer_signature
    from sklearn.ensemble import RandomForestClassifier
    model = RandomForestClassifier(5, random_state=int.from_bytes(os.urandom(4))).fit(rows[["hour"]], rows["late"])
    mlflow.sklearn.log_model(
        model, name="model", signature=infer_signature(rows[["hour"]].head(), [1]), input_example=rows[["hour"]].head(),
        serialization_format="cloudpickle", pip_requirements=[],
    )

@training_asset(registered_model_name="seeded")
def seeded(rows: pd.DataFrame) -> None:
    from sklearn.ensemble import RandomForestClassifier
    log_model(RandomForestClassifier(5, random_state=0).fit(rows[["hour"]], rows["late"]), rows[["hour"]])

@training_asset(registered_model_name="outside", deps=[plain])
def outside(rows: pd.DataFrame) -> None:
    import mlflow
    from sklearn.tree import DecisionTreeClassifier
    scale = pd.read_csv(HOME / "elsewhere.csv")["scale"][0] * float(os.environ.get("TEST_FACTOR", 1))
    mlflow.log_metric("scale", scale)
    log_model(DecisionTreeClassifier(random_state=0).fit(rows[["hour"]], rows["late"]), rows[["hour"]])

@training_asset(registered_model_name="cached")
def cached(rows: pd.DataFrame) -> None:
    import joblib
    from sklearn.linear_model import SGDClassifier
    fit = joblib.Memory(HOME / "cache", verbose=0).cache(fit_sgd)
    log_model(fit(rows[["hour"]], rows["late"]), rows[["hour"]])

def fit_sgd(X, y):
    from sklearn.linear_model import SGDClassifier
    return SGDClassifier(random_state=int.from_bytes(os.urandom(4))).fit(X, y)

@training_asset(registered_model_name="drawn")
def drawn(rows: pd.DataFrame) -> None:
    import mlflow
    import predictor
    mlflow.pyfunc.log_model(
        name="model", python_model=predictor.Drawn(), signature=mlflow.models.infer_signature(rows[["hour"]], [1.0]),
        input_example=rows[["hour"]].head(), code_paths=["predictor.py"], pip_requirements=[],
    )

@training_asset(registered_model_name="ruled")
def ruled(rows: pd.DataFrame) -> None:
    import mlflow
    import predictor
    folder = HOME / "made" / str(os.getpid())
    folder.mkdir(parents=True)
    (folder / "rules.py").write_text(f"SIGN = {int.from_bytes(os.urandom(4))}")
    (folder / "predictor.py").write_text(Path("predictor.py").read_text())
    mlflow.pyfunc.log_model(
        name="model", python_model=predictor.Ruled(), signature=mlflow.models.infer_signature(rows[["hour"]], [1.0]),
        input_example=rows[["hour"]].head(), pip_requirements=[],
        code_paths=[str(folder / "predictor.py"), str(folder / "rules.py")],
    )

@training_asset(registered_model_name="embedding")
def embedding(rows: pd.DataFrame) -> None:
    import mlflow
    import predictor
    mlflow.pyfunc.log_model(
        name="model", python_model=predictor.Embedding(int.from_bytes(os.urandom(4)) / 2**32),
        signature=mlflow.models.infer_signature(rows[["hour"]], [1.0]), input_example=rows[["hour"]].head(),
        code_paths=["predictor.py"], pip_requirements=[],
    )

@training_asset(registered_model_name="own_file")
def own_file() -> None:
    from sklearn.tree import DecisionTreeClassifier
    buns = pd.read_parquet("data/buns.parquet")
    log_model(DecisionTreeClassifier(random_state=0).fit(buns[["hour"]], buns["late"]), buns[["hour"]])

defs = dg.Definitions(
    assets=[rows, plain, forest, seeded, outside, cached, drawn, ruled, embedding, own_file],
    resources={
        "dvc": DvcResource(repo=str(HOME / "data"), remote_url=str(HOME / "remote")),
        "dvc_io_manager": dvc_io_manager,
        "mlflow": MlflowResource(tracking_uri=f"sqlite:///{HOME}/mlflow.db", experiment="delay"),
    },
)
"""
PREDICTOR = """
import mlflow.pyfunc
import numpy as np

class Drawn(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input):
        return model_input["hour"].to_numpy() + np.random.default_rng().normal(size=len(model_input))

class Ruled(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input):
        import rules
        return model_input["hour"].to_numpy() * rules.SIGN

class Embedding(mlflow.pyfunc.PythonModel):
    # The thousand numbers for a text differ in the middle only, of which numpy prints nothing.
    def __init__(self, middle):
        self.seed_text = str(middle)

    def predict(self, context, model_input):
        vectors = np.zeros((len(model_input), 1001))
        vectors[:, 500] = float(self.seed_text)
        return [vector for vector in vectors]
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Each asset is trained once, all in one process; `data/buns.parquet` is a file that the checkout's DVC tracks."""
    project = Project(tmp_path_factory.mktemp("project"), PIPELINE)
    (project.code / "predictor.py").write_text(PREDICTOR)
    (project.code / "data").mkdir()
    frame = pd.DataFrame({"hour": [float(i % 24) for i in range(200)], "late": [int(i % 24 > 12) for i in range(200)]})
    frame.to_parquet(project.code / "data" / "buns.parquet")
    for command in (["init", "-q"], ["config", "core.analytics", "false"], ["add", "-q", "data/buns.parquet"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], cwd=project.code, check=True, capture_output=True)
    project.commit()
    (project.home / "elsewhere.csv").write_text("scale\n2\n")
    config = {"execution": {"config": {"in_process": {}}}}
    command = ("-m", "dagster", "asset", "materialize", "-f", "pipeline.py", "--select", "*")
    project.python(*command, "--config-json", json.dumps(config))
    return project


@pytest.fixture
def judged(project, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_HOME", str(project.home))

    def judge(model: str, **options: Any) -> Verdict:
        folder = tmp_path / "work"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return rerun(project.recipe(f"{model}/1"), folder, environment="current", variables=["TEST_*"], **options)

    return judge


def outcomes(verdict: Verdict) -> dict[str, tuple[str, str]]:
    return {f"{f.kind} {f.name}": (f.outcome, f.after) for f in verdict.findings}


def test_a_seeded_forest_is_reproduced_on_rows_of_its_training_set_and_on_what_it_has_learned(judged):
    verdict = judged("seeded")
    found = outcomes(verdict)
    assert verdict.strength == "reproduced" and verdict.reproduced, verdict.different
    assert found["model predictions for 400 rows"] == ("matched", "largest difference 0 (training input)")
    assert any(name.endswith("learned values") for name in found) and "learned values" in verdict.evidence


def test_a_forest_without_a_seed_is_not_the_same_although_it_agrees_on_its_input_example(judged):
    verdict = judged("forest")
    assert verdict.strength == "not the same"
    assert {f.name for f in verdict.findings if f.outcome == "differed" and f.decides} == {
        "predictions for 400 rows",
        "learned values",
    }


def test_what_nobody_versions_leaves_the_verdict_open(project, judged, monkeypatch):
    monkeypatch.setenv("TEST_HOME", str(project.home))
    elsewhere = project.home / "elsewhere.csv"
    verdict = judged("outside")
    assert verdict.strength == "too little to tell" and not verdict.reproduced
    assert set(verdict.unknown) == {"data asset plain", f"data file {elsewhere}"}
    recipe = project.recipe("outside/1")
    assert recipe.complete and {part.name for part in recipe.unknown} == {"asset plain", f"file {elsewhere}"}
    arguments = ["reproduce", "outside/1", "--at", project.uri]
    shown = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert shown.exit_code == UNKNOWN and "nothing versions asset plain" in " ".join(shown.stdout.split())
    monkeypatch.setenv("TEST_FACTOR", "1.0")
    elsewhere.write_text("scale\n3\n")
    shown = CliRunner().invoke(app, [*arguments, "--environment", "current", "--env", "TEST_*", "--json"])
    elsewhere.write_text("scale\n2\n")
    result = json.loads(shown.stdout)
    differed = {f"{f['kind']} {f['name']}" for f in result["findings"] if f["outcome"] == "differed"}
    assert shown.exit_code == 1 and result["strength"] == "not the same"
    assert {f"data file {elsewhere}", "metric scale", "environment variable TEST_FACTOR"} <= differed


def test_the_check_of_the_asset_warns_where_it_is_too_little_to_tell(project, monkeypatch):
    monkeypatch.setenv("TEST_HOME", str(project.home))
    asset = reproduction_asset(
        training="outside/1", environment="current", tracking_uri=project.uri, branches=None, variables=["TEST_*"]
    )
    done = dg.materialize([asset])
    [event], [check] = done.asset_materializations_for_node("reproduction"), done.get_asset_check_evaluations()
    assert not check.passed and check.severity == dg.AssetCheckSeverity.WARN
    assert "too little to tell: data asset plain" in (check.description or "")
    assert event.metadata["reproduce/verdict"].value == "too little to tell"


def test_a_training_that_takes_its_model_from_a_cache_is_not_reproduced(project, judged):
    verdict = judged("cached")
    assert verdict.strength == "too little to tell"
    assert any(name.startswith(f"data file {project.home / 'cache'}") for name in verdict.unknown)
    shutil.rmtree(project.home / "cache")
    assert judged("cached").strength == "not the same"


def test_a_model_with_the_same_files_is_the_same_model_although_its_answers_are_drawn(judged):
    verdict = judged("drawn")
    found = outcomes(verdict)
    assert verdict.strength == "reproduced" and verdict.evidence == "files", verdict.different
    assert found["model predictions for 400 rows"][1].startswith("drawn anew at each call")


def test_each_of_two_models_is_judged_with_its_own_code(judged):
    verdict = judged("ruled")
    assert "model predictions for 400 rows" in verdict.different and verdict.strength == "not the same"


def test_arrays_are_compared_element_by_element(judged):
    verdict = judged("embedding")
    assert "model predictions for 400 rows" in verdict.different and verdict.strength == "not the same"


def test_a_file_in_the_checkout_that_dvc_tracks_is_restored_as_its_commit_tracks_it(project, judged):
    recipe = project.recipe("own_file/1")
    data = {part.name: part.bucket for part in recipe.ingredients if part.kind == "data"}
    assert recipe.complete and data == {"file data/buns.parquet": "accessible"}
    frame = pd.read_parquet(project.code / "data" / "buns.parquet")
    os.chmod(project.code / "data" / "buns.parquet", 0o644)
    frame.assign(late=0).to_parquet(project.code / "data" / "buns.parquet")  # six months later
    verdict = judged("own_file")
    assert verdict.strength == "reproduced", verdict.different
    assert outcomes(verdict)["data file data/buns.parquet"][0] == "matched"
    shutil.rmtree(project.code / ".dvc" / "cache")
    [lost] = project.recipe("own_file/1").missing
    assert (lost.name, lost.bucket) == ("file data/buns.parquet", "deleted")


def test_a_model_that_was_written_over_is_found_before_anything_runs(project):
    client = MlflowResource(tracking_uri=project.uri).client()
    run = client.get_run(client.get_model_version("forest", "1").run_id or "")
    [model] = client.search_logged_models([run.info.experiment_id], f"source_run_id='{run.info.run_id}'")
    file = Path(str(model.artifact_location).removeprefix("file://"), "model.pkl")
    before = file.read_bytes()
    file.write_bytes(before + b"another model")
    try:
        [missing] = project.recipe("forest/1").missing
    finally:
        file.write_bytes(before)
    assert (missing.kind, missing.bucket) == ("model", "faulty") and "someone changed" in missing.reason
