"""Sweeps: Optuna tries a training function's parameters, and the best trial's model becomes the asset's version."""

import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg

from dagster_mlops._extras import extra
from dagster_mlops.errors import TrainingRunError
from dagster_mlops.mlflow import runs
from dagster_mlops.mlflow.assets import training_asset
from dagster_mlops.mlflow.resource import MlflowResource
from dagster_mlops.mlflow.sweep.best import conclude, repeat_trial
from dagster_mlops.mlflow.sweep.function import SweepFunction
from dagster_mlops.mlflow.sweep.study import (
    RUN_ID,
    open_storage,
    open_study,
    queued,
    requeue,
    running,
    settled,
    storage_url,
)
from dagster_mlops.mlflow.sweep.trial import close_left, run_trial
from dagster_mlops.run_files import TRIAL_TAG

if TYPE_CHECKING:
    import optuna
    from mlflow import MlflowClient
    from mlflow.entities import Run

_OBSERVED_EVERY_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a sweep was given besides its function."""

    metric: str
    direction: Literal["maximize", "minimize"]
    n_trials: int
    n_jobs: int
    seed: int
    storage: str | dg.EnvVar | None
    timeout: float | None
    max_failed: int
    sampler: "Callable[[int], optuna.samplers.BaseSampler] | None"
    pruner: "Callable[[], optuna.pruners.BasePruner] | None"
    enqueue: Sequence[Mapping[str, Any]]


def sweep_asset(
    *,
    registered_model_name: str,
    metric: str,
    direction: Literal["maximize", "minimize"],
    n_trials: int,
    n_jobs: int = 1,
    sampler: "Callable[[int], optuna.samplers.BaseSampler] | None" = None,
    pruner: "Callable[[], optuna.pruners.BasePruner] | None" = None,
    enqueue: Sequence[Mapping[str, Any]] = (),
    storage: str | dg.EnvVar | None = None,
    timeout: float | None = None,
    max_failed: int | None = None,
    experiment: str | None = None,
    seed: int = 0,
    **asset_options: Any,
) -> Callable[[Callable[..., float]], dg.AssetsDefinition]:
    """Make an asset of a function that trains with the parameters of an Optuna trial.

        @sweep_asset(registered_model_name="arrival_delay", metric="auc", direction="maximize", n_trials=40, n_jobs=2)
        def arrival_delay_model(trial: optuna.Trial, training_set: pd.DataFrame) -> float:
            model = RandomForestClassifier(max_depth=trial.suggest_int("max_depth", 2, 12)).fit(...)
            log_model(model, X)                    # dagster_mlops.mlflow.models: kept only when it is the best so far
            return roc_auc_score(y, model.predict_proba(X)[:, 1])

    The function is that of a :func:`training_asset` with an argument ``trial``, and returns the value of `metric`. Each
    trial is an MLflow run below the asset's, with parameters, value, reported values and state. The model of the best
    trial, exactly as it was measured, becomes the version of `registered_model_name`; the asset's run has its metrics
    and parameters.

    `n_jobs` trials run at once, in threads. `sampler` makes a sampler from a seed (by default Optuna's TPE), `pruner`
    a pruner (by default Optuna's median). `enqueue` are parameters to try first. `storage` is the address of a
    database, or the environment variable with it; by default a sqlite file in Dagster's storage folder. No trial
    begins after `timeout` seconds. A trial that raises has failed and the sweep goes on, unless more than `max_failed`
    do so (by default a quarter of `n_trials`, at least 3).

    A retried or re-executed step goes on with the same study: finished trials are not repeated, and those that were cut
    off run again with the same parameters. Everything else is as for :func:`training_asset`.
    """
    refuse_checks(asset_options)
    settings = Sweep(
        metric=metric,
        direction=direction,
        n_trials=n_trials,
        n_jobs=n_jobs,
        seed=seed,
        storage=storage,
        timeout=timeout,
        max_failed=max(3, n_trials // 4) if max_failed is None else max_failed,
        sampler=sampler,
        pruner=pruner,
        enqueue=tuple(enqueue),
    )
    if direction not in ("maximize", "minimize") or n_trials < 1 or n_jobs < 1:
        raise dg.DagsterInvalidDefinitionError(
            f"a sweep has a direction 'maximize' or 'minimize', and at least one trial and job; these were given: "
            f"{direction!r}, n_trials={n_trials}, n_jobs={n_jobs}."
        )

    def decorate(function: Callable[..., float]) -> dg.AssetsDefinition:
        given = SweepFunction(function)

        @functools.wraps(function)
        def search(context: dg.AssetExecutionContext, mlflow: MlflowResource, **inputs: Any) -> dg.MaterializeResult:
            objective = given.objective(context, mlflow, inputs)
            if tried := context.run.tags.get(TRIAL_TAG):
                return dg.MaterializeResult(metadata=repeat_trial(objective, tried, metric=metric))
            return run_sweep(objective, context, mlflow, settings)

        search.__signature__ = given.signature  # pyright: ignore[reportAttributeAccessIssue]
        options = {**asset_options, "kinds": {"optuna", *asset_options.get("kinds", ())}}
        train = training_asset(registered_model_name=registered_model_name, experiment=experiment, seed=seed, **options)
        return train(search)

    return decorate


def refuse_checks(options: Mapping[str, Any]) -> None:
    """Refuse checks that the function would have to answer, before all trials have run in vain.

    Raises:
        DagsterInvalidDefinitionError: there are some.
    """
    if specs := options.get("check_specs"):
        raise dg.DagsterInvalidDefinitionError(
            f"a sweep's function returns the metric, and no results of check_specs={[spec.name for spec in specs]}. "
            "Write them as @dg.asset_check of the asset, or use metric_checks (dagster_mlops.mlflow)."
        )


def run_sweep(
    objective: "Callable[[optuna.Trial], float]",
    context: dg.AssetExecutionContext,
    resource: MlflowResource,
    settings: Sweep,
) -> dg.MaterializeResult:
    """Run the trials that are still missing below MLflow's active run, and give that run the best one's model.

    Raises:
        TrainingRunError: no trial completed, or too many failed.
    """
    mlflow = extra("mlflow")
    parent, client = mlflow.active_run(), mlflow.MlflowClient()
    url = storage_url(settings.storage, context.instance)
    storage = open_storage(url)
    # One study for all attempts of a step: the key is the root Dagster run with asset and partition.
    name = f"{parent.data.tags[runs.KEY]}#{parent.data.tags[runs.INPUTS][:12]}"
    study = open_study(
        storage,
        name,
        direction=settings.direction,
        pruner=settings.pruner and settings.pruner(),
        enqueue=settings.enqueue,
    )
    try:
        left = running(study)
        requeue(study, left)
        close_left(client, study, parent)
        done = settled(study)
        # A sampler that begins anew with the same seed would suggest the same parameters again.
        make = settings.sampler or (lambda seed: extra("optuna").samplers.TPESampler(seed=seed))
        study.sampler = make(settings.seed + len(study.get_trials(deepcopy=False)))
        if done.trials or left:
            context.log.info(
                f"Going on with study {name}: {len(done.trials)} trials are done, {len(left)} were cut off."
            )
        started = time.monotonic()
        _run_trials(objective, study, storage, context, client, parent, settings)
        seconds = time.monotonic() - started
        metadata = conclude(study, context, client, parent, resource, metric=settings.metric, storage=url)
        return dg.MaterializeResult(metadata={**metadata, "optuna/seconds": round(seconds, 3)})
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _run_trials(
    objective: "Callable[[optuna.Trial], float]",
    study: "optuna.Study",
    storage: "optuna.storages.RDBStorage",
    context: dg.AssetExecutionContext,
    client: "MlflowClient",
    parent: "Run",
    settings: Sweep,
) -> None:
    """Run what is missing, `n_jobs` at a time, until it is done, time is up, too many fail, or somebody interrupts."""
    stop, exhausted, lock = threading.Event(), threading.Event(), threading.Lock()
    errors: list[BaseException] = []
    missing = settings.n_trials - len(settled(study).trials)
    began, observed = time.monotonic(), time.monotonic()

    def take() -> bool:
        nonlocal missing
        with lock:
            late = settings.timeout is not None and time.monotonic() - began > settings.timeout
            missing -= 1
            return missing >= 0 and not late and not stop.is_set() and not exhausted.is_set()

    def work() -> None:
        nonlocal observed
        while take():
            with lock:
                # On sqlite, two threads would be given the same queued trial: Optuna looks and takes in two steps.
                asked = study.ask()
            trial = run_trial(
                objective,
                study,
                asked,
                client=client,
                parent=parent,
                dagster_run_id=context.run.run_id,
                metric=settings.metric,
                stopped=stop.is_set,
                exhausted=exhausted.set,
            )
            if trial is None:
                return
            with lock:
                _say(context, study, trial, settings)
                if time.monotonic() - observed > _OBSERVED_EVERY_S:
                    observed = time.monotonic()
                    _observe(context, study)

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
            # Not Optuna's own loop: it waits for the running trials to end when it is interrupted.
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
        requeue(study, running(study))
        close_left(client, study, parent)
        raise


def _say(
    context: dg.AssetExecutionContext, study: "optuna.Study", trial: "optuna.trial.FrozenTrial", settings: Sweep
) -> None:
    """One line of progress.

    Raises:
        TrainingRunError: too many trials failed.
    """
    done = settled(study)
    value = f"{settings.metric} {trial.value:.6g}" if trial.value is not None else ""
    best = f"best {study.best_value:.6g} (trial {study.best_trial.number})" if done.count("COMPLETE") else "none yet"
    context.log.info(
        f"{len(done.trials)}/{settings.n_trials}: trial {trial.number} {trial.state.name.lower()} {value}; {best}, "
        f"{done.count('PRUNED')} pruned, {done.count('FAIL')} failed."
    )
    unknown = sorted(queued(trial).keys() - trial.params.keys())
    if unknown and trial.state.name == "COMPLETE":
        context.log.warning(
            f"Trial {trial.number} was to try {', '.join(unknown)}, which the function has not asked for; it has asked "
            f"for {', '.join(trial.params) or 'nothing'}. Mend `enqueue`."
        )
    if done.count("FAIL") > settings.max_failed:
        run_id = trial.user_attrs.get(RUN_ID)
        raise TrainingRunError(
            f"{done.count('FAIL')} of {len(done.trials)} trials failed, more than max_failed={settings.max_failed}. "
            f"The tag {runs.CLOSED} of their MLflow runs, such as {run_id}, says why."
        )


def _observe(context: dg.AssetExecutionContext, study: "optuna.Study") -> None:
    """How far the sweep is, as an observation of the asset: its page shows it while the step runs."""
    done = settled(study)
    facts: dict[str, Any] = {"optuna/finished": len(done.trials)}
    if done.count("COMPLETE"):
        facts["optuna/best_value"] = study.best_value
    partition = context.partition_key if context.has_partition_key else None
    context.log_event(dg.AssetObservation(context.assets_def.key, partition=partition, metadata=facts))
