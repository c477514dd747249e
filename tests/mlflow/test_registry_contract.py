"""MLflow's registry keeps the contract that promotion and evaluation rely on."""

import shutil

import mlflow
import mlflow.sklearn as sklearn_flavor
import pandas as pd
from mlflow.models import infer_signature
from sklearn.linear_model import LogisticRegression

from dagster_mlops.mlflow import MlflowResource
from dagster_mlops.testing import check_registry
from tests.support import known_warnings

pytestmark = [*known_warnings.MLFLOW]


def test_mlflow_keeps_the_contract_of_a_registry(tmp_path, empty_database, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    resource = MlflowResource(tracking_uri=f"sqlite:///{shutil.copy(empty_database, tmp_path)}")
    rows = pd.DataFrame({"hour": [1.0, 5.0, 18.0, 22.0]})
    for auc in (0.7, 0.8):
        with resource.activate(), mlflow.start_run():
            model = LogisticRegression().fit(rows, [0, 0, 1, 1])
            mlflow.log_metric("auc", auc)
            info = sklearn_flavor.log_model(
                model,
                name="model",
                signature=infer_signature(rows, model.predict(rows)),
                pip_requirements=["scikit-learn"],
                serialization_format="skops",
            )
            mlflow.register_model(info.model_uri, "churn")
    check_registry(resource, model="churn", worse="1", better="2", metric="auc", atomic=False)


def test_a_rival_in_mlflow_that_moved_first_is_seen(tmp_path, empty_database):
    resource = MlflowResource(tracking_uri=f"sqlite:///{shutil.copy(empty_database, tmp_path)}")
    client = resource.client()
    client.create_registered_model("churn")
    for _ in range(2):
        client.create_model_version("churn", "/models/by-hand")
    with resource.models() as models:
        assert models.move("churn", "champion", "1", expected="")
        assert not models.move("churn", "champion", "2", expected="")
        assert models.version("churn", "@champion").version == "1"
