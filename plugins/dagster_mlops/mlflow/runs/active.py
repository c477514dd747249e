"""The step's run as MLflow's active run, and its parent where a Dagster run trains several assets."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import dagster as dg

from dagster_mlops.core import markdown
from dagster_mlops.core.environment import environment
from dagster_mlops.mlflow import upstream
from dagster_mlops.mlflow.lazy import MlflowClient, Run, entities, mlflow
from dagster_mlops.mlflow.metadata_keys import REGISTERED_AS
from dagster_mlops.mlflow.runs import lookup as runs
from dagster_mlops.mlflow.runs.signals import undisturbed
from dagster_mlops.mlflow.server.client import GONE, or_none, refused, request_limits
from dagster_mlops.provenance import NAMESPACE, mask_credentials

if TYPE_CHECKING:
    from dagster_mlops.mlflow.resource import Tracking

PARENT_TAG = f"{NAMESPACE}/mlflow_parent."
"""Start of the tag of a Dagster run that names its parent MLflow run; the id of the experiment follows."""
_ENDED = {"SUCCESS": "FINISHED", "FAILURE": "FAILED", "CANCELED": "KILLED"}


@contextmanager
def open_run(
    context: dg.AssetExecutionContext,
    tracking: "Tracking",
    name: str,
    tags: Mapping[str, str],
    *,
    continued: Run | None,
) -> Iterator[Run]:
    """Start or continue a run, make it MLflow's active one, and close it however the block ends."""
    client, stack = tracking.client, upstream.active_runs()
    depth, run = len(stack), continued
    try:
        if run is None and not stack and context.run.parent_run_id is None:
            options = {"experiment_id": tracking.experiment_id, "run_name": name, "tags": dict(tags)}
            run = mlflow.start_run(**options, log_system_metrics=False)
        else:
            # A re-execution may have rivals; and by default MLflow makes a new run the child of one that was left open
            # in this process.
            if run is None:
                run = runs.create_run(client, tracking.experiment_id, name, tags)
            else:
                # Before it is RUNNING: the sensor would close it, since the previous attempt's Dagster run has ended.
                owner = [entities.RunTag(name, tags[name]) for name in (runs.DAGSTER_RUN, runs.OWNER)]
                client.log_batch(run.info.run_id, tags=owner)
            mlflow.start_run(run_id=run.info.run_id, nested=True, log_system_metrics=False)
        with _shared(run, tags[runs.DAGSTER_RUN]):
            yield run
    except BaseException as error:
        # Exception: the training failed. Anything else (Dagster's termination, Ctrl-C) is an interruption.
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        if run is not None:
            # The error, or the person who pressed Terminate, must not wait for a server that is down.
            try:
                with undisturbed(), environment(**request_limits(timeout=10, retries=4 if status == "FAILED" else 2)):
                    _leave(tracking, run, depth, status)
                    runs.close_run(client, run, status, f"{type(error).__name__}: {error}")
            except Exception as second:  # noqa: BLE001 - people have to see the training's own error
                context.log.warning(
                    f"MLflow run {run.info.run_id} could not be closed: {mask_credentials(str(second))}"
                )
        raise
    with undisturbed():
        _leave(tracking, run, depth, "FINISHED")
        client.set_terminated(run.info.run_id, "FINISHED")


@contextmanager
def _shared(run: Run, dagster_run_id: str) -> Iterator[None]:
    """Let threads and forked processes log to the run, and make runs that others start its children."""
    inherited = json.loads(os.environ.get("MLFLOW_RUN_CONTEXT") or "{}")
    tags = {**inherited, runs.PARENT: run.info.run_id, runs.DAGSTER_RUN: dagster_run_id}
    with upstream.run_for_threads_without(run), environment(MLFLOW_RUN_CONTEXT=json.dumps(tags)):
        yield


def _leave(tracking: "Tracking", run: Run, depth: int, status: str) -> None:
    """Take the run off MLflow's stack of active runs, and end what the function left open inside it."""
    stack = upstream.active_runs()
    mlflow.set_tracking_uri(tracking.resource.address)  # the function may have pointed it elsewhere
    try:
        while len(stack) > depth:
            if stack[-1].info.run_id == run.info.run_id:
                stack.pop()  # the caller closes it
            else:
                mlflow.end_run(status)
    finally:
        del stack[depth:]  # the next step of this process starts without them, even when no server answers
    for thread_runs in upstream.active_runs_by_thread():
        for child in [child for child in thread_runs if child.data.tags.get(runs.PARENT) == run.info.run_id]:
            tracking.client.set_terminated(child.info.run_id, status)
            thread_runs.remove(child)


@contextmanager
def parent_run(context: dg.AssetExecutionContext, tracking: "Tracking") -> Iterator[dict[str, str]]:
    """The tag that makes this step's run a child; none when the Dagster run trains one asset only.

    The parent is RUNNING while one of its trainings is, and then ends as they did.
    """
    layer = context.job_def.asset_layer
    if sum(REGISTERED_AS in layer.get(key).metadata for key in layer.selected_asset_keys) < 2:
        yield {}
        return
    parent = _find_or_create(context, tracking)
    try:
        yield {runs.PARENT: parent}
    finally:
        try:
            with undisturbed(), environment(**request_limits(timeout=10, retries=4)):
                _settle(tracking, parent)
        except (mlflow.MlflowException, OSError) as error:
            context.log.warning(f"MLflow run {parent} could not be updated: {mask_credentials(str(error))}")


def close_parents_of(client: MlflowClient, dagster_run: dg.DagsterRun) -> list[str]:
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


def _find_or_create(context: dg.AssetExecutionContext, tracking: "Tracking") -> str:
    """The parent's id. It is a tag of the Dagster run once its first step has started, and of a re-execution."""
    client, experiment_id = tracking.client, tracking.experiment_id
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
        url = tracking.resource.dagster_run_url(root)
        note = markdown.formatted("{} of {}", markdown.link(f"Dagster run {root[:8]}", url), markdown.code(job))
        tags = {
            **key,
            runs.DAGSTER_RUN: root,
            "mlflow.source.name": job,
            "mlflow.source.type": "JOB",
            **({runs.DAGSTER_URL: url, runs.NOTE: str(note)} if url else {}),
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


def _settle(tracking: "Tracking", parent: str) -> None:
    client = tracking.client
    # Earliest first, so that an asset's latest run counts.
    children = {run.data.tags.get(runs.TARGET, ""): run for run in _children(client, tracking.experiment_id, parent)}
    statuses = {run.info.status for run in children.values()}
    if "RUNNING" not in statuses:
        client.set_terminated(parent, next((bad for bad in ("FAILED", "KILLED") if bad in statuses), "FINISHED"))


def _children(client: MlflowClient, experiment_id: str, parent: str) -> "Iterator[Run]":
    return runs.search(client, [experiment_id], {runs.PARENT: parent})
