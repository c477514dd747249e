"""MLflow keeps the contract of a tool that keeps runs."""

import dataclasses

import dagster as dg
import mlflow.sklearn as sklearn_flavor
import pandas as pd
import pytest
from mlflow.models import infer_signature
from sklearn.linear_model import LinearRegression

from dagster_mlops.mlflow import MlflowResource, training_asset
from dagster_mlops.mlflow.tool import MlflowTool
from dagster_mlops.provenance import Inaccessible, TrainingRun
from dagster_mlops.testing import check_runs, check_tool
from tests.support import known_warnings

pytestmark = [*known_warnings.MLFLOW, *known_warnings.DAGSTER_BETA]


@pytest.fixture(scope="module")
def present(tmp_path_factory):
    """The ref of a run that a training asset has logged, with a model."""
    folder = tmp_path_factory.mktemp("mlflow")

    @training_asset(name="model", experiment="delay", registered_model_name="delay")
    def model(context: dg.AssetExecutionContext) -> None:
        rows = pd.DataFrame({"hour": [0.0, 1.0]})
        fitted = LinearRegression().fit(rows, [0.0, 1.0])
        signature = infer_signature(rows, fitted.predict(rows))
        sklearn_flavor.log_model(
            fitted, name="model", signature=signature, input_example=rows, pip_requirements=["scikit-learn"]
        )

    resource = MlflowResource(tracking_uri=f"sqlite:///{folder}/mlflow.db", artifact_location=str(folder / "artifacts"))
    result = dg.materialize([model], resources={"mlflow": resource})
    [event] = result.asset_materializations_for_node("model")
    record = TrainingRun.from_metadata(event.metadata)
    assert record
    return record.ref


def test_mlflow_answers_as_a_tool_has_to(present):
    check_tool(MlflowTool(), name="mlflow", present=present, absent=dataclasses.replace(present, id="0" * 32))


def test_mlflow_gives_the_files_and_the_model_of_a_run_back(present):
    check_runs(MlflowTool(), present)


def test_a_model_on_a_server_that_is_down_is_inaccessible_not_faulty(present):
    unreachable = dataclasses.replace(present, at="http://127.0.0.1:1")
    assert isinstance(MlflowTool().find_model(unreachable), Inaccessible)
