"""A package that serves in Kubernetes, verified against the registered model before it takes traffic."""

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_input, asset_key
from dagster_mlops.core.asset_records import dagster_facts
from dagster_mlops.core.bounds import refuse_useless
from dagster_mlops.core.metadata import link
from dagster_mlops.core.options import asset_with
from dagster_mlops.core.resources import capable_resource
from dagster_mlops.core.table_hash import content_hash
from dagster_mlops.errors import DeploymentError
from dagster_mlops.k8s.serving.target import KubernetesTarget

if TYPE_CHECKING:
    from dagster_mlops.serving import LogRules

_NAME = r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?"


def kubernetes_deployment_asset(
    *,
    name: str = "deployment",
    package: AssetLike,
    golden_set: AssetLike | dg.AssetIn,
    target: KubernetesTarget,
    resource_key: str = "bentoml",
    cluster_key: str = "kubernetes",
    tolerance: float = 1e-9,
    golden_rows: int = 200,
    route: str = "",
    log_sync_seconds: float = 1,
    log_rules: "LogRules | None" = None,
    promoted_to: str = "",
    threads: int | None = None,
    ready_timeout: float = 300,
    pending_timeout: float = 120,
    drain_seconds: float | None = None,
    request_timeout: float = 30,
    **asset_options: Any,
) -> dg.AssetsDefinition:
    """An asset that serves the package which the asset `package` recorded as pods behind a Service of the cluster.

    The new pods take traffic only when all are ready and the predictions of each for the golden set equal those of the
    registered model; then the Service's selector moves to them, and the old pods drain and stop. When anything fails,
    the old ones stay. A re-run changes nothing while the same package is live with the same settings, and finishes or
    undoes what a killed run left.

        deployment = kubernetes_deployment_asset(
            name="delay",
            package="package",
            golden_set="training_set",
            target=KubernetesTarget(namespace="ml", image="registry.example.com/{tag}"),
        )

    Args:
        name: Name of the asset and of the Service; with `key` among the options, of the Service only.
        package: An asset whose latest materialization holds the record of a package.
        golden_set: An asset that its IO manager loads as a dataframe; columns the model does not take are left out.
        target: Namespace, image, size and settings of the pods.
        resource_key: The packaging tool's resource, such as ``BentomlResource``.
        cluster_key: A :class:`KubernetesResource`.
        tolerance: The largest difference between a served prediction and one of the registered model.
        golden_rows: The most rows that are compared, evenly spread over the golden set.
        route: The server's route for predictions, where it is not the packaging tool's usual one.
        log_sync_seconds: Seconds of predictions that a power cut may cost; with 0, none that was answered.
        log_rules: Features that the prediction log leaves out or hashes, and the share of rows that it has.
        promoted_to: An alias such as ``champion``: serve only the version whose promotion to it is on record in the
            model's history, with these files, and signed by a key in ``DAGSTER_MLOPS_PUBLIC_KEYS``.
        threads: Threads of a server for its predictions, where the packaging tool knows them.
        ready_timeout: Seconds for all pods to be ready.
        pending_timeout: Seconds that a pod may wait for a node.
        drain_seconds: The most seconds that a pod gets to answer what it has begun, once it is to stop;
            `request_timeout` unless given.
        request_timeout: Seconds after which the server ends a request, where it can.
        asset_options: Anything else that :func:`dagster.asset` takes.

    Raises:
        DeploymentError: `name` cannot be that of a Service.
    """
    if not re.fullmatch(_NAME, name):
        raise DeploymentError(
            f"kubernetes_deployment_asset(name={name!r}): a Service takes up to 40 of a-z, 0-9 and '-', beginning with "
            "a letter. Give another name; key= sets that of the asset."
        )
    key = asset_key(package)
    if log_rules:
        refuse_useless(f"kubernetes_deployment_asset {name!r}: log_rules", log_rules.faults())

    def deployment(context: dg.AssetExecutionContext, golden: Any) -> dg.MaterializeResult:
        # For steps, not for code locations.
        from dagster_mlops.k8s.resource import KubernetesResource
        from dagster_mlops.k8s.serving.cluster import Cluster
        from dagster_mlops.k8s.serving.manifests import TOOL, Release
        from dagster_mlops.k8s.serving.rollout import Plan, rollout
        from dagster_mlops.serving.package_to_serve import package_to_serve
        from dagster_mlops.serving.packager import Packages, ServerSettings, server_of

        record, evidence = package_to_serve(context, key, promoted_to)
        packager = capable_resource(context, resource_key, Packages)
        kubernetes = capable_resource(context, cluster_key, KubernetesResource)
        if not hasattr(golden, "columns"):
            raise DeploymentError(
                f"the golden set was loaded as {type(golden).__name__}, not as a dataframe. Use an unpartitioned asset "
                "whose IO manager gives a pandas dataframe."
            )
        private = log_rules.private if log_rules else {}
        if missing := sorted(set(private) - set(map(str, golden.columns))):
            raise DeploymentError(f"log_rules: the golden set has no feature {', '.join(missing)}. Correct private=.")
        server = server_of(packager, record, target.port, ServerSettings(threads=threads, timeout=request_timeout))
        release = Release(
            name=name,
            package=record,
            target=target,
            server=server,
            place=kubernetes.place(target.namespace),
            environment={
                **(log_rules.to_environment() if log_rules else {}),
                "DAGSTER_MLOPS_PREDICTION_LOG_SYNC": f"{log_sync_seconds:g}",
            },
            drain_seconds=request_timeout if drain_seconds is None else drain_seconds,
            ready_timeout=ready_timeout,
        )
        plan = Plan(
            release=release,
            route=route or server.route,
            golden_hash=hashlib.sha256(
                json.dumps([golden_rows, tolerance, content_hash(golden, tool="k8s")]).encode()
            ).hexdigest()[:12],
            golden=lambda: packager.golden(record, golden, golden_rows),
            facts=dagster_facts(context),
            tolerance=tolerance,
            request_timeout=request_timeout,
            pending_timeout=pending_timeout,
        )
        with Cluster(kubernetes.client(), target.namespace, pods_by=kubernetes.pods_by) as cluster:
            live = rollout(plan, cluster, context.log)
        facts = {"ready_seconds": live.ready_seconds, "switch_seconds": live.switch_seconds}
        facts |= {"started": live.started, "namespace": target.namespace, "gates": evidence}
        return dg.MaterializeResult(
            # The same package answers the same, whichever pods serve it.
            data_version=dg.DataVersion(record.tag),
            metadata=live.record.to_metadata(
                {**link(f"{TOOL}/url", live.record.url), **{f"{TOOL}/{fact}": value for fact, value in facts.items()}}
            ),
        )

    return asset_with(
        asset_options,
        name=name,
        deps=[key],
        ins={"golden": asset_input(golden_set)},
        required_resource_keys=[resource_key, cluster_key],
        kinds=["kubernetes"],
        description="The live deployment in Kubernetes: a served package, verified on the golden set before it took "
        "traffic.",
    )(deployment)
