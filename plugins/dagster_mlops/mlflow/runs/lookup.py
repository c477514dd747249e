"""The MLflow run of a Dagster step: found again after a retry, closed after a crash."""

import itertools
import json
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote

import dagster as dg

from dagster_mlops.core.notes import read_note
from dagster_mlops.core.processes import identity
from dagster_mlops.errors import ProvenanceError, TrainingRunError
from dagster_mlops.mlflow.lazy import MlflowClient, Run, entities, mlflow
from dagster_mlops.mlflow.runs.signals import undisturbed
from dagster_mlops.provenance import NAMESPACE, Record, TrainingRun, mask_credentials, records_in

# Tags of an MLflow run. `target` is the asset and partition, `key` adds the root Dagster run: one MLflow run per key.
KEY, TARGET, OWNER = f"{NAMESPACE}.key", f"{NAMESPACE}.target", f"{NAMESPACE}.owner"
DAGSTER_RUN, INPUTS = f"{NAMESPACE}.dagster_run_id", f"{NAMESPACE}.inputs_hash"
RECORD, TRAINED, ATTEMPT = f"{NAMESPACE}.record", f"{NAMESPACE}.trained", f"{NAMESPACE}.attempt"
UNTIL = f"{NAMESPACE}.trained_until"  # the end of the training in milliseconds: what is logged later is not part of it
CLOSED = f"{NAMESPACE}.closed"  # why a run that did not finish was closed
DAGSTER_URL = f"{NAMESPACE}.dagster_url"
PARENT, NOTE = "mlflow.parentRunId", "mlflow.note.content"  # MLflow's own
# Dagster run tag that says an MLflow run may have to be closed after it.
TRAINING_TAG = f"{NAMESPACE}/training"

_LOOK_BACK = 10  # runs of an asset and partition; the later ones have closed older ones
_TAG_LIMIT = 8000  # MLflow cuts a longer tag of a run silently


def target_of(asset: str, partition: str) -> str:
    """Asset and partition as one string that needs no quoting in MLflow's search language.

    >>> target_of("delay/model", "2013-01|JFK's")
    'delay/model:2013-01%7CJFK%27s'
    """
    return f"{quote(asset)}:{quote(partition)}"


def record_tag(record: Record) -> str:
    """The record as the text of a run's tag.

    Raises:
        ProvenanceError: it is too long for a tag.
    """
    text = record.to_json()
    if len(text) > _TAG_LIMIT:
        raise ProvenanceError(
            f"the record of {record.dagster_asset} has {len(text)} characters with its {len(record.upstream)} upstream "
            f"refs; a tag of an MLflow run holds {_TAG_LIMIT}. Let the asset depend on one combined training set."
        )
    return text


def latest_runs(client: MlflowClient, experiment_id: str, target: str) -> "list[Run]":
    """The last runs of this asset and partition, earliest first: all that a step needs, in one request."""
    newest = search(client, [experiment_id], {TARGET: target}, newest_first=True)
    return list(itertools.islice(newest, _LOOK_BACK))[::-1]


def find_run(context: dg.AssetExecutionContext, earlier: Sequence[Run], tags: Mapping[str, str]) -> "Run | None":
    """The run among `earlier` that an attempt of this step left behind, to be continued.

    A run is continued by a retry of the same Dagster run, or by a re-execution on the same code, inputs and config;
    MLflow's params cannot be changed, so anything else gets a run of its own.

    Raises:
        TrainingRunError: another living process writes to it.
    """
    for run in earlier:
        same_run = run.data.tags.get(DAGSTER_RUN) == tags[DAGSTER_RUN]
        if run.data.tags.get(KEY) != tags[KEY] or (not same_run and run.data.tags.get(INPUTS) != tags[INPUTS]):
            continue
        alive = run.info.status == "RUNNING" and is_alive(run, context.instance, unless=tags[DAGSTER_RUN])
        if alive is None:
            continue
        if alive:
            raise TrainingRunError(
                f"MLflow run {run.info.run_id} of {tags[TARGET]} is being written by {run.data.tags.get(OWNER)} for "
                f"Dagster run {run.data.tags.get(DAGSTER_RUN)}. Wait for it or terminate it, then re-run."
            )
        # Dagster has no result when the process was killed right after the run had finished.
        if run.info.status != "FINISHED" or not _is_recorded(context, run):
            return run
    return None


