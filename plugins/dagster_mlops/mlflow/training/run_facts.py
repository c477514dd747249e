"""The facts of a training run before it starts: code, inputs, environment, and the Dagster step."""

import dataclasses
import getpass
import hashlib
import inspect
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from dagster_mlops.core import markdown
from dagster_mlops.core.asset_records import code_facts, dagster_facts, refs_read, upstream_reads
from dagster_mlops.core.code_state import KEY, LOCK_FILES, CodeState, code_state
from dagster_mlops.core.files import digest
from dagster_mlops.core.run_files import CODE, DIFF, STEP, files_hash, sha256_of
from dagster_mlops.errors import TrackingError
from dagster_mlops.mlflow.lazy import MlflowClient, Run, entities
from dagster_mlops.mlflow.resource import MlflowResource
from dagster_mlops.mlflow.runs import lookup as runs
from dagster_mlops.mlflow.server.client import artifact_store
from dagster_mlops.mlflow.training import capture
from dagster_mlops.mlflow.training.config_params import config_params, visible_config
from dagster_mlops.mlflow.training.function import Training
from dagster_mlops.provenance import NAMESPACE, Dataset, TrainingRun, TrainingSet, mask_credentials

_PARAMS_PER_REQUEST = 100  # MLflow's limit
# Fields of the record that are tags of the run as well, to search by.
_TAGGED = ("code_commit", "dirty", "lock_hash", "python", "platform", "feature_service", "registry_hash")


@dataclass(frozen=True)
class RunFacts:
    """The facts in MLflow's forms: tags, params, dataset inputs, artifacts."""

    name: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    inputs: tuple[Dataset, ...]
    code: CodeState
    record: TrainingRun
    lock: Path | None
    step: Mapping[str, Any]
    system: Mapping[str, Any]

    @property
    def datasets(self) -> dict[str, str]:
        """Content hash by dataset path."""
        return {dataset.path: dataset.md5 for dataset in self.inputs}

    def log(
        self, client: MlflowClient, resource: MlflowResource, run: Run, attempt: int
    ) -> tuple[TrainingRun, dict[str, str]]:
        """Write everything to the run, in one request per kind; return the record, and the hashes of its files."""
        run_id = run.info.run_id
        files = capture.capture_files(code=self.code, lock=self.lock, step=self.step, system=self.system)
        if resource.uncommitted_code == "none":
            files.pop(DIFF, None)
        if self.lock and self.lock.name in self.code.left_out:
            files.pop(self.lock.name, None)
        hashes = {name: sha256_of(content) for name, content in files.items()}
        record = dataclasses.replace(self.record, run_id=run_id, attempt=attempt, files_hash=files_hash(hashes))
        # A new run was created with its tags. A description that the user has edited stays.
        updates = {name: value for name, value in self.tags.items() if name != runs.NOTE} if attempt else {}
        tags = {**updates, runs.ATTEMPT: str(attempt), runs.RECORD: runs.record_tag(record)}
        params = [entities.Param(name, value) for name, value in self.params.items()]
        for first in range(0, max(len(params), 1), _PARAMS_PER_REQUEST):
            client.log_batch(
                run_id,
                params=params[first : first + _PARAMS_PER_REQUEST],
                tags=[entities.RunTag(name, value) for name, value in tags.items()] if first == 0 else (),
            )
        if self.inputs:
            datasets = [
                runs.dataset_input(dataset.path, dataset.md5, "dvc", {"uri": _uri(dataset)}, "training")
                for dataset in self.inputs
            ]
            runs.log_inputs(client, run_id, datasets)
        try:
            store = artifact_store(run.info.artifact_uri, resource.address)
            capture.log_files(store, files)
        except Exception as error:  # each kind of store has its own errors
            raise TrackingError(
                f"The artifact store {mask_credentials(str(run.info.artifact_uri))} of experiment "
                f"{self.record.experiment!r} cannot be written to: {type(error).__name__}: "
                f"{mask_credentials(str(error))[:500]}\nThe model would be lost after the training. Let this machine "
                "write to it (mount, bucket policy, credentials), or give a new experiment another artifact_location."
            ) from error
        return record, hashes


