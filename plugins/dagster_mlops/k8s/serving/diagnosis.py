"""The reason why pods are not ready, in words that name the fix."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from dagster_mlops.k8s.serving.manifests import SERVER

_PULL = ("ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
_CREATE = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")


def is_available(deployment: Mapping[str, Any], fewest: int) -> bool:
    """True when all pods of a Deployment are those of its current manifest, and ready."""
    status, metadata = deployment.get("status") or {}, deployment["metadata"]
    replicas = max(fewest, (deployment.get("spec") or {}).get("replicas") or 0)
    counts = [status.get(name) or 0 for name in ("updatedReplicas", "availableReplicas")]
    is_observed = (status.get("observedGeneration") or 0) >= (metadata.get("generation") or 0)
    return is_observed and min(counts) >= replicas and (status.get("replicas") or 0) == counts[0]


def fault(
    deployment: Mapping[str, Any],
    pods: Sequence[Mapping[str, Any]],
    *,
    log: Callable[[str, bool], str],
    pending_timeout: float,
) -> str:
    """The reason why a Deployment cannot become available without a change; empty while it may.

    Args:
        log: The end of the server's log in a pod; of its start before this one if the second argument is true.
        pending_timeout: Seconds that a pod may wait for a node.
    """
    return next(_faults(deployment, pods, log, pending_timeout), "")


def _faults(
    deployment: Mapping[str, Any],
    pods: Sequence[Mapping[str, Any]],
    log: Callable[[str, bool], str],
    pending_timeout: float,
) -> Iterator[str]:
    refusal = _condition(deployment, "ReplicaFailure")
    if refusal.get("status") == "True":
        yield (
            f"the namespace refuses its pods: {_sentence(refusal)} While deployments change, the pods of both run: "
            "raise the quota, lower replicas=, or give the pods what the policy of the namespace asks for."
        )
    for pod in pods:
        if _condition(pod, "Ready").get("status") == "True":
            continue
        name = pod["metadata"]["name"]
        for container in _containers(pod):
            if reason := _container_fault(name, container, pod, log):
                yield reason
        scheduled = _condition(pod, "PodScheduled")
        if scheduled.get("reason") == "Unschedulable" and _age(pod) > pending_timeout:
            yield (
                f"no node takes pod {name}: {_sentence(scheduled)} Lower what the profile asks for, or raise "
                "pending_timeout= where nodes are added on demand."
            )


def _container_fault(
    pod: str, container: Mapping[str, Any], manifest: Mapping[str, Any], log: Callable[[str, bool], str]
) -> str:
    state, before = container.get("state") or {}, container.get("lastState") or {}
    waiting, image = state.get("waiting") or {}, container.get("image")
    if waiting.get("reason") in _PULL:
        return (
            f"image {image} cannot be pulled ({waiting['reason']}): {_sentence(waiting)} Push it, correct image=, or "
            "name the registry's Secret under image_pull_secrets of pod_spec_config in k8s_config=."
        )
    if waiting.get("reason") in _CREATE:
        return (
            f"pod {pod} cannot start ({waiting['reason']}): {_sentence(waiting)} A Secret that "
            "the option secrets names may lack, or its key; or the image has no user with a number: user=."
        )
    end = state.get("terminated") or before.get("terminated")
    if not end or (container["name"] != SERVER and end.get("exitCode") == 0):  # an init container that is done
        return ""
    if end.get("reason") == "OOMKilled":
        limits = [
            each.get("resources", {}).get("limits", {}).get("memory")
            for each in (*manifest["spec"].get("initContainers", ()), *manifest["spec"]["containers"])
            if each["name"] == container["name"]
        ]
        limit = next(filter(None, limits), "that of the node")
        return f"pod {pod} was killed (OOMKilled): its memory limit is {limit}. Raise memory= of the profile."
    if container["name"] != SERVER:
        return f"container {container['name']} of pod {pod} ended with exit code {end.get('exitCode')}."
    return (
        f"the server ended with exit code {end.get('exitCode')} before it was ready. The end of the log of pod {pod}:\n"
        f"{log(pod, 'terminated' not in state)}"
    )


def _sentence(state: Mapping[str, Any]) -> str:
    return f"{str(state.get('message') or 'no reason').rstrip('. ')}."


def progress(deployment: Mapping[str, Any], pods: Sequence[Mapping[str, Any]], fewest: int) -> str:
    """One line on how far a Deployment is: pods that are ready, and what the others wait for."""
    ready = [pod for pod in pods if _condition(pod, "Ready").get("status") == "True"]
    count = max(fewest, (deployment.get("spec") or {}).get("replicas") or 0)
    reasons = sorted({_wait(pod) for pod in pods if pod not in ready} - {""})
    return f"{len(ready)} of {count} pods are ready{': ' if reasons else ''}{'; '.join(reasons)}"


def _wait(pod: Mapping[str, Any]) -> str:
    if pod["metadata"].get("deletionTimestamp"):
        return "one stops"
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return f"waits for a node ({scheduled.get('message')})"
    for container in _containers(pod):
        if waiting := (container.get("state") or {}).get("waiting"):
            return f"{waiting.get('reason')} {waiting.get('message') or ''}".strip()
    return "the server is not ready"


def is_ready(pod: Mapping[str, Any]) -> bool:
    """True for a pod that takes requests, and is not being stopped."""
    return _condition(pod, "Ready").get("status") == "True" and not pod["metadata"].get("deletionTimestamp")


def _containers(pod: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def _condition(thing: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    conditions = (thing.get("status") or {}).get("conditions") or []
    return next((condition for condition in conditions if condition["type"] == kind), {})


def _age(pod: Mapping[str, Any]) -> float:
    return time.time() - datetime.fromisoformat(pod["metadata"]["creationTimestamp"]).timestamp()
