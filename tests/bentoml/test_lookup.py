"""A bento that reads features from Feast: built, verified against Feast's own answers, and asked by keys."""

import importlib
from pathlib import Path
from typing import Any

import cloudpickle
import dagster as dg
import httpx
import mlflow
import pandas as pd
import pytest
from mlflow.models import infer_signature

from dagster_mlops.bentoml import BentomlResource, bento_asset, deployment_asset
from dagster_mlops.errors import DeploymentError
from dagster_mlops.provenance import ModelVersion, Package
from dagster_mlops.serving import PredictionLog, stop
from dagster_mlops.serving.local.processes import free_port, marked
from tests.feast.test_lookup import Rides
from tests.support import known_warnings

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.usefixtures("warm_tools"),
    *known_warnings.DEPRECATED,
    *known_warnings.UNCLOSED,
    *known_warnings.FEAST_EXPERIMENTAL,
    *known_warnings.MLFLOW,
    *known_warnings.MLFLOW_HINTS,
    *known_warnings.DAGSTER_BETA,
    pytest.mark.filterwarnings("ignore:.*type hint"),
]
FEATURES = pd.DataFrame({"temp": [1.0, 2.0], "rate": [0.5, 0.25], "done": [3, 4], "active": [1.0, 0.0]})


def log_model(root: Path, uri: str) -> str:
    module = importlib.import_module("tests.support.pyfuncs")  # its import warns
    cloudpickle.register_pickle_by_value(module)  # a server does not have it
    mlflow.set_tracking_uri(uri)
    experiment = mlflow.create_experiment("rides", artifact_location=f"file://{root}/artifacts")
    with mlflow.start_run(experiment_id=experiment) as run:
        info = mlflow.pyfunc.log_model(
            name="model", python_model=module.Features(), signature=infer_signature(FEATURES), pip_requirements=[],
            input_example=FEATURES,
        )  # fmt: skip
    cloudpickle.unregister_pickle_by_value(module)
    mlflow.register_model(info.model_uri, "rides")
    mlflow.set_tracking_uri(None)  # pyright: ignore[reportArgumentType] - an address would stay in the environment
    return run.info.run_id


def test_a_deployment_answers_for_keys_with_the_features_of_feast(tmp_path):
    rides, uri, port = Rides(tmp_path), f"sqlite:///{tmp_path}/mlflow.db", free_port()
    run = log_model(tmp_path, uri)
    golden_rows = pd.concat([FEATURES.assign(driver_id=[1, 2], city_id="a")] * 3)

    @dg.asset
    def champion() -> dg.MaterializeResult:
        record = ModelVersion(name="rides", version="1", run_id=run, tracking_uri=uri)
        return dg.MaterializeResult(metadata=record.to_metadata())

    @dg.asset
    def golden() -> pd.DataFrame:
        return golden_rows

    bento = bento_asset(promoted=champion, lookup=rides.lookup())
    state_dir = tmp_path / "serving"
    deployment = deployment_asset(bento=bento, golden_set=golden, state_dir=state_dir, port=port, replicas=1)
    resource = BentomlResource(home=str(tmp_path / "bentoml"), tracking_uri=uri, allow_pickle=True)

    with dg.DagsterInstance.ephemeral() as instance:

        def materialize(*names: str) -> dg.ExecuteInProcessResult:
            assets: Any = [champion, golden, bento, deployment]
            options: Any = {"selection": list(names)} if names else {}
            return dg.materialize(assets, resources={"bentoml": resource}, instance=instance, **options)

        assert materialize("champion", "bento", "golden").success
        event: Any = instance.get_latest_materialization_event(dg.AssetKey("bento"))
        package = Package.from_metadata(event.asset_materialization.metadata)
        assert package
        source = tmp_path / "bentoml" / "bentos" / package.tag.replace(":", "/") / "src" / "dagster_mlops_serving"
        assert "dagster-mlops[feast]==" in (source.parents[1] / "env" / "python" / "requirements.txt").read_text()
        file, old = source / "lookup.py", "rows.append({name: self._value(name, value)"
        text = file.read_text()
        file.write_text(text.replace(old, "rows.append({name: 0.5 if name == 'temp' else self._value(name, value)"))
        assert file.read_text() != text
        with pytest.raises(DeploymentError, match="entities of the golden set differ"):
            materialize("golden", "deployment")
        assert not marked(state_dir)
        file.write_text(text)
        try:
            assert materialize("golden", "deployment").success
            url = f"http://127.0.0.1:{port}/predict"
            body = {"entities": [{"driver_id": 1, "city_id": "a"}]}
            answer = httpx.post(url, json=body, headers={"x-request-id": "keyed"}, timeout=10).json()
            expected = {"temp": 10.0, "rate": 0.1, "done": 2**40, "active": 1.0}
            assert answer["predictions"] == [expected]
            logged = PredictionLog.find(state_dir / "predictions", "keyed")
            assert logged and logged["inputs"] == {**expected, "driver_id": 1, "city_id": "a"}
            assert httpx.post(url, json={"entities": [{"driver_id": 7, "city_id": "a"}]}, timeout=10).status_code == 422
        finally:
            stop(state_dir)