def run_facts(context: dg.AssetExecutionContext, resource: MlflowResource, training: Training) -> RunFacts:
    """Gather the facts.

    Raises:
        ProvenanceError: an upstream record cannot be read, or there are too many of them for MLflow's tags.
    """
    reads = upstream_reads(context)
    upstream = [record for read in reads for record in read.records]
    refs = refs_read(reads)
    training_set = next((record for record in upstream if isinstance(record, TrainingSet)), None)
    inputs = tuple(record for record in upstream if isinstance(record, Dataset))
    source = Path(inspect.getsourcefile(inspect.unwrap(training.function)) or ".")
    code = code_state(source, untracked="all" if resource.uncommitted_code == "all" else "code")
    lock = _lock_file(Path(code.toplevel) if code.toplevel else source.absolute().parent)
    if lock and capture.holds_key(lock):  # its hash is on record, its content only in the commit
        code = dataclasses.replace(code, left_out={**code.left_out, lock.name: KEY})
    step = {**dagster_facts(context), "dagster_partition": capture.partitions_of(context)}
    config = visible_config(context)
    record = TrainingRun(
        run_id="0" * 32,
        tracking_uri=mask_credentials(resource.uri),
        experiment=training.experiment or resource.experiment,
        lock_hash=digest(lock) if lock else "",
        files_hash="0" * 64,
        python=platform.python_version(),
        platform=platform.platform(),
        seed=training.seed,
        feature_service=training_set.feature_service if training_set else "",
        registry_hash=training_set.registry_hash if training_set else "",
        tool_facts={"user": user} if (user := _user()) else {},
        **code_facts(code, refs),
        **step,
    )
    runs.record_tag(record)  # raises before anything is created
    reads_text = [[str(ref) for ref in refs], _versions_read(context, {record.dagster_asset for record in upstream})]
    inputs_text = [record.code_commit, record.dirty, record.lock_hash, training.seed, config, reads_text]
    system = capture.system_facts(context)
    url = resource.dagster_run_url(context.run.run_id)
    run_link = markdown.link(f"run {context.run.run_id[:8]}", url or "")
    target = runs.target_of(step["dagster_asset"], step["dagster_partition"])
    tags = {
        runs.KEY: f"{context.run.root_run_id or context.run.run_id}/{target}",
        runs.TARGET: target,
        runs.OWNER: runs.owner(),
        runs.INPUTS: hashlib.sha256(json.dumps(inputs_text, default=str, sort_keys=True).encode()).hexdigest(),
        **{f"{NAMESPACE}.{name}": getattr(record, name) for name in (*step, *_TAGGED)},
        f"{NAMESPACE}.dagster_job": "" if context.run.job_name.startswith("__") else context.run.job_name,
        f"{NAMESPACE}.backfill": context.run.tags.get("dagster/backfill", ""),
        runs.DAGSTER_URL: url,
        f"{NAMESPACE}.branch": code.branch,
        f"{NAMESPACE}.lock_file": lock.name if lock else "",
        f"{NAMESPACE}.container": system.get("container", ""),
        f"{NAMESPACE}.gpu": ", ".join(gpu["name"] for gpu in system.get("gpus", ())),
        f"{NAMESPACE}.seed": "" if training.seed is None else str(training.seed),
        f"{NAMESPACE}.deterministic": "true" if training.deterministic else "",
        f"{NAMESPACE}.datasets": json.dumps({dataset.path: dataset.md5 for dataset in inputs})[:8000],
        # MLflow's own names, shown in its UI.
        "mlflow.user": record.tool_facts.get("user", ""),
        "mlflow.source.name": step["dagster_asset"],
        "mlflow.source.type": "JOB",
        "mlflow.source.git.commit": code.commit,
        runs.NOTE: str(markdown.formatted("Trained by Dagster: {}", run_link)) if url else "",
    }
    name = step["dagster_asset"] + (f" {step['dagster_partition']}" if step["dagster_partition"] else "")
    step_file = capture.step_facts(context, training, code, reads, uncommitted=resource.uncommitted_code)
    tags = {key: value for key, value in tags.items() if value}
    params = config_params(config, f"{CODE}/{STEP}")
    # Some databases refuse a longer name of a run.
    return RunFacts(name[:250], tags, params, inputs, code, record, lock, step_file, system)


def _versions_read(context: dg.AssetExecutionContext, recorded: set[str]) -> dict[str, str]:
    """The data versions of the inputs without a record: the only sign of whether they have changed."""
    # Dagster looked them up when the step started; its name for the result is not public.
    infos = context.get_step_execution_context().input_asset_records or {}
    versions = {key.to_user_string(): str(info.data_version) for key, info in infos.items() if info}
    return {name: version for name, version in versions.items() if name not in recorded}


def _user() -> str:
    """The name of the person or service that this process runs as; empty for a user id without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # of Python 3.12 and 3.13
        return ""


def _uri(dataset: Dataset) -> str:
    revision = f"@{dataset.rev}" if dataset.rev else ""
    return f"{mask_credentials(dataset.repo)}/{dataset.path}{revision}"


def _lock_file(folder: Path) -> Path | None:
    return next((folder / name for name in LOCK_FILES if (folder / name).is_file()), None)
