"""Which MLflow run belongs to which step of Dagster: found again after a retry, closed after a crash."""

import itertools
import json
import os
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import dagster as dg

from dagster_mlops.core.extras import extra
from dagster_mlops.errors import ProvenanceError, TrainingRunError
from dagster_mlops.mlflow.runs.signals import undisturbed
from dagster_mlops.provenance import NAMESPACE, Record, TrainingRun, mask_credentials, records_in

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# Tags of an MLflow run. `target` is the asset and partition, `key` adds the root Dagster run: one MLflow run per key.
KEY, TARGET, OWNER = f"{NAMESPACE}.key", f"{NAMESPACE}.target", f"{NAMESPACE}.owner"
DAGSTER_RUN, INPUTS = f"{NAMESPACE}.dagster_run_id", f"{NAMESPACE}.inputs_hash"
RECORD, TRAINED, ATTEMPT = f"{NAMESPACE}.record", f"{NAMESPACE}.trained", f"{NAMESPACE}.attempt"
CLOSED = f"{NAMESPACE}.closed"  # why a run that did not finish was closed
DAGSTER_URL = f"{NAMESPACE}.dagster_url"
PARENT, NOTE = "mlflow.parentRunId", "mlflow.note.content"  # MLflow's own
# Dagster run tag that says an MLflow run may have to be closed after it.
TRAINING_TAG = f"{NAMESPACE}/training"

_LOOK_BACK = 10  # runs of an asset and partition; what is older was closed by those in between
_TAG_LIMIT = 8000  # MLflow cuts a longer tag of a run silently


def target_of(asset: str, partition: str) -> str:
    """Asset and partition as one text that needs no quoting in MLflow's search language.

    >>> target_of("delay/model", "2013-01|JFK's")
    'delay/model:2013-01%7CJFK%27s'
    """
    return f"{quote(asset)}:{quote(partition)}"


def record_tag(record: Record) -> str:
    """The record as MLflow keeps it on a run.

    Raises:
        ProvenanceError: it is longer than MLflow's tags.
    """
    text = record.to_json()
    if len(text) > _TAG_LIMIT:
        raise ProvenanceError(
            f"the record of {record.dagster_asset} has {len(text)} characters with its {len(record.upstream)} upstream "
            f"refs; a tag of an MLflow run holds {_TAG_LIMIT}. Let the asset depend on one combined training set."
        )
    return text


def latest_runs(client: "MlflowClient", experiment_id: str, target: str) -> "list[Run]":
    """The last runs of this asset and partition, earliest first: one request tells all that a step has to know."""
    newest = search(client, [experiment_id], {TARGET: target}, newest_first=True)
    return list(itertools.islice(newest, _LOOK_BACK))[::-1]


def find_run(context: dg.AssetExecutionContext, earlier: "Sequence[Run]", tags: Mapping[str, str]) -> "Run | None":
    """The one of `earlier` that an attempt of this step left behind, to be continued.

    A run is continued by a retry of the same Dagster run, or by a re-execution on the same code, inputs and config;
    MLflow's params cannot be changed, so anything else gets a run of its own.

    Raises:
        TrainingRunError: another process that is alive writes it.
    """
    for run in earlier:
        same_run = run.data.tags.get(DAGSTER_RUN) == tags[DAGSTER_RUN]
        if run.data.tags.get(KEY) != tags[KEY] or (not same_run and run.data.tags.get(INPUTS) != tags[INPUTS]):
            continue
        if run.info.status == "RUNNING" and is_alive(run, context.instance, unless=tags[DAGSTER_RUN]):
            raise TrainingRunError(
                f"MLflow run {run.info.run_id} of {tags[TARGET]} is being written by {run.data.tags.get(OWNER)} for "
                f"Dagster run {run.data.tags.get(DAGSTER_RUN)}. Wait for it or terminate it, then re-run."
            )
        # Dagster does not know the result when the process was killed right after the run had finished.
        if run.info.status != "FINISHED" or not _is_recorded(context, run):
            return run
    return None


def create_run(client: "MlflowClient", experiment_id: str, name: str, tags: Mapping[str, str]) -> "Run":
    """A new MLflow run for a step that somebody else may start at this moment, too.

    Raises:
        TrainingRunError: another process did, and was first.
    """
    created = client.create_run(experiment_id, tags=dict(tags), run_name=name)
    rivals = search(client, [experiment_id], {KEY: tags[KEY], INPUTS: tags[INPUTS]}, running=True)
    earliest = next(iter(rivals), created)
    if earliest.info.run_id != created.info.run_id:
        client.delete_run(created.info.run_id)
        raise TrainingRunError(
            f"MLflow run {earliest.info.run_id} of {tags[TARGET]} was started at the same moment by "
            f"{earliest.data.tags.get(OWNER)}. Wait for it or terminate it, then re-run."
        )
    return created


def close_orphans(
    client: "MlflowClient", instance: dg.DagsterInstance, earlier: "Sequence[Run]", *, but: "Run | None"
) -> list[str]:
    """Close those of `earlier` that are RUNNING although nobody writes them any more, `but` the one to continue."""
    orphans = [
        run for run in earlier if run is not but and run.info.status == "RUNNING" and not is_alive(run, instance)
    ]
    return [close_run(client, run, "KILLED", "its process died without closing it") for run in orphans]


