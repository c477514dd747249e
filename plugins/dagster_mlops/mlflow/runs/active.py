"""The step's run as MLflow's active run, for the function and for the threads and processes that it starts."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import dagster as dg

from dagster_mlops.core.environment import environment
from dagster_mlops.core.extras import extra
from dagster_mlops.mlflow import upstream
from dagster_mlops.mlflow.lazy import MlflowClient, Run, entities
from dagster_mlops.mlflow.runs import lookup as runs
from dagster_mlops.mlflow.runs.signals import undisturbed
from dagster_mlops.mlflow.server.client import request_limits
from dagster_mlops.provenance import mask_credentials

if TYPE_CHECKING:
    from dagster_mlops.mlflow.resource import MlflowResource


@contextmanager
def open_run(
    context: dg.AssetExecutionContext,
    client: "MlflowClient",
    resource: "MlflowResource",
    experiment_id: str,
    *,
    name: str,
    tags: Mapping[str, str],
    continued: "Run | None",
) -> "Iterator[Run]":
    """Start or continue a run, make it MLflow's active one, and close it however the block ends."""
    mlflow, stack = extra("mlflow"), upstream.active_runs()
    depth, run = len(stack), continued
    try:
        if run is None and not stack and context.run.parent_run_id is None:
            run = mlflow.start_run(
                experiment_id=experiment_id, run_name=name, tags=dict(tags), log_system_metrics=False
            )
        else:
            # A re-execution may have rivals; and by default MLflow makes a new run the child of one that was left open
            # in this process.
            if run is None:
                run = runs.create_run(client, experiment_id, name, tags)
            else:
                # Before it is RUNNING: the sensor would close it, since the previous attempt's Dagster run has ended.
                tag = entities.RunTag
                owner = [tag(name, tags[name]) for name in (runs.DAGSTER_RUN, runs.OWNER)]
                client.log_batch(run.info.run_id, tags=owner)
            mlflow.start_run(run_id=run.info.run_id, nested=True, log_system_metrics=False)
        with _shared(run, tags[runs.DAGSTER_RUN]):
            yield run
    except BaseException as error:
        # Exception: the training failed. Anything else (Dagster's termination, Ctrl-C) is an interruption.
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        if run is not None:
            # The error, or the person who pressed Terminate, must not wait for a server that is down.
            limits = request_limits(timeout=10, retries=4 if status == "FAILED" else 2)
            try:
                with undisturbed(), environment(**limits):
                    _leave(client, resource, run, depth, status)
                    runs.close_run(client, run, status, f"{type(error).__name__}: {error}")
            except Exception as second:  # noqa: BLE001 - people have to see the training's own error
                context.log.warning(
                    f"MLflow run {run.info.run_id} could not be closed: {mask_credentials(str(second))}"
                )
        raise
    with undisturbed():
        _leave(client, resource, run, depth, "FINISHED")
        client.set_terminated(run.info.run_id, "FINISHED")


@contextmanager
def _shared(run: "Run", dagster_run_id: str) -> Iterator[None]:
    """Let threads and forked processes log to the run, and make runs that others start its children."""
    inherited = json.loads(os.environ.get("MLFLOW_RUN_CONTEXT") or "{}")
    tags = {**inherited, runs.PARENT: run.info.run_id, runs.DAGSTER_RUN: dagster_run_id}
    with upstream.run_for_threads_without(run), environment(MLFLOW_RUN_CONTEXT=json.dumps(tags)):
        yield


def _leave(client: "MlflowClient", resource: "MlflowResource", run: "Run", depth: int, status: str) -> None:
    """Take the run off MLflow's stack of active runs, and end what the function left open inside it."""
    mlflow, stack = extra("mlflow"), upstream.active_runs()
    mlflow.set_tracking_uri(resource.address)  # the function may have pointed it elsewhere
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
            client.set_terminated(child.info.run_id, status)
            thread_runs.remove(child)
