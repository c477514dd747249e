"""Manifests of model deployments: accepted by the schemas of Kubernetes, or refused before anything is sent."""

import json
from typing import Any

import dagster as dg
import kubernetes_validate
import pytest
from dagster.components.testing import create_defs_folder_sandbox

from dagster_mlops.errors import DeploymentError, ExecutorConfigError
from dagster_mlops.k8s import (
    GpuProfile,
    KubernetesDeploymentComponent,
    KubernetesTarget,
    deployment_manifests,
    inference_service,
)
from dagster_mlops.k8s.serving.diagnosis import fault
from dagster_mlops.provenance import Package, Ref
from dagster_mlops.serving import Server
from tests.support import known_warnings

pytestmark = [*known_warnings.DAGSTER_BETA]

PACKAGE = Package(
    tag="delay:3-8d1f",
    home="/bentos",
    model_name="delay",
    model_version="3",
    run_id="5f0c",
    datasets={"raw/flights.parquet": "9f00"},
    upstream=(Ref("git", "commit", "0a1b2c"),),
)
SERVER = Server(
    command=["bentoml"], environment={"BENTOML_HOME": "/bentos", "DATABASE_URL": "x", "DAGSTER_MLOPS_LIMITS": "{}"}
)


def target(**options: Any) -> KubernetesTarget:
    return KubernetesTarget(**{"namespace": "ml", "image": "registry.example.com/{tag}", **options})


def rendered(**options: Any) -> dict[str, dict[str, Any]]:
    """By kind; an old and a new cluster accept them."""
    manifests = deployment_manifests(PACKAGE, target(**options), SERVER, name="delay", place="kubernetes://prod/ml")
    for manifest in manifests:
        for version in ("1.30", "1.37"):
            kubernetes_validate.validate(manifest, version, strict=True)
    return {manifest["kind"]: manifest for manifest in manifests}


GPU = GpuProfile(name="a10", gpus=1, product="NVIDIA-A10", cpu=2, memory="8Gi", shm="1Gi")
TARGETS = {
    "plain": {},
    "gpu": {"profile": GPU},
    "autoscaled": {"profile": GpuProfile(name="cpu", gpus=0, cpu="500m", memory="1Gi"), "max_replicas": 8},
    "logged": {"prediction_claim": "predictions", "secrets": {"DATABASE_URL": "features/url"}},
    "public": {"service": {"metadata": {"annotations": {"a/b": "c"}}, "spec": {"type": "LoadBalancer"}}},
    "extended": {
        "user": None,
        "k8s_config": {
            "container_config": {"env": [{"name": "A", "value": "b"}], "command": ["serve"]},
            "pod_spec_config": {"image_pull_secrets": [{"name": "registry"}], "service_account_name": "reader"},
            "pod_template_spec_metadata": {"annotations": {"prometheus.io/scrape": "true"}},
        },
    },
}


@pytest.mark.parametrize("options", TARGETS.values(), ids=list(TARGETS))
def test_the_schemas_of_an_old_and_a_new_cluster_accept_the_manifests(options):
    assert {"PodDisruptionBudget", "Deployment", "Service"} <= set(rendered(**options))


def test_pods_are_restricted_and_stop_in_order_and_say_what_they_serve():
    manifests = rendered(**TARGETS["logged"])
    deployment = manifests["Deployment"]
    spec, template = deployment["spec"], deployment["spec"]["template"]
    pod, [container] = template["spec"], template["spec"]["containers"]
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert pod["securityContext"]["runAsNonRoot"] and pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    drain, sleep = 30, container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > drain + sleep
    assert {each["topologyKey"] for each in pod["topologySpreadConstraints"]} == {
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
    }
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/readyz", "port": "http"}
    labels, annotations = template["metadata"]["labels"], template["metadata"]["annotations"]
    assert labels["dagster-mlops/model"] == "delay" and labels["dagster-mlops/model-version"] == "3"
    assert labels["dagster-mlops/run-id"] == "5f0c" and labels["dagster-mlops/commit"] == "0a1b2c"
    assert annotations == {
        "dagster-mlops/package": "delay:3-8d1f",  # not a label: it has a colon
        "dagster-mlops/datasets": json.dumps({"raw/flights.parquet": "9f00"}),
    }
    assert manifests["Service"]["spec"]["selector"].items() <= labels.items()
    assert manifests["PodDisruptionBudget"]["spec"]["selector"] == spec["selector"]


def test_variables_come_from_secrets_by_name_and_not_from_the_machine_that_deploys():
    manifests = rendered(**TARGETS["logged"])
    [container] = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
    variables = {each["name"]: each.get("value") or each["valueFrom"]["secretKeyRef"] for each in container["env"]}
    name = manifests["Deployment"]["metadata"]["name"]
    assert variables == {
        "DAGSTER_MLOPS_DEPLOYMENT": f"delay/{name}",
        "DAGSTER_MLOPS_DEPLOYMENT_TOOL": "k8s",
        "DAGSTER_MLOPS_LIMITS": "{}",
        "DAGSTER_MLOPS_PREDICTION_LOG": "/var/lib/predictions",
        "DAGSTER_MLOPS_STATE_DIR": "kubernetes://prod/ml",
        "DATABASE_URL": {"name": "features", "key": "url"},
    }
    assert container["volumeMounts"] == [{"name": "predictions", "mountPath": "/var/lib/predictions"}]


