"""The manifests of one deployment of a package: Deployment, Service, Secret, disruption budget, autoscaler, record."""

import base64
import dataclasses
import hashlib
import json
import math
import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.errors import DeploymentError
from dagster_mlops.k8s.gpu import merged
from dagster_mlops.k8s.schema import camel_case
from dagster_mlops.k8s.serving.target import KubernetesTarget
from dagster_mlops.k8s.validation import is_label_value
from dagster_mlops.provenance import Deployment, Package
from dagster_mlops.serving import Server

NAME = "app.kubernetes.io/name"
MANAGER = "dagster-mlops"
TOOL = "k8s"  # that answers for the record
DEPLOYMENT = "dagster-mlops/deployment"
FINGERPRINT = "dagster-mlops/fingerprint"
TURN = "dagster-mlops/rollout"
NO_DEPLOYMENT = "none"
"""The deployment that a Service selects before its first one is live."""
PORT = "http"
SERVER = "server"
_VOLUME = "predictions"
_PROBE_SECONDS = 5


@lazy_dataclass(frozen=True, kw_only=True)
class Release:
    """One deployment of a package. All of its objects have its id as name."""

    name: str  # of the Service, and of all deployments behind it
    package: Package
    target: KubernetesTarget
    server: Server
    place: str  # of its record: kubernetes://context/namespace
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    drain_seconds: float = 30
    ready_timeout: float = 300
    has_probe: bool = True  # a Secret with which a rollout sends golden rows that are not logged
    id: str = ""

    @property
    def fingerprint(self) -> str:
        """A hash of the pods: another one asks for another deployment."""
        template = dataclasses.replace(self, id="").template()
        facts = [template, self.target.max_replicas is not None, self.package.home]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]

    def with_id(self, release_id: str = "") -> "Release":
        """The same deployment with an id, a new one by default: name, model version, six random digits."""
        version = re.sub(r"[^a-z0-9]+", "-", self.package.model_version.lower()).strip("-")[:12]
        return dataclasses.replace(self, id=release_id or f"{self.name}-{version}-{secrets.token_hex(3)}")

    @property
    def labels(self) -> dict[str, str]:
        """Labels of each object of the deployment."""
        return {**owner_labels(self.name), DEPLOYMENT: self.id}

    @property
    def selector(self) -> dict[str, str]:
        """Labels by which the Service finds the pods."""
        return {NAME: self.name, DEPLOYMENT: self.id}

    @property
    def url(self) -> str:
        """The address for clients; without one of the target, that of the Service, which only the cluster can reach."""
        if self.target.url or not self.place.startswith("kubernetes:///"):
            return self.target.url or f"{self.place}/services/{self.name}"
        return f"http://{self.name}.{self.target.namespace}:{self.target.service_port}"

    def manifests(self, probe: str = "") -> list[dict[str, Any]]:
        """All objects of the deployment, in the order in which they are sent; `probe` is the secret of golden rows."""
        return [*([self._secret(probe)] if self.has_probe else []), *self._companions(), self.deployment()]

    def deployment(self) -> dict[str, Any]:
        """The manifest of the Deployment.

        With an autoscaler it has no number of replicas: the autoscaler's would be taken back.
        """
        labels, annotations = self._facts()
        spec = {
            **({} if self.target.max_replicas else {"replicas": self.target.replicas}),
            "selector": {"matchLabels": self.selector},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "revisionHistoryLimit": 1,
            "progressDeadlineSeconds": math.ceil(self.ready_timeout) + 60,
            "template": self.template(),
        }
        extra_labels = {**labels, FINGERPRINT: self.fingerprint}
        return self._manifest("apps/v1", "Deployment", labels=extra_labels, annotations=annotations, spec=spec)

    def service(self, selector: Mapping[str, str], turn: str) -> dict[str, Any]:
        """The manifest of the Service with a selector.

        Args:
            turn: Mark of the rollout that may move the selector.
        """
        base = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": self.name,
                "namespace": self.target.namespace,
                "labels": owner_labels(self.name),
                "annotations": {TURN: turn},
            },
            "spec": {
                "ports": [{"name": PORT, "port": self.target.service_port, "targetPort": PORT, "protocol": "TCP"}]
            },
        }
        service = merged(base, self.target.service)
        service["spec"] = {**service["spec"], "selector": dict(selector)}
        return service

    def record(self, record: Deployment, golden_hash: str) -> dict[str, Any]:
        """The manifest that holds the record of the deployment, also when its pods are gone."""
        data = {"record": record.to_json(), "golden": golden_hash}
        return self._manifest("v1", "ConfigMap", data=data)

    def inference_service(self) -> dict[str, Any]:
        """The same pods as a KServe ``InferenceService``, which KServe rolls out itself."""
        template = self.template()
        pod = dict(template["spec"])
        [server, *sidecars] = pod.pop("containers")
        # By this name KServe knows the server among the containers.
        server = {**server, "name": "kserve-container"}
        labels, annotations = self._facts()
        # In its other mode, Knative takes few of the settings of a pod. New versions call this one Standard.
        mode = {"serving.kserve.io/deploymentMode": "RawDeployment"}
        predictor = {
            "minReplicas": self.target.replicas,
            "maxReplicas": self.target.max_replicas or self.target.replicas,
            "labels": {**self.labels, **labels},
            "annotations": annotations,
            **pod,
            "containers": [server, *sidecars],
        }
        manifest = self._manifest(
            "serving.kserve.io/v1beta1", "InferenceService", annotations=mode, spec={"predictor": predictor}
        )
        manifest["metadata"]["name"] = self.name
        return manifest

    def _manifest(
        self,
        version: str,
        kind: str,
        *,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        **content: Any,
    ) -> dict[str, Any]:
        metadata = {"name": self.id, "namespace": self.target.namespace, "labels": {**self.labels, **(labels or {})}}
        if annotations:
            metadata["annotations"] = dict(annotations)
        return {"apiVersion": version, "kind": kind, "metadata": metadata, **content}

    def _secret(self, probe: str) -> dict[str, Any]:
        data = {"probe": base64.b64encode(probe.encode()).decode()}
        return self._manifest("v1", "Secret", type="Opaque", data=data)

    def _companions(self) -> Iterator[dict[str, Any]]:
        budget = {"maxUnavailable": 1, "selector": {"matchLabels": self.selector}}
        yield self._manifest("policy/v1", "PodDisruptionBudget", spec=budget)
        if self.target.max_replicas:
            use = {"type": "Utilization", "averageUtilization": self.target.cpu_percent}
            yield self._manifest(
                "autoscaling/v2",
                "HorizontalPodAutoscaler",
                spec={
                    "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": self.id},
                    "minReplicas": self.target.replicas,
                    "maxReplicas": self.target.max_replicas,
                    "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": use}}],
                },
            )

    def _facts(self) -> tuple[dict[str, str], dict[str, str]]:
        """Facts of the package: labels where the values may be labels, and else annotations."""
        package = self.package
        commits = [ref.id for ref in package.upstream if ref.role == "commit"]
        facts = {
            "dagster-mlops/package": package.tag,
            "dagster-mlops/model": package.model_name,
            "dagster-mlops/model-version": package.model_version,
            "dagster-mlops/run-id": package.run_id,
            "dagster-mlops/commit": commits[0] if commits else "",
            "dagster-mlops/model-sha256": package.sha256,
            "dagster-mlops/datasets": json.dumps(dict(package.datasets), sort_keys=True) if package.datasets else "",
        }
        labels = {key: text for key, text in facts.items() if text and is_label_value(text)}
        return labels, {key: text for key, text in facts.items() if text and key not in labels}

    def template(self) -> dict[str, Any]:
        """The pods of the deployment, with what the profile and the user add."""
        target = self.target
        labels, annotations = self._facts()
        metadata = {"labels": {**self.labels, **labels}, "annotations": annotations}
        container, pod = self._container(), self._pod()
        for config in target.pod_config():
            container = merged(container, camel_case(config.get("container_config", {}), "V1Container"))
            pod = merged(pod, camel_case(config.get("pod_spec_config", {}), "V1PodSpec"))
            metadata = merged(metadata, camel_case(config.get("pod_template_spec_metadata", {}), "V1ObjectMeta"))
        names = [variable["name"] for variable in container["env"]]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            # By server-side apply, a name in this list stands for one entry.
            raise DeploymentError(
                f"k8s_config sets {', '.join(repeated)}, which the deployment sets, too. Use environment= or secrets=."
            )
        amounts = container.get("resources", {})
        if amounts:
            container["resources"] = {
                group: {name: str(amount) for name, amount in values.items()} if isinstance(values, Mapping) else values
                for group, values in amounts.items()
            }
        pod["containers"] = [container, *pod.get("containers", ())]
        return {"metadata": {key: value for key, value in metadata.items() if value}, "spec": pod}

    def _pod(self) -> dict[str, Any]:
        target = self.target
        user = {} if target.user is None else {name: target.user for name in ("runAsUser", "runAsGroup", "fsGroup")}
        pod: dict[str, Any] = {
            # A server answers strangers: it gets no token of the cluster.
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {"runAsNonRoot": True, **user, "seccompProfile": {"type": "RuntimeDefault"}},
            # Kubernetes counts the sleep before the stop, too.
            "terminationGracePeriodSeconds": target.pre_stop_seconds + math.ceil(self.drain_seconds) + 5,
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": key,
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": self.selector},
                }
                for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
            ],
        }
        if target.prediction_claim:
            pod["volumes"] = [{"name": _VOLUME, "persistentVolumeClaim": {"claimName": target.prediction_claim}}]
        return pod

    def _container(self) -> dict[str, Any]:
        target = self.target
        ready = {"httpGet": {"path": self.server.readiness, "port": PORT}, "timeoutSeconds": _PROBE_SECONDS}
        live = {**ready, "httpGet": {"path": target.liveness or self.server.readiness, "port": PORT}}
        container: dict[str, Any] = {
            "name": SERVER,
            "image": target.image_of(self.package),
            "ports": [{"name": PORT, "containerPort": target.port, "protocol": "TCP"}],
            "env": list(self._variables()),
            # Until it succeeds, the other two wait; it ends later than the rollout gives up.
            "startupProbe": {**ready, "periodSeconds": 2, "failureThreshold": math.ceil(self.ready_timeout / 2) + 30},
            "readinessProbe": {**ready, "periodSeconds": _PROBE_SECONDS, "failureThreshold": 2},
            # A busy server is not a dead one: a minute without an answer.
            "livenessProbe": {**live, "periodSeconds": 10, "failureThreshold": 6},
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
        if target.pre_stop_seconds:
            container["lifecycle"] = {"preStop": {"sleep": {"seconds": target.pre_stop_seconds}}}
        if target.prediction_claim:
            container["volumeMounts"] = [{"name": _VOLUME, "mountPath": target.prediction_log}]
        return container

    def _variables(self) -> Iterator[dict[str, Any]]:
        target = self.target
        variables = {
            # Of the tool's own server, only what is meant for the code in the image: the rest is of another machine.
            **{name: text for name, text in self.server.environment.items() if name.startswith("DAGSTER_MLOPS_")},
            "DAGSTER_MLOPS_DEPLOYMENT": f"{self.name}/{self.id}",
            "DAGSTER_MLOPS_DEPLOYMENT_TOOL": TOOL,
            "DAGSTER_MLOPS_STATE_DIR": self.place,
            **({"DAGSTER_MLOPS_PREDICTION_LOG": target.prediction_log} if target.prediction_claim else {}),
            **self.environment,
            **target.environment,
        }
        yield from ({"name": name, "value": text} for name, text in sorted(variables.items()))
        references = {**target.secrets, **({"DAGSTER_MLOPS_PROBE": f"{self.id}/probe"} if self.has_probe else {})}
        for name, place in sorted(references.items()):
            secret, _, key = place.partition("/")
            yield {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def owner_labels(name: str) -> dict[str, str]:
    """Labels of everything that belongs to the deployments of one name."""
    return {NAME: name, "app.kubernetes.io/managed-by": MANAGER}