def create_run(client: MlflowClient, experiment_id: str, name: str, tags: Mapping[str, str]) -> "Run":
    """A new MLflow run for a step that another process may start at the same time.

    Raises:
        TrainingRunError: another process did so, and was first.
    """
    created = client.create_run(experiment_id, tags=dict(tags), run_name=name)
    rivals = search(client, [experiment_id], {KEY: tags[KEY], INPUTS: tags[INPUTS]}, running=True)
    earliest = next((rival for rival in rivals if _owner(rival) is not None), created)
    if earliest.info.run_id != created.info.run_id:
        client.delete_run(created.info.run_id)
        raise TrainingRunError(
            f"MLflow run {earliest.info.run_id} of {tags[TARGET]} was started at the same time by "
            f"{earliest.data.tags.get(OWNER)}. Wait for it or terminate it, then re-run."
        )
    return created


def close_orphans(
    client: MlflowClient, instance: dg.DagsterInstance, earlier: Sequence[Run], *, but: Run | None
) -> list[str]:
    """Close those of the `earlier` runs, except `but`, that are RUNNING without a living process."""
    orphans = [
        run for run in earlier if run is not but and run.info.status == "RUNNING" and is_alive(run, instance) is False
    ]
    return [close_run(client, run, "KILLED", "its process died without closing it") for run in orphans]


