"""Manifests without a rollout: for a repository that another tool applies, or for KServe."""

from typing import Any

from dagster_mlops.errors import DeploymentError
from dagster_mlops.k8s.serving.manifests import Release
from dagster_mlops.k8s.serving.target import KubernetesTarget
from dagster_mlops.k8s.validation import manifest_problems
from dagster_mlops.provenance import Package
from dagster_mlops.serving import Server


def deployment_manifests(
    package: Package, target: KubernetesTarget, server: Server, *, name: str = "deployment", place: str = ""
) -> list[dict[str, Any]]:
    """The manifests that a rollout sends for a package, checked against the schemas of Kubernetes.

    They lack its Secret, by which golden rows are not logged, and its record.

        deployment_manifests(package, target, bentoml.server(package, target.port))

    Args:
        package: Record of the package.
        target: Namespace, image, size and settings of the pods.
        server: The tool's server, for its routes: ``resource.server(package, port)``.
        name: Name of the Service.
        place: Address of the namespace in the records of predictions; see :meth:`KubernetesResource.place`.

    Raises:
        DeploymentError: A field is not one of Kubernetes', or has a value of another type.
    """
    release = _release(package, target, server, name, place)
    manifests = [*release.manifests(), release.service(release.selector, "")]
    if problems := [problem for manifest in manifests for problem in manifest_problems(manifest)]:
        raise DeploymentError(f"The manifests of {name!r} are invalid:\n  " + "\n  ".join(problems))
    return manifests


def inference_service(
    package: Package, target: KubernetesTarget, server: Server, *, name: str = "deployment", place: str = ""
) -> dict[str, Any]:
    """The same pods as an ``InferenceService`` of KServe, which rolls them out itself, without golden rows.

        inference_service(package, target, bentoml.server(package, target.port))

    Args:
        package, target, server, name, place: As of :func:`deployment_manifests`.
    """
    return _release(package, target, server, name, place).inference_service()


def _release(package: Package, target: KubernetesTarget, server: Server, name: str, place: str) -> Release:
    place = place or f"kubernetes:///{target.namespace}"
    release = Release(name=name, package=package, target=target, server=server, place=place, has_probe=False)
    # The same input gives the same manifests, as a repository of them wants.
    return release.with_id(f"{name}-{release.fingerprint[:8]}")
