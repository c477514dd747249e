"""The Optuna study of a sweep: its storage, its ended trials, and those that a dead process lost."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import dagster as dg

from dagster_mlops.core.private_files import private_folder, touch_private
from dagster_mlops.core.waits import retry
from dagster_mlops.errors import TrackingError
from dagster_mlops.mlflow.lazy import MlflowClient, Run, mlflow, optuna
from dagster_mlops.mlflow.server.connection import absolute_uri, sqlite_file
from dagster_mlops.mlflow.training.reads import not_an_input
from dagster_mlops.provenance import mask_credentials
from dagster_mlops.provenance.credentials import remember_credentials

RETRY_OF, RUN_ID = "dagster_mlops.retry_of", "mlflow_run_id"
"""User attributes of a trial: the number of the lost trial whose parameters it has, and its MLflow run."""

_NAME_LIMIT = 500  # Optuna's column holds 512 characters
_PAUSES = (0.2, 0.4, 0.8, 1.6)  # seconds between attempts to open a storage

Direction = Literal["maximize", "minimize"]
MakeSampler: TypeAlias = "Callable[[int], optuna.samplers.BaseSampler] | None"
MakePruner: TypeAlias = "Callable[[], optuna.pruners.BasePruner] | None"
Objective: TypeAlias = "Callable[[optuna.Trial], float]"


def active_run() -> Run:
    """MLflow's active run, which is that of the step."""
    run = mlflow.active_run()
    assert run is not None
    return run


@dataclass(frozen=True)
class Search:
    """A study whose trials are children of the MLflow run `parent`; `metric` is what the function returns."""

    study: "optuna.Study"
    metric: str = ""
    dagster_run_id: str = ""
    client: MlflowClient = field(default_factory=lambda: mlflow.MlflowClient())
    parent: Run = field(default_factory=active_run)


def storage_url(storage: "str | dg.EnvVar | None", instance: dg.DagsterInstance) -> str:
    """The URL of the studies' database: `storage`, or a sqlite file in Dagster's storage folder."""
    url = storage.get_value() if isinstance(storage, dg.EnvVar) else storage
    remember_credentials(url)
    if isinstance(storage, dg.EnvVar) and not url:
        raise TrackingError(f"the environment variable {storage.env_var_name}, the storage of the sweep, is not set.")
    return absolute_uri(url or f"sqlite:///{Path(instance.storage_directory(), 'optuna.db')}")


def open_storage(url: str) -> "optuna.storages.RDBStorage":
    """Connect, and create missing tables.

    Raises:
        TrackingError: the database does not answer, or is of another version of Optuna.
    """
    file = sqlite_file(url)
    if file:
        not_an_input(file)
        private_folder(file.parent)
        touch_private(file)  # as SQLite would create it, everyone may read it
    options = {"connect_args": {"timeout": 60}} if file else {"pool_pre_ping": True}
    try:
        # When several processes create the tables at once, all but one fail.
        return retry(
            lambda: optuna.storages.RDBStorage(url, engine_kwargs=options), is_transient=lambda _: True, pauses=_PAUSES
        )
    except Exception as error:
        raise TrackingError(
            f"the storage of the sweep at {mask_credentials(url)} cannot be used: {type(error).__name__}: "
            f"{mask_credentials(str(error))[:500]}\nStart it, correct `storage`, or run `optuna storage "
            "upgrade`."
        ) from error


@dataclass(frozen=True)
class Settled:
    """The trials of a study that were ended by their own function."""

    trials: "list[optuna.trial.FrozenTrial]"
    lost_count: int  # of trials whose process died; each runs again with the same parameters

    def count(self, state: str) -> int:
        """The number of trials that ended as COMPLETE, PRUNED or FAIL."""
        return sum(trial.state.name == state for trial in self.trials)


@contextmanager
def opened_study(url: str, name: str, **options: Any) -> "Iterator[tuple[optuna.Study, optuna.storages.RDBStorage]]":
    """A study and its storage, which is closed at the end; `options` are those of :func:`open_study`."""
    storage = open_storage(url)
    try:
        yield open_study(storage, name, **options), storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def open_study(
    storage: "optuna.storages.RDBStorage",
    name: str,
    *,
    direction: Direction,
    pruner: MakePruner = None,
    enqueue: Sequence[Mapping[str, Any]] = (),
) -> "optuna.Study":
    """The study of that name, created when it is missing; `enqueue` lists parameters to start with."""
    options: dict[str, Any] = dict(study_name=name[:_NAME_LIMIT], storage=storage, pruner=pruner and pruner())
    try:
        study = optuna.load_study(**options)
    except KeyError:
        study = optuna.create_study(**options, direction=direction, load_if_exists=True)
    for params in enqueue:
        study.enqueue_trial(dict(params), skip_if_exists=True)
    return study


def settled(study: "optuna.Study") -> Settled:
    """The ended trials, without those that ended because their process died."""
    trials = study.get_trials(deepcopy=False)
    lost_numbers = {trial.user_attrs[RETRY_OF] for trial in trials if RETRY_OF in trial.user_attrs}
    return Settled([t for t in trials if t.state.is_finished() and t.number not in lost_numbers], len(lost_numbers))


def sampler_of(make: MakeSampler, seed: int) -> "optuna.samplers.BaseSampler":
    """The user's sampler for a seed, or Optuna's TPE."""
    return make(seed) if make else optuna.samplers.TPESampler(seed=seed)


def requeue(study: "optuna.Study") -> int:
    """End the running trials, which no process runs any more, and queue their parameters; return their number."""
    requeued = {trial.user_attrs.get(RETRY_OF) for trial in study.get_trials(deepcopy=False)}
    unfinished = running(study)
    for trial in unfinished:
        # In this order: after a kill in between, the trial is still RUNNING, and this is repeated.
        if trial.number not in requeued:
            # It may have died before it asked for its queued parameters.
            study.enqueue_trial({**queued(trial), **trial.params}, user_attrs={RETRY_OF: trial.number})
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)
    return len(unfinished)


def queued(trial: "optuna.trial.FrozenTrial") -> dict[str, Any]:
    """The parameters that a trial was queued with, if it was."""
    return trial.system_attrs.get("fixed_params", {})


def running(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    """The trials that are running, or were when their process died."""
    return study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