def close_ended(client: MlflowClient, instance: dg.DagsterInstance) -> Iterator[str]:
    """Close, one by one, the runs that finished Dagster runs left RUNNING in MLflow; two requests find them."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments(max_results=10_000)]
    for run in list(search(client, experiments, {}, running=True)):
        name, is_parent = run.data.tags.get(DAGSTER_RUN), run.data.tags.get(KEY, "").endswith("/")
        # A parent is continued by a re-execution of its Dagster run.
        dagster_run = instance.get_run_by_id(name) if name and not is_parent else None
        if dagster_run is not None and dagster_run.is_finished:
            status = "FAILED" if dagster_run.status == dg.DagsterRunStatus.FAILURE else "KILLED"
            yield close_run(client, run, status, f"its Dagster run ended with {dagster_run.status.value}")


def close_run(client: MlflowClient, run: Run, status: str, reason: str) -> str:
    """End a run, the runs nested in it and the models it was storing, with a reason, and return its id."""
    for child in search(client, [run.info.experiment_id], {PARENT: run.info.run_id}, running=True):
        close_run(client, child, status, reason)
    # Requests and databases refuse lone surrogates and NUL, which errors about files and bytes may contain.
    text = mask_credentials(reason).encode(errors="replace").decode().replace("\0", "")
    with undisturbed():
        close_models(client, run)
        client.set_tag(run.info.run_id, CLOSED, text[:2000])
        client.set_terminated(run.info.run_id, status)
    return run.info.run_id


def close_models(client: MlflowClient, run: Run) -> None:
    """Mark the models that a dead process was storing as failed; MLflow would show them as pending forever."""
    for model in logged_models(client, run):
        if str(model.status) == "PENDING":
            client.finalize_logged_model(model.model_id, "FAILED")


def logged_models(client: MlflowClient, run: Run) -> list:
    """The logged models of one run, whatever their status."""
    query = f"source_run_id='{run.info.run_id}'"
    return list(client.search_logged_models(experiment_ids=[run.info.experiment_id], filter_string=query))


def dataset_input(name: str, digest: str, kind: str, source: Mapping[str, str], use: str) -> "entities.DatasetInput":
    """A dataset as an input of a run, for its `use`."""
    dataset = entities.Dataset(name=name, digest=digest, source_type=kind, source=json.dumps(source))
    return entities.DatasetInput(dataset, [entities.InputTag("mlflow.data.context", use)])


def log_inputs(
    client: MlflowClient,
    run_id: str,
    datasets: "list[entities.DatasetInput]",
    models: "list[entities.LoggedModelInput] | None" = None,
) -> None:
    """Log the inputs of a run, also when another process logs the same dataset for the first time.

    MLflow looks for a dataset and then inserts it, so that its database refuses the second of two. Nothing of that call
    is left, and the next one finds the dataset:
    https://github.com/mlflow/mlflow/blob/v3.17.0/mlflow/store/tracking/sqlalchemy_store.py (``_log_inputs_impl``)
    """
    for remaining in (2, 1, 0):
        try:
            return client.log_inputs(run_id, datasets, models)
        except mlflow.MlflowException as error:
            if not remaining or not re.search("unique|duplicate", str(error), re.IGNORECASE):
                raise


def owner() -> str:
    """A name of this process that no later process has."""
    return json.dumps([_host(), os.getpid(), identity(os.getpid())])


def is_alive(run: Run, instance: dg.DagsterInstance, *, unless: str = "") -> bool | None:
    """True when a run may still be written to: its process lives, or is elsewhere and its Dagster run goes on.

    None when its tags do not tell, because someone changed them. `unless` is a Dagster run that does not count: the
    caller's own.
    """
    dagster_run_id = run.data.tags.get(DAGSTER_RUN, "")
    dagster_run = instance.get_run_by_id(dagster_run_id) if dagster_run_id else None
    if dagster_run is not None and dagster_run.is_finished:
        return False
    if (owner := _owner(run)) is None:
        return None
    if owner.host != _host():
        return not unless or dagster_run_id != unless
    return owner.pid != os.getpid() and owner.process == identity(owner.pid)


def attempt(run: Run) -> int:
    """The number of the attempt that a run was written by, from 0."""
    return read_note(run.data.tags.get(ATTEMPT), int, of=f"tag {ATTEMPT} of run {run.info.run_id}", default=0)


class _Owner(NamedTuple):
    host: str | None
    pid: int
    process: str | None


def _owner(run: Run) -> _Owner | None:
    """The process that writes a run; None where its tag cannot be read."""

    def read(text: str) -> _Owner:
        host, pid, process = json.loads(text)
        return _Owner(host, int(pid), process)

    text = run.data.tags.get(OWNER) or "[null, 0, null]"
    return read_note(text, read, of=f"tag {OWNER} of run {run.info.run_id}", default=None)


def search(
    client: MlflowClient,
    experiments: Iterable[str],
    tags: Mapping[str, str],
    *,
    running: bool = False,
    newest_first: bool = False,
) -> "Iterator[Run]":
    """Runs with these tags that are not deleted, earliest first or `newest_first`, which requests a few at a time."""
    conditions = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
    query = " and ".join([*conditions, *["attributes.status = 'RUNNING'"][:running]])
    order, token = "DESC" if newest_first else "ASC", None
    while True:
        page = client.search_runs(
            list(experiments),
            query,
            entities.ViewType.ACTIVE_ONLY,
            max_results=_LOOK_BACK if newest_first else 1000,
            order_by=[f"attributes.start_time {order}", f"attributes.run_id {order}"],
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return


def _is_recorded(context: dg.AssetExecutionContext, run: Run) -> bool:
    """True when Dagster has the run's result; false when the step was killed right after the run had finished."""
    of_partitions = context.assets_def.partitions_def and (context.has_partition_key or context.has_partition_key_range)
    partitions = [context.partition_key_range.start] if of_partitions else None
    records_filter = dg.AssetRecordsFilter(
        context.assets_def.key, partitions, after_timestamp=run.info.start_time / 1000
    )
    # Earliest first: hundreds of others may have come after it.
    events = context.instance.fetch_materializations(records_filter, limit=100, ascending=True).records
    return any(
        record.run_id == run.info.run_id
        for event in events
        if event.asset_materialization
        for record in records_in(event.asset_materialization.metadata)
        if isinstance(record, TrainingRun)
    )


def _host() -> str:
    """The machine and the container: pods with `hostNetwork` share a host name, but not their processes."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()
