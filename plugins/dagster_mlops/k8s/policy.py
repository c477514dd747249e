"""The limits of what pods of steps may do on a cluster, whoever asks: an asset's tag, the run config or a default."""

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from pydantic import ConfigDict, Field

from dagster_mlops.core.yaml_fields import YamlFields
from dagster_mlops.errors import ExecutorConfigError
from dagster_mlops.k8s.schema import SECTIONS, camel_case

# Kubernetes' Pod Security Standards, level Baseline: https://kubernetes.io/docs/concepts/security/pod-security-standards
_BASELINE_CAPABILITIES = {
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP",
    "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}  # fmt: skip
_BASELINE_SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
}  # fmt: skip
# Of level Restricted: for other kinds, the node mounts a server that the pod names, or runs a program as root, such as
# the hooks of a gitRepo (CVE-2024-10220).
_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
_SELINUX_TYPES = {"container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
_HOST_NAMESPACES = ("hostNetwork", "hostPID", "hostIPC")
_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
# Annotations by which clusters before 1.30 turn a profile off: https://kubernetes.io/docs/reference/labels-annotations-taints
_PROFILES = {
    "container.apparmor.security.beta.kubernetes.io/": "appArmorProfile",
    "container.seccomp.security.alpha.kubernetes.io/": "seccompProfile",
    "seccomp.security.alpha.kubernetes.io/pod": "seccompProfile",
}
_PROFILES_ON = ("runtime/default", "docker/default", "localhost/")


class PodPolicy(YamlFields):
    """The fields that a step's pod may have beside those of all steps, and of Kubernetes' baseline of pod security.

    The baseline has no privileged containers, no network, processes, ports or folders of the node, and no further
    capabilities; volumes are of the kinds that level Restricted has. What launcher (``dagster.yaml``), code location
    and ``mlops_executor(k8s=…)`` give to all steps is allowed: service account, namespace, volumes.

        mlops_executor(policy=PodPolicy(service_accounts=["trainer"], host_paths=["/mnt/datasets"]))
    """

    model_config = ConfigDict(frozen=True)

    service_accounts: Sequence[str] = Field(default=(), description="Service accounts that steps may run as.")
    namespaces: Sequence[str] = Field(default=(), description="Namespaces that steps may run in.")
    host_paths: Sequence[str] = Field(default=(), description="Folders of the node that may be mounted, or parts of.")
    capabilities: Sequence[str] = Field(
        default=(), description="Linux capabilities beside the baseline's: IPC_LOCK for RDMA, say."
    )
    allow: Sequence[str] = Field(
        default=(),
        description="Fields of the baseline that may be set all the same, by their name in Kubernetes: hostNetwork, "
        "privileged, …; all of them: '*'.",
    )

    def refuse(
        self,
        config: Mapping[str, Any],
        where: str,
        *,
        namespace: str | None = None,
        base: Mapping[str, Any] | None = None,
        base_namespace: str | None = None,
    ) -> None:
        """Refuse a ``dagster-k8s/config`` that asks for more than the policy allows.

        Args:
            config: The config of a step, with that of all layers.
            where: How errors call it.
            namespace: The namespace of the step's pod.
            base: What all steps have, which is allowed.
            base_namespace: Their namespace.

        Raises:
            ExecutorConfigError: Names each field that the policy does not allow, and how to allow it.
        """
        problems = dict.fromkeys(self._problems_of_all(config))
        for place in (namespace, *_namespaces(config)):
            if place and place not in (base_namespace, *self.namespaces):
                problems["namespaces", f"namespace {place!r}"] = None
        allowed = set(self._problems_of_all(base or {}))
        refused = [p for p in problems if p not in allowed and not {"*", p[0]} & {*self.allow}]
        if refused:
            lines = "".join(f"\n  {what} (to allow it: {_setting(field)})" for field, what in refused)
            raise ExecutorConfigError(
                f"{where} asks for what the policy of the executor does not allow:{lines}\n"
                "Leave it out, or allow it in mlops_executor(policy=PodPolicy(…))."
            )

    def _problems_of_all(self, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Fields that are not allowed, with what is wrong about them."""
        parts = {section: camel_case(config.get(section) or {}, SECTIONS[section]) for section in SECTIONS}
        template = (
            parts["job_spec_config"].get("template") or {},
            (parts["job_config"].get("spec") or {}).get("template"),
        )
        pods = [parts["pod_spec_config"], *((t or {}).get("spec") or {} for t in template)]
        metadata = [parts["pod_template_spec_metadata"], *((t or {}).get("metadata") or {} for t in template)]
        for pod in [*pods, {"containers": [parts["container_config"]]}]:
            yield from self._problems(pod)
        for data in metadata:
            for name, value in (data.get("annotations") or {}).items():
                for prefix, field in _PROFILES.items():
                    if name.startswith(prefix) and not str(value).startswith(_PROFILES_ON):
                        yield field, f"annotation {name}: {value}"

    def _problems(self, pod: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        for name in _HOST_NAMESPACES:
            if pod.get(name):
                yield name, f"{name}: {pod[name]}"
        account = pod.get("serviceAccountName") or pod.get("serviceAccount")
        if account and account not in self.service_accounts:
            yield "service_accounts", f"service account {account!r}"
        for volume in pod.get("volumes") or ():
            path = (volume.get("hostPath") or {}).get("path")
            if path is not None and not any(_is_below(path, folder) for folder in self.host_paths):
                yield "host_paths", f"folder {path!r} of the node, as volume {volume.get('name')!r}"
            for kind in volume.keys() - _VOLUMES - {"hostPath", "name"}:
                if volume[kind] is not None:
                    yield kind, f"volume {volume.get('name')!r} of type {kind}"
        yield from _security_problems(pod.get("securityContext") or {}, "pod")
        for kind in ("containers", "initContainers", "ephemeralContainers"):
            for container in pod.get(kind) or ():
                yield from self._container_problems(container)

    def _container_problems(self, container: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        name, security = "container", container.get("securityContext") or {}
        for port in container.get("ports") or ():
            if port.get("hostPort"):
                yield "hostPort", f"{name}: hostPort {port['hostPort']}"
        for field in ("privileged", "procMount"):
            if security.get(field) not in (None, False, "Default"):
                yield field, f"{name}: {field}: {security[field]}"
        handlers = [container.get(probe) for probe in _PROBES]
        handlers += [(container.get("lifecycle") or {}).get(hook) for hook in ("postStart", "preStop")]
        for handler in filter(None, handlers):
            for action in (handler.get("httpGet") or {}, handler.get("tcpSocket") or {}):
                if action.get("host"):  # the node asks it, with the node's access to the network
                    yield "hostProbes", f"{name}: a probe or hook of host {action['host']}"
        added = {str(capability) for capability in (security.get("capabilities") or {}).get("add") or ()}
        if more := added - _BASELINE_CAPABILITIES - set(self.capabilities):
            yield "capabilities", f"{name}: capabilities {', '.join(sorted(more))}"
        yield from _security_problems(security, name)


def _security_problems(security: Mapping[str, Any], where: str) -> Iterator[tuple[str, str]]:
    """Fields that the security contexts of pods and of containers have in common, beside the pod's own."""
    for field in ("seccompProfile", "appArmorProfile"):
        if (security.get(field) or {}).get("type") == "Unconfined":
            yield field, f"{where}: {field} Unconfined"
    if (security.get("windowsOptions") or {}).get("hostProcess"):
        yield "hostProcess", f"{where}: hostProcess"
    selinux = security.get("seLinuxOptions") or {}
    if selinux.get("user") or selinux.get("role") or (selinux.get("type") or "container_t") not in _SELINUX_TYPES:
        yield "seLinuxOptions", f"{where}: seLinuxOptions {dict(selinux)}"
    for sysctl in security.get("sysctls") or ():
        if sysctl.get("name") not in _BASELINE_SYSCTLS:
            yield "sysctls", f"{where}: sysctl {sysctl.get('name')}"


def _namespaces(config: Mapping[str, Any]) -> Iterator[str]:
    """The namespaces in the metadata of a job and its pods, beside the one in which the executor creates the job."""
    job, spec = config.get("job_config") or {}, config.get("job_spec_config") or {}
    described = [config.get("job_metadata"), config.get("pod_template_spec_metadata"), job.get("metadata")]
    templates = (spec.get("template"), (job.get("spec") or {}).get("template"))
    for metadata in (*described, *((template or {}).get("metadata") for template in templates)):
        yield (metadata or {}).get("namespace") or ""


def _is_below(path: str, folder: str) -> bool:
    """True if a path of the node is a folder or below it, as far as its name tells: links of the node are not seen."""
    return PurePosixPath(posixpath.normpath(path)).is_relative_to(posixpath.normpath(folder))


def _setting(field: str) -> str:
    return field if field in PodPolicy.model_fields else f'allow=["{field}"]'
