"""Answers about deployments in Kubernetes, from the records that their rollouts leave in the cluster."""

from dagster_mlops.errors import DeploymentError, MissingExtraError, ProvenanceError
from dagster_mlops.provenance import Accessible, Answer, Deleted, Deployment, Faulty, Inaccessible, Record, Ref

_SCHEME = "kubernetes://"


class K8sTool:
    """Resolves ``deployment`` at ``kubernetes://context/namespace``; without a context in the cluster of this pod.

    >>> K8sTool().resolve(Ref("k8s", "deployment", "delay/delay-3-1f2e3d")).bucket
    'inaccessible'
    """

    def resolve(self, ref: Ref) -> Answer:
        """The record in the ConfigMap of the deployment; see :class:`dagster_mlops.tools.Tool`."""
        if ref.role != Deployment.role:
            return Inaccessible(f"The tool k8s keeps no {ref.role!r}, only deployments.")
        context, _, namespace = ref.at.removeprefix(_SCHEME).rpartition("/")
        if not ref.at.startswith(_SCHEME) or not namespace:
            return Inaccessible(f"{ref} does not say where it is kept, as {_SCHEME}context/namespace.")
        # For lineage, not for code locations.
        from dagster_mlops.k8s.resource import KubernetesResource
        from dagster_mlops.k8s.serving.cluster import Cluster

        name, _, deployment_id = ref.id.rpartition("/")
        try:
            with Cluster(KubernetesResource(context=context).client(), namespace) as cluster:
                stored = cluster.get("ConfigMap", deployment_id)
            if stored is None:
                return Deleted(f"Namespace {namespace} has no record of deployment {deployment_id!r}.")
            record = Record.from_json(stored["data"]["record"])
        except (DeploymentError, MissingExtraError) as error:
            return Inaccessible(str(error))
        except (ProvenanceError, KeyError) as error:
            return Faulty(f"The ConfigMap {deployment_id} in {ref.at} holds no record: {error}")
        if not isinstance(record, Deployment) or (name and record.name != name):
            return Faulty(f"The ConfigMap {deployment_id} in {ref.at} describes another thing than {ref.id}.", record)
        return Accessible(record)
