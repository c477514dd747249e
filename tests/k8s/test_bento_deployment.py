"""A bento that Dagster serves in a stand-in for a cluster: its own server answers, and predictions are traced."""

import sys
from typing import Any

import dagster as dg
import httpx
import pytest

from dagster_mlops.k8s import (
    KubernetesResource,
    KubernetesTarget,
    kubernetes_deployment_asset,
    kubernetes_deployment_check,
)
from dagster_mlops.lineage.chain.walk import trace
from dagster_mlops.lineage.production.overview import status
from dagster_mlops.provenance import Dataset, Deployment, ModelVersion, Package, Prediction
from dagster_mlops.serving.runtime import records_of
from tests.bentoml.test_bentoml import World, frame
from tests.support import known_warnings
from tests.support.model_cluster import model_cluster

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.usefixtures("warm_tools"),
    *known_warnings.DEPRECATED,
    *known_warnings.MLFLOW_HINTS,
    *known_warnings.DAGSTER_BETA,
]


def test_a_bento_is_served_by_pods_and_a_prediction_leads_to_its_model(tmp_path, monkeypatch):
    world = World(tmp_path)
    world.train(1)
    world.promote("1")
    log = str(tmp_path / "predictions")
    with model_cluster(tmp_path / "cluster", {}) as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        target = KubernetesTarget(
            namespace="ml",
            image="registry.example.com/{tag}",
            replicas=1,
            prediction_claim="predictions",
            prediction_log=log,
        )
        [champion, golden, bento, _] = world.assets()
        pods = kubernetes_deployment_asset(name="delay", package=bento.key, golden_set=golden.key, target=target)
        check = kubernetes_deployment_check(asset=pods)

        def materialize(**options: Any) -> dg.ExecuteInProcessResult:
            return dg.materialize(
                [champion, golden, bento, pods, check],
                resources={"bentoml": world.resource, "kubernetes": KubernetesResource()},
                instance=world.instance,
                **options,
            )

        def health() -> dg.AssetCheckEvaluation:
            [evaluation] = materialize(selection=dg.AssetSelection.checks(check)).get_asset_check_evaluations()
            return evaluation

        materialize(selection=[champion, golden, bento])
        tag = world.record("bento", Package).tag
        bento_folder = world.home / "bentos" / tag.replace(":", "/")
        dockerfile = (bento_folder / "env" / "docker" / "Dockerfile").read_text()
        assert f"BENTO_USER_UID={target.user}" in dockerfile and f"EXPOSE {target.port}" in dockerfile
        server = [sys.executable, "-m", "bentoml", "serve", tag, "--host", "{ip}", "--port", "3000"]
        cluster.images[f"registry.example.com/{tag}"] = ["env", f"BENTOML_HOME={world.home}", *server]
        result = materialize(selection=[pods])
        [event] = result.get_asset_materialization_events()
        metadata: Any = event.materialization.metadata
        assert metadata["k8s/started"].value is True
        live = world.record("delay", Deployment)
        assert (live.tool, live.package, live.golden_rows, live.golden_max_difference) == ("k8s", tag, 60, 0.0)
        rows = records_of(frame(2))
        url = f"{cluster.address('delay')}/predict"
        answer = httpx.post(url, json={"rows": rows, "ids": ["a", "b"]}, timeout=30, trust_env=False).json()
        assert answer["deployment"] == f"delay/{live.id}" and answer["model"] == "delay/1"
        chain = trace(Prediction(request_id="b", timestamp="", prediction_log=log).ref, instance=world.instance)
        buckets = {link.ref.role: (link.bucket, link.source) for link in chain.walk()}
        assert buckets["deployment"] == buckets["package"] == buckets["prediction"] == ("accessible", "tool")
        assert chain.find(Deployment) == [live]
        assert [version.version for version in chain.find(ModelVersion)] == ["1"]
        assert not chain.find(Dataset), "this champion names its data by hash only"
        assert chain.find(Package)[0].datasets == {"raw/flights.parquet": "9f00"}
        [production] = status(world.instance).production
        assert production.deployment == live
        assert production.answers is None, "from outside of the cluster, no one knows its address"
        repeated = materialize(selection=[pods])
        [event] = repeated.get_asset_materialization_events()
        metadata = event.materialization.metadata
        assert metadata["k8s/started"].value is False
        evaluation = health()
        assert evaluation.passed and evaluation.metadata["ready_pods"].value == 1
        world.train(2)
        world.promote("2")
        evaluation = health()
        assert not evaluation.passed and evaluation.severity == dg.AssetCheckSeverity.WARN
        assert evaluation.description == "serves delay version 1, but 'champion' is version 2."
        cluster.edit("services", "delay", ["spec", "selector"], {"app": "mine"})
        evaluation = health()
        assert not evaluation.passed and evaluation.severity == dg.AssetCheckSeverity.ERROR
        assert evaluation.description == f"Service delay leads to {{'app': 'mine'}}, not to {live.id}."
