"""Sweeps in one step: Optuna tries a training function's parameters, and the best model becomes the asset's version."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg

from dagster_mlops.core.extras import extra
from dagster_mlops.mlflow.assets import training_asset
from dagster_mlops.mlflow.resource import MlflowResource
from dagster_mlops.mlflow.runs import lookup as runs
from dagster_mlops.mlflow.sweep.best import conclude, repeat_trial, tried_before
from dagster_mlops.mlflow.sweep.function import SweepFunction
from dagster_mlops.mlflow.sweep.loop import Sweep, run_trials
from dagster_mlops.mlflow.sweep.metadata_keys import SECONDS
from dagster_mlops.mlflow.sweep.study import open_storage, open_study, requeue, running, settled, storage_url
from dagster_mlops.mlflow.sweep.trial import close_left

if TYPE_CHECKING:
    import optuna


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
    trial is a child of the asset's MLflow run, with parameters, value, reported values and state. The model of the best
    trial, exactly as it was measured, becomes the version of `registered_model_name`; the asset's run has its metrics
    and parameters.

    `n_jobs` trials run at once, in threads. `sampler` makes a sampler from a seed (by default Optuna's TPE), `pruner`
    a pruner (by default Optuna's median). `enqueue` lists parameters to try first. `storage` is the URL of a database,
    or the environment variable with it; by default a sqlite file in Dagster's storage folder. No trial starts after
    `timeout` seconds. A trial that raises has failed and the sweep continues, unless more than `max_failed` do so (by
    default a quarter of `n_trials`, at least 3).

    A retried or re-executed step continues the same study: finished trials are not repeated, and those that were cut
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
            f"a sweep needs a direction 'maximize' or 'minimize', and at least one trial and job; it got "
            f"{direction!r}, n_trials={n_trials}, n_jobs={n_jobs}."
        )

    def decorate(function: Callable[..., float]) -> dg.AssetsDefinition:
        sweep_function = SweepFunction(function)

        @functools.wraps(function)
        def search(context: dg.AssetExecutionContext, mlflow: MlflowResource, **inputs: Any) -> dg.MaterializeResult:
            objective = sweep_function.objective(context, mlflow, inputs)
            if tried := tried_before(context):
                return dg.MaterializeResult(metadata=repeat_trial(objective, tried, metric=metric))
            return run_sweep(objective, context, mlflow, settings)

        sweep_function.set_signature(search)
        options = {**asset_options, "kinds": {"optuna", *asset_options.get("kinds", ())}}
        train = training_asset(registered_model_name=registered_model_name, experiment=experiment, seed=seed, **options)
        return train(search)

    return decorate


def refuse_checks(options: Mapping[str, Any]) -> None:
    """Refuse checks whose results the function would have to return, before all trials run in vain.

    Raises:
        DagsterInvalidDefinitionError: there are such checks.
    """
    if specs := options.get("check_specs"):
        raise dg.DagsterInvalidDefinitionError(
            f"a sweep's function returns the metric, not results of check_specs={[spec.name for spec in specs]}. "
            "Write them as @dg.asset_check of the asset, or use metric_checks (dagster_mlops.mlflow)."
        )


def run_sweep(
    objective: "Callable[[optuna.Trial], float]",
    context: dg.AssetExecutionContext,
    resource: MlflowResource,
    settings: Sweep,
) -> dg.MaterializeResult:
    """Run the missing trials as children of MLflow's active run, and give that run the best one's model.

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
        unfinished = running(study)
        requeue(study, unfinished)
        close_left(client, study, parent)
        outcome = settled(study)
        # A sampler that starts with the same seed would suggest the same parameters again.
        make = settings.sampler or (lambda seed: extra("optuna").samplers.TPESampler(seed=seed))
        study.sampler = make(settings.seed + len(study.get_trials(deepcopy=False)))
        if outcome.trials or unfinished:
            context.log.info(
                f"Continuing study {name}: {len(outcome.trials)} trials have ended, {len(unfinished)} were cut off."
            )
        started = time.monotonic()
        run_trials(objective, study, storage, context, client, parent, settings)
        seconds = time.monotonic() - started
        metadata = conclude(study, context, client, parent, resource, metric=settings.metric, storage=url)
        return dg.MaterializeResult(metadata={**metadata, SECONDS: round(seconds, 3)})
    finally:
        storage.remove_session()
        storage.engine.dispose()
