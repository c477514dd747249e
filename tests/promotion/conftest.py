"""A local MLflow with versions of one model, and evaluations of them on rows with slices, in a Dagster instance."""

import shutil
from collections.abc import Mapping
from typing import Any

import dagster as dg
import numpy as np
import pytest

from dagster_mlops.evaluation.measure import Evaluation, Plan, measure
from dagster_mlops.evaluation.metrics import Prediction
from dagster_mlops.evaluation.predictions import Labels
from dagster_mlops.evaluation.ui_metadata import RESULT
from dagster_mlops.mlflow import MlflowResource
from dagster_mlops.mlflow.runs import lookup
from dagster_mlops.promotion import promotion_asset
from dagster_mlops.provenance import ModelVersion, Record

ROWS = 600


class World:
    """The model `delay`, the asset `model` that makes its versions, and the asset `evaluation`."""

    def __init__(self, resource: MlflowResource, instance: dg.DagsterInstance) -> None:
        self.resource, self.instance, self.client = resource, instance, resource.client()
        self.client.create_registered_model("delay")

    def train(
        self,
        *records: Record,
        run: str = "",
        source: Any = "",
        datasets: Mapping[str, str] | None = None,
        **metrics: float,
    ) -> str:
        """A version with these metrics, the latest of `model`, whose materialization also has the `records`."""
        run_id = run or self.client.create_run("0").info.run_id
        for name, value in metrics.items():
            self.client.log_metric(run_id, name, value)
        version = str(self.client.create_model_version("delay", str(source or f"/models/{run_id}"), run_id).version)
        facts = {"run_id": run_id, "tracking_uri": self.resource.uri, "datasets": datasets or {}}
        record = ModelVersion(name="delay", version=version, **facts)
        self.client.set_model_version_tag("delay", version, lookup.RECORD, record.to_json())
        metadata = {key: value for each in (record, *records) for key, value in each.to_metadata().items()}
        self.instance.report_runless_asset_event(dg.AssetMaterialization("model", metadata=metadata))
        return version

    def crown(self, version: str) -> None:
        """Give the alias to a version."""
        self.client.set_registered_model_alias("delay", "champion", version)

    def evaluate(self, version: str, rival: str, evaluation: Evaluation | None = None, **changes: Any) -> None:
        """Report an evaluation of a version against its rival."""
        facts = {"version": version, "rival_version": rival, "alias": "champion", **changes}
        result = {**(evaluation or evaluated()).to_dict(), **facts}
        event = dg.AssetMaterialization("evaluation", metadata={f"mlflow/{RESULT}": dg.MetadataValue.json(result)})
        self.instance.report_runless_asset_event(event)

    def check(self, name: str, passed: bool, severity: Any = dg.AssetCheckSeverity.ERROR, **metadata: str) -> None:
        """Report a verdict on `predictions`."""
        key = dg.AssetKey("predictions")
        facts = {f"evidently/{noun}": dg.TextMetadataValue(text) for noun, text in metadata.items()}
        self.instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(asset_key=key, check_name=name, passed=passed, severity=severity, metadata=facts)
        )

    def materialize(self, *rules: Any, **options: Any) -> Mapping[str, Any]:
        """The metadata of a promotion."""
        asset = promotion_asset(candidate="model", registered_model_name="delay", rules=rules, **options)
        result = dg.materialize(
            [dg.AssetSpec("model"), dg.AssetSpec("evaluation"), asset],
            instance=self.instance,
            resources={"mlflow": self.resource},
            selection=[asset],
        )
        [event] = result.get_asset_materialization_events()
        return {key: value.value for key, value in event.materialization.metadata.items()}

    def decide(self, *rules: Any, **options: Any) -> list[dict[str, Any]]:
        """The rows of a decision, which the alias follows."""
        metadata = self.materialize(*rules, **options)
        rows = [dict(record.data) for record in metadata["mlflow/decision"].records]
        assert metadata["mlflow/promoted"] is all(row["verdict"] == "holds" for row in rows)
        return rows


def evaluated(
    *, seed: int = 0, loss_on: str = "", sizes: Mapping[str, int] | None = None, rarity: float = 0.0
) -> Evaluation:
    """An evaluation of two equally good models on slices, on one of which (`loss_on`) the version is much worse."""
    random, sizes = np.random.default_rng(seed), sizes or {"AA": 200, "UA": 200, "B6": 180, "HA": 20}
    carriers = np.repeat(list(sizes), list(sizes.values()))
    odds = random.normal(size=len(carriers)) * 2 - rarity
    labels = Labels("binary", (random.random(len(odds)) < 1 / (1 + np.exp(-odds))).astype(float), (0, 1))
    noise = np.where(carriers == loss_on, 6.0, 0.5)
    scores = [1 / (1 + np.exp(-odds - size * random.normal(size=len(odds)))) for size in (noise, 0.5)]
    model, rival = (Prediction("probability", values, (0, 1)) for values in scores)
    plan = Plan(resamples=20)

    def part(name: str, mask: Any) -> Any:
        return measure(name, labels, mask, model, rival, {}, plan)

    return Evaluation(
        model="delay", version="2", run_id="", task="binary", label="late", rows_asset="rows", rows_hash="e" * 32,
        unlabelled=0, positive="1", resamples=20, confidence=0.95, seed=0,
        whole=part("", np.ones(len(odds), dtype=bool)),
        slices=tuple(part(f"carrier={carrier}", carriers == carrier) for carrier in sizes),
        alias="champion", rival_version="1", lower_is_better=("log_loss", "brier"),
    )  # fmt: skip


@pytest.fixture
def world(tmp_path, empty_database):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    resource = MlflowResource(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        yield World(resource, instance)


@pytest.fixture
def challenged(world):
    """A champion with an AUC of 0.7 and a loss of 0.5, and a candidate with 0.8 and 0.4."""
    world.crown(world.train(auc=0.7, log_loss=0.5))
    world.train(auc=0.8, log_loss=0.4)
    return world
