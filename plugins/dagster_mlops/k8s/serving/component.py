"""The deployment in YAML."""

import dagster as dg
from pydantic import Field

from dagster_mlops.core.yaml_fields import NotNegative, Positive, YamlFields
from dagster_mlops.k8s.serving.asset import kubernetes_deployment_asset
from dagster_mlops.k8s.serving.target import KubernetesTarget


class KubernetesDeploymentComponent(YamlFields, dg.Component):
    """A package that serves in Kubernetes, verified on golden rows before it takes traffic.

    ```yaml
    type: dagster_mlops.k8s.KubernetesDeploymentComponent
    attributes:
      name: delay
      package: delay_package
      golden_set: golden_flights
      target:
        namespace: ml
        image: registry.example.com/{tag}
        profile: {name: small, gpus: 0, cpu: 1, memory: 2Gi}
    ```

    The resource ``kubernetes`` (a ``KubernetesResource``) says which cluster.
    """

    name: str = Field(default="deployment", description="Name of the asset and of the Service.")
    package: dg.ResolvedAssetKey = Field(description="Key of the asset that holds the record of a package.")
    golden_set: dg.ResolvedAssetKey = Field(
        description="Key of a dataframe asset whose predictions must equal the registry model's."
    )
    target: KubernetesTarget = Field(description="Namespace, image, size and settings of the pods.")
    resource_key: str = Field(default="bentoml", description="Key of the packaging tool's resource.")
    cluster_key: str = Field(default="kubernetes", description="Key of the KubernetesResource.")
    tolerance: NotNegative = Field(default=1e-9, description="Largest difference between two predictions for a row.")
    promoted_to: str = Field(
        default="", description="Alias whose promotion must be on record in the model's history, and signed."
    )
    ready_timeout: Positive = Field(default=300, description="Seconds for all pods to be ready.")
    pending_timeout: NotNegative = Field(default=120, description="Seconds that a pod may wait for a node.")
    request_timeout: Positive = Field(default=30, description="Seconds for a request, and for those before a stop.")

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        return dg.Definitions(assets=[kubernetes_deployment_asset(**self.__dict__)])
