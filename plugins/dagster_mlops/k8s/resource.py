"""A connection to a Kubernetes cluster."""

import os
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dagster_mlops.core.extras import extra
from dagster_mlops.core.resources import ToolResource
from dagster_mlops.errors import DeploymentError

if TYPE_CHECKING:
    from kubernetes.client import ApiClient


class KubernetesResource(ToolResource):
    """Hands out the Kubernetes client of one cluster.

    In a pod it is the cluster of the pod, with its service account, unless a context or a kubeconfig is named.

        resources = {"kubernetes": KubernetesResource(context="production")}
        client.CoreV1Api(resources["kubernetes"].client())
    """

    context: str = Field(default="", description="Context of the kubeconfig; its current one unless given.")
    kubeconfig: str = Field(default="", description="Path of the kubeconfig; $KUBECONFIG or ~/.kube/config by default.")
    pods_by: Literal["api", "network"] = Field(
        default="api",
        description="Way to the pods, for golden rows: through the API server, or by their own addresses.",
    )

    def place(self, namespace: str) -> str:
        """The address of a namespace in records: ``kubernetes://context/namespace``, without a context in a cluster."""
        return f"kubernetes://{'' if self._is_inside else self._context_name()}/{namespace}"

    def client(self) -> "ApiClient":
        """Kubernetes' own client.

        Raises:
            DeploymentError: A kubeconfig is missing, or it lacks the context.
        """
        kubernetes = extra("kubernetes", extra="k8s")
        try:
            if self._is_inside:
                configuration = kubernetes.client.Configuration()
                kubernetes.config.load_incluster_config(client_configuration=configuration)
                return kubernetes.client.ApiClient(configuration)
            return kubernetes.config.new_client_from_config(self._file, self.context or None)
        except (kubernetes.config.ConfigException, OSError) as error:
            raise DeploymentError(self._hint(error)) from error

    @property
    def _is_inside(self) -> bool:
        return not (self.context or self.kubeconfig) and "KUBERNETES_SERVICE_HOST" in os.environ

    @property
    def _file(self) -> str | None:
        # The client reads the variable once, when it is imported.
        return self.kubeconfig or os.environ.get("KUBECONFIG") or None

    def _context_name(self) -> str:
        if self.context:
            return self.context
        config = extra("kubernetes.config", extra="k8s")
        try:
            return config.list_kube_config_contexts(self._file)[1]["name"]
        except (config.ConfigException, OSError) as error:
            raise DeploymentError(self._hint(error)) from error

    def _hint(self, error: Exception) -> str:
        source = self.kubeconfig or "$KUBECONFIG or ~/.kube/config"
        return (
            f"{source} leads to no cluster: {error}. Give KubernetesResource(kubeconfig=…, context=…) those that "
            "`kubectl config get-contexts` shows."
        )
