"""Pods that serve a package: their image, namespace, size and settings."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, Field

from dagster_mlops.core.yaml_fields import YamlFields
from dagster_mlops.errors import DeploymentError
from dagster_mlops.k8s.gpu import GpuProfile
from dagster_mlops.k8s.validation import validate_k8s_config
from dagster_mlops.provenance import Package
from dagster_mlops.provenance.credentials import masked_strings

POD_SECTIONS = ("container_config", "pod_spec_config", "pod_template_spec_metadata")
_SAMPLE = Package(tag="model:1", home="", model_name="model", model_version="1")


class KubernetesTarget(YamlFields):
    """Pods that serve a package in Kubernetes. What no cluster would accept is refused without one.

        >>> target = KubernetesTarget(
        ...     namespace="ml",
        ...     image="registry.example.com/{tag}",
        ...     profile=GpuProfile(name="small", gpus=0, cpu=1, memory="2Gi"),
        ...     secrets={"DATABASE_URL": "features/url"},
        ... )

    Raises:
        DeploymentError: An option cannot work; names the fix.
        ExecutorConfigError: `k8s_config` or `profile` is invalid; names the path and the fix.
    """

    model_config = ConfigDict(frozen=True)

    namespace: str = Field(description="Namespace, which must exist.")
    image: str = Field(
        description="Image of a package; {tag}, {name}, {version}, {model_name} and {model_version} are its own."
    )
    replicas: int = Field(default=2, description="Pods of a deployment; with max_replicas the fewest.")
    max_replicas: int | None = Field(
        default=None, description="The most pods; a HorizontalPodAutoscaler adds them by the use of CPUs."
    )
    cpu_percent: int = Field(default=70, description="Use of the requested CPUs that the autoscaler aims at.")
    profile: GpuProfile | None = Field(
        default=None, description="Memory, CPUs and GPUs of a pod, and the nodes that have them; gpus=0 without."
    )
    port: int = Field(default=3000, description="Port of the server in its container.")
    service_port: int = Field(default=80, description="Port of the Service.")
    environment: Mapping[str, str] = Field(default={}, description="Variables of the server that are not secret.")
    secrets: Mapping[str, str] = Field(
        default={}, description="Variables of the server from Secrets of the namespace: variable: secret/key."
    )
    prediction_claim: str = Field(
        default="",
        description="PersistentVolumeClaim (ReadWriteMany) of the prediction log; without one, none is written.",
    )
    prediction_log: str = Field(
        default="/var/lib/predictions",
        description="Folder of the claim in the pods. Mount it there for `dagster-mlops trace`, too.",
    )
    user: int | None = Field(
        default=1034,
        description="Id of the user in the container; None for that of the image, which then needs a number.",
    )
    pre_stop_seconds: int = Field(
        default=5, description="Seconds that a pod still takes requests while the cluster takes it out of the Service."
    )
    liveness: str = Field(default="", description="Path of the liveness probe; that of readiness unless given.")
    k8s_config: Mapping[str, Any] = Field(
        default={}, description=f"More of the pods, as in dagster-k8s/config: {', '.join(POD_SECTIONS)}."
    )
    service: Mapping[str, Any] = Field(
        default={}, description="More of the Service's manifest, such as {spec: {type: LoadBalancer}}."
    )
    url: str = Field(default="", description="Address for clients, where it is not that of the Service.")
    force: bool = Field(
        default=False, description="Take back fields of the manifests that someone else has changed, such as kubectl."
    )

    def model_post_init(self, context: Any) -> None:
        self.image_of(_SAMPLE)
        if self.replicas < 1 or (self.max_replicas or self.replicas) < self.replicas:
            raise DeploymentError(
                f"replicas={self.replicas}, max_replicas={self.max_replicas}: use 1 or more, and no more than the most."
            )
        if self.max_replicas and not (self.profile and self.profile.cpu):
            raise DeploymentError(
                "max_replicas= needs a profile with cpu=: an autoscaler compares the use of CPUs with what is "
                "requested."
            )
        for variable, place in self.secrets.items():
            if not re.fullmatch(r"[a-z0-9.-]+/[\w.-]+", place):
                raise DeploymentError(f"secrets[{variable!r}]: {place!r} does not have the form secret/key.")
        literal = sorted(
            name for name, text in self.environment.items() if masked_strings({name: text}) != {name: text}
        )
        if literal:
            raise DeploymentError(
                f"environment= holds a credential as text: {', '.join(literal)}. Everyone who reads the Deployment "
                "would see it. Put it into a Secret of the namespace, and name it in "
                "the option secrets, as secret/key."
            )
        for source, config in (("k8s_config", self.k8s_config), ("profile", self._profile_config())):
            if sections := sorted(set(config) - set(POD_SECTIONS)):
                raise DeploymentError(
                    f"{source} has {', '.join(sections)}, which only Jobs have (of a profile: queue, deadline_seconds, "
                    f"ttl_seconds). A deployment takes {', '.join(POD_SECTIONS)}."
                )
            validate_k8s_config(config, f"{source} of a KubernetesTarget")

    def image_of(self, package: Package) -> str:
        """The image of a package.

        Raises:
            DeploymentError: `image` names a field that a package does not have.
        """
        name, _, version = package.tag.partition(":")
        fields = {"tag": package.tag, "name": name, "version": version}
        fields |= {"model_name": package.model_name, "model_version": package.model_version}
        try:
            return self.image.format(**fields)
        except (KeyError, IndexError, ValueError) as error:
            raise DeploymentError(
                f"image={self.image!r} cannot be filled in: {error!r}. It may have "
                f"{', '.join(f'{{{field}}}' for field in fields)}."
            ) from error

    def pod_config(self) -> list[Mapping[str, Any]]:
        """Additions of the profile and the user to a pod, in the form of dagster-k8s/config."""
        return [self._profile_config(), self.k8s_config]

    def _profile_config(self) -> dict[str, Any]:
        config = self.profile.k8s_config() if self.profile else {}
        if self.profile and not self.profile.queue:
            config.pop("job_metadata", None)  # the labels that the pods have, too
        return config
