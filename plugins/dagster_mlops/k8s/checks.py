"""A check of a deployment in Kubernetes: its Service leads to it, its pods are ready, its model is the right one."""

from typing import Any

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.core.checks import asset_checks
from dagster_mlops.core.model_versions import refuse_alias
from dagster_mlops.core.resources import capable_resource


def kubernetes_deployment_check(
    *,
    asset: AssetLike,
    resource_key: str = "bentoml",
    cluster_key: str = "kubernetes",
    name: str = "health",
    alias: str | None = "champion",
    blocking: bool = False,
    **check_options: Any,
) -> dg.AssetChecksDefinition:
    """A check of the deployment that `asset` (a :func:`kubernetes_deployment_asset`) made.

    It fails when the Service leads elsewhere, or no pod is ready. It warns when fewer pods are ready than should be,
    with what they wait for, and when the registry's `alias` is on another version than the one served. The restarts of
    the pods are metadata. No prediction is asked for.

        checks = [kubernetes_deployment_check(asset=deployment)]

    Args:
        resource_key: The packaging tool's resource.
        cluster_key: A :class:`KubernetesResource`.
        check_options: Anything else that :func:`dagster.asset_check` takes.
    """
    key = asset_key(asset)
    if alias is not None:
        refuse_alias(alias, "mlflow", "alias")

    def health(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        # For steps, not for code locations.
        from dagster_mlops.k8s.resource import KubernetesResource
        from dagster_mlops.k8s.serving import diagnosis
        from dagster_mlops.k8s.serving.cluster import Cluster
        from dagster_mlops.k8s.serving.manifests import DEPLOYMENT
        from dagster_mlops.serving.checks import live_record
        from dagster_mlops.serving.packager import Packages

        record = live_record(context, key)
        kubernetes = capable_resource(context, cluster_key, KubernetesResource)
        with Cluster(kubernetes.client(), record.state_dir.rpartition("/")[2], pods_by=kubernetes.pods_by) as cluster:
            service = cluster.get("Service", record.name) or {}
            deployment = cluster.get("Deployment", record.id)
            pods = cluster.find("Pod", {DEPLOYMENT: record.id})
        selector = (service.get("spec") or {}).get("selector") or {}
        containers = [each for pod in pods for each in (pod.get("status") or {}).get("containerStatuses") or []]
        ready = sum(map(diagnosis.is_ready, pods))
        metadata: dict[str, Any] = {
            "deployment": record.id,
            "model_version": record.model_version,
            "ready_pods": ready,
            "restarts": sum(each.get("restartCount") or 0 for each in containers),
        }
        if deployment is None or selector.get(DEPLOYMENT) != record.id:
            problem = f"Service {record.name} leads to {selector or 'no pods'}, not to {record.id}."
            return dg.AssetCheckResult(passed=False, description=problem, metadata=metadata)
        progress = f"{record.id}: {diagnosis.progress(deployment, pods, 1)}."
        if not ready:
            return dg.AssetCheckResult(passed=False, description=progress, metadata=metadata)
        packager = capable_resource(context, resource_key, Packages)
        registered = packager.alias_version(record.model_name, alias) if alias else None
        problem = "" if diagnosis.is_available(deployment, 1) else progress
        if registered not in (None, record.model_version):
            model = f"{record.model_name} version {record.model_version}"
            problem = f"serves {model}, but '{alias}' is version {registered}."
        return dg.AssetCheckResult(
            passed=not problem,
            severity=dg.AssetCheckSeverity.WARN if problem else dg.AssetCheckSeverity.ERROR,
            description=problem,
            metadata={**metadata, "alias_version": registered or "none"},
        )

    return asset_checks(
        asset=key,
        tool="k8s",
        judges={name: ("The Service leads to the deployment on record, and its pods are ready.", health)},
        blocking=blocking,
        required_resource_keys=[resource_key, cluster_key],
        options=check_options,
    )
