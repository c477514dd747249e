"""GPU profiles, one executor for laptop and Kubernetes, and deployments of models as pods."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.k8s.checks import kubernetes_deployment_check as kubernetes_deployment_check
    from dagster_mlops.k8s.component import ExecutorComponent as ExecutorComponent
    from dagster_mlops.k8s.executor import mlops_executor as mlops_executor
    from dagster_mlops.k8s.gpu import GpuProfile as GpuProfile
    from dagster_mlops.k8s.policy import PodPolicy as PodPolicy
    from dagster_mlops.k8s.resource import KubernetesResource as KubernetesResource
    from dagster_mlops.k8s.serving.asset import kubernetes_deployment_asset as kubernetes_deployment_asset
    from dagster_mlops.k8s.serving.component import KubernetesDeploymentComponent as KubernetesDeploymentComponent
    from dagster_mlops.k8s.serving.render import deployment_manifests as deployment_manifests
    from dagster_mlops.k8s.serving.render import inference_service as inference_service
    from dagster_mlops.k8s.serving.target import KubernetesTarget as KubernetesTarget
    from dagster_mlops.k8s.validation import validate_definitions as validate_definitions
    from dagster_mlops.k8s.validation import validate_k8s_config as validate_k8s_config

__getattr__, __dir__ = lazy_door(__name__)
