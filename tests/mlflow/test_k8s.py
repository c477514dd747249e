"""Trainings as Kubernetes jobs: one MLflow run each, below one parent, also when a pod is evicted."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from dagster_mlops.k8s import mlops_executor
from dagster_mlops.mlflow import MlflowResource, close_orphan_runs_sensor, training_asset
from dagster_mlops.mlflow.runs import lookup as runs
from tests.support import known_warnings
from tests.support.kubernetes_api import Cluster, cluster

pytestmark = [pytest.mark.slow, *known_warnings.MLFLOW]


def trained(name: str) -> dg.AssetsDefinition:
    """A training that writes down which process it is, and waits as long as it is told."""

    @training_asset(registered_model_name=name, name=name, system_metrics=False)
    def train() -> None:
        import mlflow
        from sklearn.linear_model import LinearRegression

        from dagster_mlops.mlflow.models.log import log_model

        began = Path(os.environ["TEST_WORLD"], f"{name}.began")
        patience = 0.0 if began.exists() or name != "left" else 60.0
        mlflow.log_metric("pid", os.getpid())
        began.touch()
        time.sleep(patience)
        import pandas as pd

        rows = pd.DataFrame({"x": [0.0, 1.0]})
        log_model(LinearRegression().fit(rows, rows["x"]), rows)

    return train


def pods() -> dg.JobDefinition:
    """Two trainings, each in a pod."""
    assets = [trained("left"), trained("right")]
    config = {
        "job_image": "ml:1",
        "job_namespace": "ml",
        "load_incluster_config": False,
        "kubeconfig_file": os.environ["TEST_KUBECONFIG"],
    }
    defs = dg.Definitions(
        assets=assets,
        jobs=[dg.define_asset_job("pods", assets)],
        executor=mlops_executor(default="k8s", k8s=config),
        resources={"mlflow": MlflowResource(tracking_uri=dg.EnvVar("TEST_MLFLOW_URI"), experiment="pods")},
    )
    return defs.resolve_job_def("pods")


def launcher(kubeconfig: Path, home: str) -> dict:
    """The executor takes its defaults from Kubernetes' run launcher, which must be the instance's."""
    return {
        "module": "dagster_k8s",
        "class": "K8sRunLauncher",
        "config": {
            "load_incluster_config": False,
            "kubeconfig_file": str(kubeconfig),
            "job_image": "ml:1",
            "dagster_home": home,
            "instance_config_map": "dagster-instance",
            "service_account_name": "dagster",
        },
    }


def evict_when_training(nodes: Cluster, world: Path) -> None:
    """Take the pod of `left` away once it trains."""
    while not (world / "left.began").exists():
        time.sleep(0.05)
    [name] = [n for n, manifest in nodes.manifests.items() if manifest["metadata"]["labels"]["dagster/op"] == "left"]
    nodes.evict(name)


@pytest.mark.thorough
def test_each_pod_has_its_run_below_one_parent_and_an_evicted_one_goes_on_in_it(tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowResource(tracking_uri=uri, experiment="pods").client()
    monkeypatch.setenv("TEST_MLFLOW_URI", uri)
    monkeypatch.setenv("TEST_WORLD", str(tmp_path))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # the image has the code
    with cluster(tmp_path) as nodes:
        monkeypatch.setenv("TEST_KUBECONFIG", str(nodes.kubeconfig))
        overrides = {"run_launcher": launcher(nodes.kubeconfig, str(tmp_path))}
        with dg.instance_for_test(temp_dir=str(tmp_path), overrides=overrides) as instance:
            job = dg.reconstructable(pods)
            threading.Thread(target=evict_when_training, args=(nodes, tmp_path), daemon=True).start()
            with dg.execute_job(job, instance) as first:
                assert not first.success
            resources = {"mlflow": MlflowResource(tracking_uri=uri, experiment="pods")}
            with dg.build_sensor_context(instance=instance, resources=resources) as context:
                close_orphan_runs_sensor()(context)
            before = by_asset(client)
            ended = {name: run.info.status for name, run in before.items()}
            assert ended == {"": "FAILED", "left": "FAILED", "right": "FINISHED"}
            options = dg.ReexecutionOptions.from_failure(first.run_id, instance)
            with dg.execute_job(job, instance, reexecution_options=options) as second:
                assert second.success
    found = by_asset(client)
    again = {name: run.info.run_id for name, run in found.items()}
    assert again == {name: run.info.run_id for name, run in before.items()}, "no run is made anew"
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    parent = found.pop("")
    assert {run.data.tags[runs.PARENT] for run in found.values()} == {parent.info.run_id}
    assert len({run.data.metrics["pid"] for run in found.values()}) == 2
    assert [len(client.search_model_versions(f"name='{name}'")) for name in ("left", "right")] == [1, 1]
    trained_by = [manifest["metadata"]["labels"]["dagster/op"] for manifest in nodes.manifests.values()]
    assert sorted(trained_by) == ["left", "left", "right"]


def by_asset(client) -> dict[str, Any]:
    """The runs of the experiment by asset; the parent's name is empty."""
    experiment = client.get_experiment_by_name("pods")
    found = client.search_runs([experiment.experiment_id])
    assert len(found) == 3
    return {run.data.tags.get(runs.TARGET, "").rstrip(":"): run for run in found}