def close_ended(client: "MlflowClient", instance: dg.DagsterInstance) -> Iterator[str]:
    """Close what finished Dagster runs left RUNNING in MLflow, one by one: two requests say which they are."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments(max_results=10_000)]
    for run in list(search(client, experiments, {}, running=True)):
        name, is_parent = run.data.tags.get(DAGSTER_RUN), run.data.tags.get(KEY, "").endswith("/")
        # A parent goes on with a re-execution of its Dagster run.
        dagster_run = instance.get_run_by_id(name) if name and not is_parent else None
        if dagster_run is not None and dagster_run.is_finished:
            status = "FAILED" if dagster_run.status == dg.DagsterRunStatus.FAILURE else "KILLED"
            yield close_run(client, run, status, f"its Dagster run ended with {dagster_run.status.value}")


def close_run(client: "MlflowClient", run: "Run", status: str, reason: str) -> str:
    """End a run and the nested runs below it, and write down why. Gives back the run's id."""
    for child in search(client, [run.info.experiment_id], {"mlflow.parentRunId": run.info.run_id}, running=True):
        close_run(client, child, status, reason)
    # Neither a request nor a database takes half of a surrogate pair, or a NUL: errors about files and bytes have them.
    text = mask_credentials(reason).encode(errors="replace").decode().replace("\0", "")
    with undisturbed():
        client.set_tag(run.info.run_id, CLOSED, text[:2000])
        client.set_terminated(run.info.run_id, status)
    return run.info.run_id


def logged_models(client: "MlflowClient", run: "Run") -> list:
    """The logged models of one run, whatever their status."""
    return list(
        client.search_logged_models(
            experiment_ids=[run.info.experiment_id], filter_string=f"source_run_id='{run.info.run_id}'"
        )
    )


def owner() -> str:
    """This process, precisely enough to tell later whether it is still the same one."""
    return json.dumps([_host(), _boot(), os.getpid(), _started(os.getpid())])


def is_alive(run: "Run", instance: dg.DagsterInstance, *, unless: str = "") -> bool:
    """Whether somebody may still write this run: its process is there, or cannot be seen and its Dagster run goes on.

    `unless` is a Dagster run that does not count as somebody: the caller's own.
    """
    dagster_run_id = run.data.tags.get(DAGSTER_RUN, "")
    dagster_run = instance.get_run_by_id(dagster_run_id) if dagster_run_id else None
    if dagster_run is not None and dagster_run.is_finished:
        return False
    host, boot, pid, started = json.loads(run.data.tags.get(OWNER, "[null, null, null, null]"))
    if host != _host():
        return not unless or dagster_run_id != unless
    if pid == os.getpid():
        return False
    return boot == _boot() and started == _started(pid) != "dead"


def search(
    client: "MlflowClient",
    experiments: Iterable[str],
    tags: Mapping[str, str],
    *,
    running: bool = False,
    newest_first: bool = False,
) -> "Iterator[Run]":
    """Runs that are not deleted by their tags, earliest first or `newest_first`, which asks for few at a time."""
    wanted = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
    query = " and ".join([*wanted, "attributes.status = 'RUNNING'"] if running else wanted)
    order, token = "DESC" if newest_first else "ASC", None
    while True:
        page = client.search_runs(
            list(experiments),
            query,
            extra("mlflow.entities").ViewType.ACTIVE_ONLY,
            max_results=_LOOK_BACK if newest_first else 1000,
            order_by=[f"attributes.start_time {order}", f"attributes.run_id {order}"],
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return


def _is_recorded(context: dg.AssetExecutionContext, run: "Run") -> bool:
    """Whether Dagster knows the run's result; it does not when it was killed right after the run had finished."""
    of_partitions = context.assets_def.partitions_def and (context.has_partition_key or context.has_partition_key_range)
    partitions = [context.partition_key_range.start] if of_partitions else None
    wanted = dg.AssetRecordsFilter(context.assets_def.key, partitions, after_timestamp=run.info.start_time / 1000)
    # Earliest first: hundreds of others may have come after it.
    found = context.instance.fetch_materializations(wanted, limit=100, ascending=True).records
    return any(
        record.run_id == run.info.run_id
        for event in found
        if event.asset_materialization
        for record in records_in(event.asset_materialization.metadata)
        if isinstance(record, TrainingRun)
    )


def _host() -> str:
    """The machine and the container: pods with `hostNetwork` share a name, but do not see each other's processes."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _boot() -> str:
    file = Path("/proc/sys/kernel/random/boot_id")
    return file.read_text().strip() if file.exists() else ""


def _started(pid: int) -> str:
    """When the process started, in clock ticks since boot; `dead` when it ended, empty where nothing says so."""
    if sys.platform == "win32":
        return ""  # where signal 0 is Ctrl-C
    try:
        os.kill(pid, 0)
        # The second field of the file, the program's name in brackets, may hold spaces.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except ProcessLookupError:
        return "dead"
    except PermissionError:
        return ""  # another user's process: alive, and not ours
    except FileNotFoundError:
        return "dead" if Path("/proc/self").exists() else ""
    return "dead" if state == "Z" else fields[18]
