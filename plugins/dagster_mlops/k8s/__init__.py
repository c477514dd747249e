"""GPU profiles, and one executor for laptop and Kubernetes."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.k8s.component import ExecutorComponent as ExecutorComponent
    from dagster_mlops.k8s.executor import mlops_executor as mlops_executor
    from dagster_mlops.k8s.gpu import GpuProfile as GpuProfile
    from dagster_mlops.k8s.policy import PodPolicy as PodPolicy
    from dagster_mlops.k8s.validation import validate_definitions as validate_definitions
    from dagster_mlops.k8s.validation import validate_k8s_config as validate_k8s_config

__getattr__, __dir__ = lazy_door(__name__)