def test_a_profile_gives_resources_and_nodes_and_an_autoscaler_the_number_of_pods():
    pod = rendered(**TARGETS["gpu"])["Deployment"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "1", "memory": "8Gi"}
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-A10"}
    manifests = rendered(**TARGETS["autoscaled"])
    assert "replicas" not in manifests["Deployment"]["spec"], "each apply would take back what the autoscaler has set"
    autoscaler = manifests["HorizontalPodAutoscaler"]["spec"]
    assert (autoscaler["minReplicas"], autoscaler["maxReplicas"]) == (2, 8)


def test_the_same_pods_as_an_inference_service_of_kserve():
    manifest = inference_service(PACKAGE, target(**TARGETS["autoscaled"]), SERVER, name="delay")
    assert (manifest["apiVersion"], manifest["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    predictor = manifest["spec"]["predictor"]
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (2, 8)
    [container] = predictor["containers"]
    assert container["name"] == "kserve-container" and container["image"] == "registry.example.com/delay:3-8d1f"
    own = {"minReplicas", "maxReplicas", "labels", "annotations"}
    pod = {"apiVersion": "v1", "kind": "Pod", "spec": {key: predictor[key] for key in predictor.keys() - own}}
    kubernetes_validate.validate(pod, "1.37", strict=True)


REFUSED = {
    "image": ({"image": "registry/{model}"}, "It may have {tag}, {name}"),
    "replicas": ({"replicas": 0}, "use 1 or more"),
    "max_replicas": ({"max_replicas": 4}, "needs a profile with cpu="),
    "secret": ({"secrets": {"A": "features.url"}}, "does not have the form secret/key"),
    "credential": ({"environment": {"DB_PASSWORD": "hunter2"}}, "credential as text: DB_PASSWORD"),
    "queue": ({"profile": GpuProfile(name="a10", queue="team")}, "which only Jobs have"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_work_is_refused_when_definitions_load(options, message):
    with pytest.raises(DeploymentError) as error:
        target(**options)
    assert message in str(error.value)


def pod_with(status: dict[str, Any], *, init: bool = False, ready: bool = False) -> dict[str, Any]:
    """A pod as the API shows it, one of whose containers has this status."""
    name = "init" if init else "server"
    statuses = {"initContainerStatuses" if init else "containerStatuses": [{"name": name, "image": "i", **status}]}
    return {
        "metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"containers": [{"name": name, "resources": {"limits": {"memory": "1Gi"}}}]},
        "status": {"conditions": [{"type": "Ready", "status": str(ready)}], **statuses},
    }


KILLED = {"lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}, "state": {"running": {}}}
PODS = {
    "an init container that is done": (
        pod_with({"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}, init=True),
        "",
    ),
    "an init container that failed": (
        pod_with({"state": {"terminated": {"exitCode": 2}}}, init=True),
        "container init of pod p ended with exit code 2.",
    ),
    "a pod that was killed": (pod_with(KILLED), "its memory limit is 1Gi"),
    "a pod that is back": (pod_with(KILLED, ready=True), ""),
    "a server that ended": (pod_with({"state": {"terminated": {"exitCode": 0}}}), "ended with exit code 0"),
    "a first try to pull": (pod_with({"state": {"waiting": {"reason": "ErrImagePull", "message": "timeout"}}}), ""),
}


@pytest.mark.parametrize(("pod", "reason"), PODS.values(), ids=list(PODS))
def test_only_what_time_does_not_heal_is_a_fault(pod, reason):
    deployment = {"metadata": {}, "status": {}}
    described = fault(deployment, [pod], log=lambda name, previous: "the log", pending_timeout=60)
    assert reason in described and bool(reason) == bool(described)


def test_a_deployment_in_yaml():
    attributes = {
        "name": "delay",
        "package": "bento",
        "golden_set": "golden_flights",
        "target": {
            "namespace": "ml",
            "image": "registry.example.com/{tag}",
            "profile": {"name": "a10", "gpus": 1},
            "secrets": {"DATABASE_URL": "features/url"},
        },
    }
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(
            component_cls=KubernetesDeploymentComponent,
            defs_yaml_contents={"type": "dagster_mlops.k8s.KubernetesDeploymentComponent", "attributes": attributes},
        )
        with sandbox.load_component_and_build_defs(defs_path=path) as (component, defs):
            assert isinstance(component, KubernetesDeploymentComponent)
            assert component.target == target(
                profile=GpuProfile(name="a10", gpus=1), secrets={"DATABASE_URL": "features/url"}
            )
            [delay] = [asset for asset in defs.assets or () if isinstance(asset, dg.AssetsDefinition)]
            assert delay.key.path == ["delay"]


def test_a_misspelt_field_is_refused_with_its_path():
    with pytest.raises(ExecutorConfigError, match="Did you mean 'tolerations'"):
        target(k8s_config={"pod_spec_config": {"tolerationz": []}})
    with pytest.raises(DeploymentError, match=r"k8s_config sets A, which the deployment sets, too"):
        rendered(environment={"A": "1"}, k8s_config={"container_config": {"env": [{"name": "A", "value": "2"}]}})
    with pytest.raises(DeploymentError, match=r"Service.spec.tipe: V1ServiceSpec has no such field"):
        rendered(service={"spec": {"tipe": "LoadBalancer"}})
