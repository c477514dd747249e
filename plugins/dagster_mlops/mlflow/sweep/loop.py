"""The loop of a sweep in one step: trials in threads, until all have ended, time is up, or the step is interrupted."""

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from dagster_mlops.errors import TrainingRunError
from dagster_mlops.mlflow import upstream
from dagster_mlops.mlflow.lazy import optuna
from dagster_mlops.mlflow.metadata_keys import BEST_VALUE, SECONDS
from dagster_mlops.mlflow.resource import MlflowResource
from dagster_mlops.mlflow.runs import lookup as runs
from dagster_mlops.mlflow.sweep import study as studies
from dagster_mlops.mlflow.sweep.best import conclude
from dagster_mlops.mlflow.sweep.trial import close_left, run_trial
from dagster_mlops.provenance import mask_credentials

_OBSERVED_EVERY_S = 30.0
_LOGGED_EVERY_S = 1.0  # at most, unless there is news: each line is a row of Dagster's database
_KEY_LIMIT = 450  # characters: Optuna's names of studies have at most 512


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The settings of a sweep, besides its function."""

    metric: str
    direction: studies.Direction
    n_trials: int
    n_jobs: int
    seed: int
    storage: str | dg.EnvVar | None
    timeout: float | None
    max_failed: int
    sampler: studies.MakeSampler
    pruner: studies.MakePruner
    enqueue: Sequence[Mapping[str, Any]]


def run_sweep(
    objective: studies.Objective, context: dg.AssetExecutionContext, resource: MlflowResource, settings: Sweep
) -> dg.MaterializeResult:
    """Run the missing trials as children of MLflow's active run, and give that run the best one's model.

    Raises:
        TrainingRunError: no trial completed, or too many failed.
    """
    run, url = studies.active_run(), studies.storage_url(settings.storage, context.instance)
    # One study for all attempts of a step, which continue one MLflow run: the re-execution of a finished sweep has a
    # run of its own, and searches anew. The key is the root Dagster run with asset and partition.
    name = f"{run.data.tags[runs.KEY][:_KEY_LIMIT]}#{run.data.tags[runs.INPUTS][:12]}#{run.info.run_id[:12]}"
    options = {"direction": settings.direction, "pruner": settings.pruner, "enqueue": settings.enqueue}
    with studies.opened_study(url, name, **options) as (study, storage):
        search = studies.Search(study, settings.metric, context.run.run_id)
        cut_off = studies.requeue(study)
        close_left(search)
        outcome = studies.settled(study)
        # A sampler that starts with the same seed would suggest the same parameters again.
        study.sampler = studies.sampler_of(settings.sampler, settings.seed + len(study.get_trials(deepcopy=False)))
        if outcome.trials or cut_off:
            context.log.info(
                f"Continuing study {name}: {len(outcome.trials)} trials have ended, {cut_off} were cut off."
            )
        started = time.monotonic()
        with upstream.versions_read_once():
            _run_trials(objective, search, storage, outcome, context, settings)
        seconds = time.monotonic() - started
        return dg.MaterializeResult(metadata={**conclude(search, context, resource, url), SECONDS: round(seconds, 3)})


def _run_trials(
    objective: studies.Objective,
    search: studies.Search,
    storage: "optuna.storages.RDBStorage",
    outcome: studies.Settled,
    context: dg.AssetExecutionContext,
    settings: Sweep,
) -> None:
    """Run the missing trials, `n_jobs` at a time, until time is up, too many fail, or the step is interrupted.

    Each that ends joins the trials of `outcome`: no other process runs trials of this study, so the storage need not be
    asked.
    """
    stop, exhausted, lock = threading.Event(), threading.Event(), threading.Lock()
    errors: list[BaseException] = []
    study = search.study
    missing = settings.n_trials - len(outcome.trials)
    began = observed = time.monotonic()
    logged = -math.inf

    def take() -> bool:
        nonlocal missing
        with lock:
            late = settings.timeout is not None and time.monotonic() - began > settings.timeout
            missing -= 1
            return missing >= 0 and not late and not stop.is_set() and not exhausted.is_set()

    def work() -> None:
        nonlocal observed, logged
        while take():
            with lock:
                # On sqlite, two threads would get the same queued trial: Optuna finds and takes it in two steps.
                new_trial = study.ask()
            trial = run_trial(
                objective,
                search,
                new_trial,
                earlier=lambda: [*outcome.trials],
                stopped=stop.is_set,
                exhausted=exhausted.set,
            )
            if trial is None:
                return
            with lock:
                outcome.trials.append(trial)
                clock_s = time.monotonic()
                if _has_news(outcome, trial, settings) or clock_s - logged > _LOGGED_EVERY_S:
                    logged = clock_s
                    _log_progress(context, outcome, trial, settings)
                _warn_and_check(context, outcome, trial, settings)
                if clock_s - observed > _OBSERVED_EVERY_S:
                    observed = clock_s
                    _observe(context, study, outcome)

    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 — raised again in the main thread
            errors.append(error)
            stop.set()
        finally:
            storage.remove_session()  # of this thread

    try:
        if settings.n_jobs == 1:
            work()
        else:
            # Not Optuna's own loop: when interrupted, it waits for the running trials to end.
            threads = [threading.Thread(target=guarded, daemon=True) for _ in range(settings.n_jobs)]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads) and not errors:
                threads[0].join(0.1)
                time.sleep(0 if threads[0].is_alive() else 0.1)
            if errors:
                raise errors[0]
    except BaseException:
        stop.set()
        try:
            studies.requeue(study)
            close_left(search)
        except Exception as second:  # noqa: BLE001 — must not replace an interrupt
            context.log.warning(
                f"The next attempt cleans up the trials that were cut off: {mask_credentials(str(second))}"
            )
        raise


def _best(outcome: studies.Settled, settings: Sweep) -> tuple[int | None, dict[int, float]]:
    """The number of the best trial, None before there is one, and the values of the complete ones."""
    values = {t.number: t.value for t in outcome.trials if t.state.name == "COMPLETE" and t.value is not None}
    choose = max if settings.direction == "maximize" else min
    return choose(values, key=lambda number: values[number], default=None), values


def _has_news(outcome: studies.Settled, trial: "optuna.trial.FrozenTrial", settings: Sweep) -> bool:
    """True for the best trial so far, one that did not complete, and the last."""
    number, _ = _best(outcome, settings)
    return trial.number == number or trial.state.name != "COMPLETE" or len(outcome.trials) >= settings.n_trials


def _log_progress(
    context: dg.AssetExecutionContext, outcome: studies.Settled, trial: "optuna.trial.FrozenTrial", settings: Sweep
) -> None:
    """One line of progress."""
    value = f"{settings.metric} {trial.value:.6g}" if trial.value is not None else ""
    number, values = _best(outcome, settings)
    best = "none yet" if number is None else f"best {values[number]:.6g} (trial {number})"
    context.log.info(
        f"{len(outcome.trials)}/{settings.n_trials}: trial {trial.number} {trial.state.name.lower()} {value}; {best}, "
        f"{outcome.count('PRUNED')} pruned, {outcome.count('FAIL')} failed."
    )


def _warn_and_check(
    context: dg.AssetExecutionContext, outcome: studies.Settled, trial: "optuna.trial.FrozenTrial", settings: Sweep
) -> None:
    """Warn of values to try that the function did not ask for.

    Raises:
        TrainingRunError: too many trials failed.
    """
    unknown = sorted(studies.queued(trial).keys() - trial.params.keys())
    if unknown and trial.state.name == "COMPLETE":
        context.log.warning(
            f"Trial {trial.number} was to try {', '.join(unknown)}, but the function only asked for "
            f"{', '.join(trial.params) or 'nothing'}. Correct `enqueue`."
        )
    if outcome.count("FAIL") > settings.max_failed:
        raise TrainingRunError(
            f"{outcome.count('FAIL')} of {len(outcome.trials)} trials failed, and max_failed is {settings.max_failed}. "
            f"The tag {runs.CLOSED} of their MLflow runs, such as {trial.user_attrs.get(studies.RUN_ID)}, says why."
        )


def _observe(context: dg.AssetExecutionContext, study: "optuna.Study", outcome: studies.Settled) -> None:
    """Report the sweep's progress as an observation of the asset, on whose page it shows while the step runs."""
    facts: dict[str, Any] = {"optuna/finished": len(outcome.trials)}
    if outcome.count("COMPLETE"):
        facts[BEST_VALUE] = study.best_value
    partition = context.partition_key if context.has_partition_key else None
    context.log_event(dg.AssetObservation(context.assets_def.key, partition=partition, metadata=facts))
