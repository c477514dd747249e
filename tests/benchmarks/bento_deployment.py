"""A bento of a model that sleeps or hangs as a row says, and its deployment without Dagster around each rollout."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import mlflow
import pandas as pd
from mlflow.models import infer_signature
from mlflow.pyfunc.model import PythonModel

from dagster_mlops.bentoml import BentomlResource, bento_asset
from dagster_mlops.provenance import ModelVersion, Package, Record
from dagster_mlops.serving.golden.golden_set import Golden
from dagster_mlops.serving.local.blue_green import Plan
from dagster_mlops.serving.packager import ServerSettings
from tests.support.small_packages import Deployment

HANG = 10_000.0  # seconds of a row
THREADS, REQUEST_TIMEOUT = 32, 32.0


def sleeper() -> Any:
    """A model whose class is pickled whole, because the server does not have this file."""

    class Sleeper(PythonModel):
        """Twice the `x` of each row, after its `seconds`."""

        def predict(self, context: Any, model_input: Any, params: dict[str, Any] | None = None) -> Any:
            time.sleep(float(model_input.seconds.max()))
            return model_input.x * 2

    return Sleeper()


class BentoDeployment(Deployment):
    """Rollouts of one bento: each `version` is another environment of its servers."""

    def __init__(self, state_dir: Path, port: int = 0) -> None:
        super().__init__(state_dir, port, request_timeout=REQUEST_TIMEOUT)
        place = self.state_dir.parent
        self._resource = BentomlResource(home=str(place / "home"), tracking_uri=f"sqlite:///{place}/mlflow.db")
        record = Record.from_dict(json.loads((place / "package.json").read_text()))
        assert isinstance(record, Package)
        self._package = record

    @classmethod
    def built(cls, place: Path) -> "BentoDeployment":
        """The deployment of a bento that is built in a folder."""
        uri = f"sqlite:///{place}/mlflow.db"
        mlflow.set_tracking_uri(uri)
        mlflow.create_experiment("small", artifact_location=f"file://{place}/artifacts")
        mlflow.set_experiment("small")
        rows = pd.DataFrame({"x": [1.0, 2.0, 3.0], "seconds": [0.0, 0.0, 0.0]})
        with mlflow.start_run():
            mlflow.pyfunc.log_model(
                name="model",
                python_model=sleeper(),
                signature=infer_signature(rows, rows.x * 2),
                input_example=rows,
                pip_requirements=["pandas"],
                registered_model_name="small",
            )

        @dg.asset
        def champion() -> dg.MaterializeResult:
            return dg.MaterializeResult(
                metadata=ModelVersion(name="small", version="1", tracking_uri=uri).to_metadata()
            )

        resource = BentomlResource(home=str(place / "home"), tracking_uri=uri, allow_pickle=True)
        with dg.DagsterInstance.ephemeral() as instance:
            made = dg.materialize(
                [champion, bento_asset(promoted=champion.key)], resources={"bentoml": resource}, instance=instance
            )
        [event] = made.asset_materializations_for_node("bento")
        record = Package.from_metadata(event.metadata)
        assert record
        (place / "package.json").write_text(json.dumps(record.to_dict()))
        return cls(place / "state")

    def plan(self, version: str, **options: Any) -> Plan:
        settings = ServerSettings(threads=THREADS, timeout=REQUEST_TIMEOUT)
        rows = [{"x": x, "seconds": 0.0} for x in (1.0, 2.0)]
        return replace(
            super().plan(version, **options),
            package=self._package,
            server=lambda port: self._resource.tuned_server(self._package, port, settings),
            golden=lambda: Golden(rows=rows, expected=[2.0, 4.0]),
            environment={"SWITCH": version},
        )
