"""The Optuna study of a sweep: where it is kept, which trials it has settled, and which of them a dead process lost."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops.core.extras import extra
from dagster_mlops.errors import TrackingError
from dagster_mlops.mlflow.server.connection import absolute_uri, sqlite_file
from dagster_mlops.provenance import mask_credentials

if TYPE_CHECKING:
    import optuna

RETRY_OF, RUN_ID = "dagster_mlops.retry_of", "mlflow_run_id"
"""User attributes of a trial: the number of the lost trial whose parameters it has, and its MLflow run."""

_NAME_LIMIT = 500  # Optuna's column holds 512 characters
_TRIES = 5


def storage_url(storage: "str | dg.EnvVar | None", instance: dg.DagsterInstance) -> str:
    """Where studies are kept: what was asked for, or a sqlite file in Dagster's own storage folder."""
    url = storage.get_value() if isinstance(storage, dg.EnvVar) else storage
    if isinstance(storage, dg.EnvVar) and not url:
        raise TrackingError(
            f"the environment variable {storage.env_var_name} with the storage of the sweep is not set."
        )
    return absolute_uri(url or f"sqlite:///{Path(instance.storage_directory(), 'optuna.db')}")


def open_storage(url: str) -> "optuna.storages.RDBStorage":
    """Connect, and create the tables where they are missing.

    Raises:
        TrackingError: the database does not answer, or is of another version of Optuna.
    """
    storages = extra("optuna.storages")
    file = sqlite_file(url)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
    options = {"connect_args": {"timeout": 60}} if file else {"pool_pre_ping": True}
    for attempt in range(_TRIES):
        try:
            return storages.RDBStorage(url, engine_kwargs=options)
        except Exception as error:
            # Of several processes that create the tables at once, all but one fail.
            if attempt == _TRIES - 1:
                raise TrackingError(
                    f"the storage of the sweep at {mask_credentials(url)} cannot be used: {type(error).__name__}: "
                    f"{mask_credentials(str(error))[:500]}\nStart the database, mend `storage`, or run `optuna storage "
                    "upgrade`."
                ) from error
            time.sleep(0.2 * 2**attempt)
    raise AssertionError("the last attempt raises")


@dataclass(frozen=True)
class Settled:
    """The trials of a study whose own function has decided their end."""

    trials: "Sequence[optuna.trial.FrozenTrial]"
    lost: int  # by processes that died; each runs again with the same parameters

    def count(self, state: str) -> int:
        """How many ended as COMPLETE, PRUNED or FAIL."""
        return sum(trial.state.name == state for trial in self.trials)


def open_study(
    storage: "optuna.storages.RDBStorage",
    name: str,
    *,
    direction: str,
    sampler: "optuna.samplers.BaseSampler | None" = None,
    pruner: "optuna.pruners.BasePruner | None" = None,
    enqueue: Sequence[Mapping[str, Any]] = (),
) -> "optuna.Study":
    """The study of that name, created when it is missing; `enqueue` are parameters to begin with."""
    optuna = extra("optuna")
    given: dict[str, Any] = {"study_name": name[:_NAME_LIMIT], "storage": storage, "sampler": sampler, "pruner": pruner}
    try:
        study = optuna.load_study(**given)
    except KeyError:
        study = optuna.create_study(**given, direction=direction, load_if_exists=True)
    for params in enqueue:
        study.enqueue_trial(dict(params), skip_if_exists=True)
    return study


def settled(study: "optuna.Study") -> Settled:
    """What is done. A trial that somebody's death ended does not count."""
    trials = study.get_trials(deepcopy=False)
    lost = {trial.user_attrs[RETRY_OF] for trial in trials if RETRY_OF in trial.user_attrs}
    return Settled([t for t in trials if t.state.is_finished() and t.number not in lost], len(lost))


def requeue(study: "optuna.Study", trials: "Sequence[optuna.trial.FrozenTrial]") -> None:
    """End trials that nobody runs any more, and have their parameters tried again."""
    again = {trial.user_attrs.get(RETRY_OF) for trial in study.get_trials(deepcopy=False)}
    failed = extra("optuna.trial").TrialState.FAIL
    for trial in trials:
        # In this order: killed in between, the trial is still RUNNING, and this is done again.
        if trial.number not in again:
            # It may have died before it asked for what it was queued with.
            params = {**queued(trial), **trial.params}
            study.enqueue_trial(params, user_attrs={RETRY_OF: trial.number})
        study.tell(trial.number, state=failed, skip_if_finished=True)


def queued(trial: "optuna.trial.FrozenTrial") -> dict[str, Any]:
    """The parameters that a trial was to try, where somebody has queued it."""
    return trial.system_attrs.get("fixed_params", {})


def running(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    """The trials that somebody runs, or has left."""
    return study.get_trials(deepcopy=False, states=(extra("optuna.trial").TrialState.RUNNING,))
