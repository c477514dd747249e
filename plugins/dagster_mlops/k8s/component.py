"""The executor in YAML."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from dagster_mlops.core.yaml_fields import Count, YamlFields
from dagster_mlops.k8s.executor import Choice, mlops_executor
from dagster_mlops.k8s.policy import PodPolicy


class ExecutorComponent(YamlFields, dg.Component):
    """Run steps in process, in processes or in Kubernetes pods, chosen when a run is launched.

    ```yaml
    type: dagster_mlops.k8s.ExecutorComponent
    attributes:
      default: multiprocess
      preload_modules: [pandas, sklearn]
      k8s:
        job_namespace: ml
        step_k8s_config:
          job_spec_config: {ttl_seconds_after_finished: 3600}
    ```
    """

    default: Choice = Field(default="multiprocess", description="Executor of runs whose config names none.")
    preload_modules: Sequence[str] = Field(
        default=("dagster",), description="Modules that are imported once for all step processes."
    )
    max_concurrent: Count | None = Field(default=None, description="Maximum steps of one run at the same time.")
    k8s: Mapping[str, Any] | None = Field(default=None, description="Defaults of dagster-k8s' executor.")
    policy: PodPolicy | None = Field(default=None, description="What pods of steps may do beside the baseline.")

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        return dg.Definitions(executor=mlops_executor(**self.__dict__))
