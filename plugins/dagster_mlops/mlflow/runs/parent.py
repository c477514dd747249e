"""The parent MLflow run of all trainings of one Dagster run, where there are several."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import dagster as dg

from dagster_mlops.core.environment import environment
from dagster_mlops.mlflow.lazy import MlflowClient, Run, mlflow
from dagster_mlops.mlflow.metadata_keys import REGISTERED_AS
from dagster_mlops.mlflow.runs import lookup as runs
from dagster_mlops.mlflow.runs.signals import undisturbed
from dagster_mlops.mlflow.server.client import GONE, or_none, refused, request_limits
from dagster_mlops.provenance import NAMESPACE, mask_credentials

if TYPE_CHECKING:
    from dagster_mlops.mlflow.resource import MlflowResource

PARENT_TAG = f"{NAMESPACE}/mlflow_parent."
"""Start of the tag of a Dagster run that names its parent MLflow run; the id of the experiment follows."""
_ENDED = {"SUCCESS": "FINISHED", "FAILURE": "FAILED", "CANCELED": "KILLED"}


@contextmanager
def parent_run(
    context: dg.AssetExecutionContext, client: "MlflowClient", resource: "MlflowResource", experiment_id: str
) -> Iterator[str]:
    """The id of the parent of this step's run; empty when the Dagster run trains one asset only.

    The parent is RUNNING while one of its trainings is, and then ends as they did.
    """
    layer = context.job_def.asset_layer
    if sum(REGISTERED_AS in layer.get(key).metadata for key in layer.selected_asset_keys) < 2:
        yield ""
        return
    parent = _find_or_create(context, client, resource, experiment_id)
    try:
        yield parent
    finally:
        try:
            with undisturbed(), environment(**request_limits(timeout=10, retries=4)):
                _settle(client, experiment_id, parent)
        except (mlflow.MlflowException, OSError) as error:
            context.log.warning(f"MLflow run {parent} could not be updated: {mask_credentials(str(error))}")


def close_parents_of(client: "MlflowClient", dagster_run: dg.DagsterRun) -> list[str]:
    """Give the parents of a Dagster run's trainings the status of that run, unless a re-execution is running."""
    status, closed = _ENDED[dagster_run.status.value], []
    for parent in [value for name, value in dagster_run.tags.items() if name.startswith(PARENT_TAG)]:
        run = or_none(client.get_run, parent)
        if run is None or run.info.status == status:
            continue
        goes_on = any(child.info.status == "RUNNING" for child in _children(client, run.info.experiment_id, parent))
        if not goes_on and not refused(GONE, lambda parent=parent: client.set_terminated(parent, status)):
            closed.append(parent)
    return closed


def _find_or_create(
    context: dg.AssetExecutionContext, client: "MlflowClient", resource: "MlflowResource", experiment_id: str
) -> str:
    """The parent's id. It is a tag of the Dagster run once its first step has started, and of a re-execution."""
    tag = f"{PARENT_TAG}{experiment_id}"
    dagster_run = context.instance.get_run_by_id(context.run.run_id)  # the context's has the tags of its start
    parent = dagster_run.tags.get(tag) if dagster_run else None
    # All steps before this one may have ended.
    if parent and not refused(GONE, lambda: client.update_run(parent, status="RUNNING")):
        return parent
    root = context.run.root_run_id or context.run.run_id
    key = {runs.KEY: f"{root}/"}
    earliest = next(runs.search(client, [experiment_id], key), None)
    if earliest is None:
        job = "assets" if context.run.job_name.startswith("__") else context.run.job_name
        url = resource.dagster_run_url(root)
        tags = {
            **key,
            runs.DAGSTER_RUN: root,
            "mlflow.source.name": job,
            "mlflow.source.type": "JOB",
            **({runs.DAGSTER_URL: url, runs.NOTE: f"[Dagster run {root[:8]}]({url}) of `{job}`"} if url else {}),
        }
        began = time.monotonic()
        created = client.create_run(experiment_id, tags=tags, run_name=f"{job} {root[:8]}")
        # MLflow cannot create a run conditionally. After twice the time that this took, a run that another process is
        # creating right now is visible, too: then all processes keep the earliest one.
        time.sleep(max(0.1, 2 * (time.monotonic() - began)))
        earliest = next(runs.search(client, [experiment_id], key), created)
        if earliest.info.run_id != created.info.run_id:
            client.delete_run(created.info.run_id)
    context.instance.add_run_tags(context.run.run_id, {tag: earliest.info.run_id})
    return earliest.info.run_id


def _settle(client: "MlflowClient", experiment_id: str, parent: str) -> None:
    # Earliest first, so that an asset's latest run counts.
    children = {run.data.tags.get(runs.TARGET, ""): run for run in _children(client, experiment_id, parent)}
    statuses = {run.info.status for run in children.values()}
    if "RUNNING" not in statuses:
        client.set_terminated(parent, next((bad for bad in ("FAILED", "KILLED") if bad in statuses), "FINISHED"))


def _children(client: "MlflowClient", experiment_id: str, parent: str) -> "Iterator[Run]":
    return runs.search(client, [experiment_id], {runs.PARENT: parent})
