"""GPU profiles: a step's requirements of a cluster, named once and used on any asset."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ConfigDict, Field

from dagster_mlops.core.yaml_fields import YamlFields
from dagster_mlops.errors import ExecutorConfigError
from dagster_mlops.k8s.validation import CONFIG_TAG, validate_k8s_config


class GpuProfile(YamlFields):
    """A kind of GPU pod. Invalid profiles are refused where they are defined, without a cluster or its client.

        >>> h200 = GpuProfile(name="h200", gpus=2, product="NVIDIA-H200", memory="64Gi", pool="gpu-h200")
        >>> h200.k8s_config()["container_config"]["resources"]["limits"]
        {'nvidia.com/gpu': 2, 'memory': '64Gi'}

    Use it on an asset; executors other than Kubernetes ignore it::

        @dg.asset(op_tags=h200.op_tags(), pool=h200.pool)
        def model(training_set): ...

    A quarter of an A100 (MIG, mixed strategy), from a Kueue queue::

        GpuProfile(name="slice", resource="nvidia.com/mig-1g.5gb", queue="team-nlp", deadline_seconds=7200)

    Raises:
        ExecutorConfigError: No cluster would accept the profile; names the path and the fix.
    """

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="Name of the profile; the pods carry it as label dagster-mlops/gpu-profile.")
    gpus: Any = Field(default=1, description="Whole GPUs (or MIG slices) for a step; 0 for a CPU profile.")
    resource: str = Field(default="nvidia.com/gpu", description="Extended resource, e.g. nvidia.com/mig-1g.5gb.")
    product: str | Sequence[str] | None = Field(
        default=None, description="Acceptable GPU products, as in the node label nvidia.com/gpu.product."
    )
    memory: str | None = Field(default=None, description="Memory, request and limit, e.g. 64Gi.")
    cpu: str | float | None = Field(default=None, description="CPUs requested, without a limit, e.g. 8.")
    shm: str | None = Field(
        default=None, description="Size of /dev/shm (data loaders need it), e.g. 16Gi; it counts as memory."
    )
    tolerations: Sequence[Mapping[str, Any]] | None = Field(
        default=None, description="Tolerated taints; by default the one that GPU nodes carry (nvidia.com/gpu)."
    )
    node_selector: Mapping[str, str] = Field(default={}, description="Labels a node must have.")
    priority_class: str | None = Field(default=None, description="PriorityClass of the pods.")
    runtime_class: str | None = Field(default=None, description="RuntimeClass of the pods, e.g. nvidia.")
    queue: str | None = Field(default=None, description="Kueue LocalQueue that admits the Job.")
    deadline_seconds: int | None = Field(
        default=None, description="Seconds after which the Job is killed, including time in the queue."
    )
    ttl_seconds: int | None = Field(default=None, description="Seconds after which a finished Job is removed.")
    labels: Mapping[str, str] = Field(default={}, description="Labels of Job and pod, e.g. team and cost centre.")
    annotations: Mapping[str, str] = Field(default={}, description="Annotations of the pod.")
    pool: str | None = Field(
        default=None, description="Dagster pool that limits the number of such steps at the same time."
    )
    extra: Mapping[str, Any] = Field(
        default={}, description="Further dagster-k8s/config; merged last, dicts key by key, lists appended."
    )

    def model_post_init(self, context: Any) -> None:
        where = f"GpuProfile {self.name!r}"
        if isinstance(self.gpus, bool) or not isinstance(self.gpus, int) or self.gpus < 0:
            raise ExecutorConfigError(
                f"{where} is invalid:\n  gpus: {self.gpus!r} must be a whole number, 0 or more. "
                "For a part of a GPU name a MIG slice, e.g. resource='nvidia.com/mig-1g.5gb'."
            )
        if self.gpus and "/" not in self.resource:
            raise ExecutorConfigError(
                f"{where} is invalid:\n  resource: {self.resource!r} is not a device. Write e.g. 'nvidia.com/gpu'."
            )
        validate_k8s_config(self.k8s_config(), where)

    def op_tags(self) -> dict[str, Any]:
        """``op_tags`` of an asset or check, or ``tags`` of an op."""
        return {CONFIG_TAG: self.k8s_config()}

    def k8s_config(self) -> dict[str, Any]:
        """The value of ``dagster-k8s/config``, also valid as ``step_k8s_config`` of the executor."""
        limits: dict[str, Any] = {self.resource: self.gpus} if self.gpus else {}
        limits |= {"memory": self.memory} if self.memory is not None else {}
        # CPUs have no limit: throttled data loading starves the GPU.
        requests = {**limits, **({"cpu": str(self.cpu)} if self.cpu is not None else {})}
        tolerations, node_selector, affinity = self.tolerations, dict(self.node_selector), {}
        if tolerations is None and self.gpus:
            taint = f"{self.resource.split('/')[0]}/gpu"
            tolerations = [{"key": taint, "operator": "Exists", "effect": "NoSchedule"}]
        if isinstance(self.product, str):
            # A later selector replaces an earlier one, whereas affinity terms of two configs would be alternatives.
            node_selector["nvidia.com/gpu.product"] = self.product
        elif self.product:
            products = {"key": "nvidia.com/gpu.product", "operator": "In", "values": list(self.product)}
            terms = {"node_selector_terms": [{"match_expressions": [products]}]}
            affinity = {"node_affinity": {"required_during_scheduling_ignored_during_execution": terms}}
        labels = {"dagster-mlops/gpu-profile": self.name, **self.labels}
        shm = {"medium": "Memory", "size_limit": self.shm}
        sections = {
            "container_config": {
                "resources": {"limits": limits, "requests": requests},
                "volume_mounts": [{"name": "dshm", "mount_path": "/dev/shm"}] if self.shm is not None else [],
            },
            "pod_spec_config": {
                "node_selector": node_selector,
                "tolerations": [dict(toleration) for toleration in tolerations or ()],
                "affinity": affinity,
                "volumes": [{"name": "dshm", "empty_dir": shm}] if self.shm is not None else [],
                "priority_class_name": self.priority_class,
                "runtime_class_name": self.runtime_class,
            },
            "pod_template_spec_metadata": {"labels": labels, "annotations": dict(self.annotations)},
            "job_metadata": {"labels": {**labels, **({"kueue.x-k8s.io/queue-name": self.queue} if self.queue else {})}},
            "job_spec_config": {
                "suspend": True if self.queue else None,  # Kueue lifts it when the quota admits the Job
                "active_deadline_seconds": self.deadline_seconds,
                "ttl_seconds_after_finished": self.ttl_seconds,
            },
        }
        filled = {
            section: {field: value for field, value in fields.items() if value not in (None, "", [], {})}
            for section, fields in sections.items()
        }
        return merged({section: fields for section, fields in filled.items() if fields}, self.extra)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Both merged as dagster-k8s does with DEEP: dicts key by key, lists appended, other values replaced."""
    union = dict(base)
    for key, value in over.items():
        old = union.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            union[key] = merged(old, value)
        elif isinstance(old, list) and isinstance(value, list):
            union[key] = [*old, *(item for item in value if item not in old)]
        else:
            union[key] = value
    return union
