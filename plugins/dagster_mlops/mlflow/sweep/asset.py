"""Sweeps in one step: Optuna tries a training function's parameters, and the best model becomes the asset's version."""

import functools
import inspect
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg

from dagster_mlops.core.resources import note_credentials
from dagster_mlops.core.upstream import loaded_value
from dagster_mlops.errors import TrainingRunError
from dagster_mlops.mlflow.assets import training_asset
from dagster_mlops.mlflow.resource import MlflowResource
from dagster_mlops.mlflow.sweep.best import repeat_trial, tried_before
from dagster_mlops.mlflow.sweep.loop import Sweep, run_sweep
from dagster_mlops.mlflow.sweep.study import Direction, MakePruner, MakeSampler, Objective
from dagster_mlops.mlflow.training.function import TrainingFunction


def sweep_asset(
    *,
    registered_model_name: str,
    metric: str,
    direction: Direction,
    n_trials: int,
    n_jobs: int = 1,
    sampler: MakeSampler = None,
    pruner: MakePruner = None,
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

    A retried step, and the re-execution of one that failed, continue the same study: finished trials are not repeated,
    and those that were cut off run again with the same parameters. Everything else is as for :func:`training_asset`.
    """
    refuse_checks(asset_options)
    refuse_metric(metric)
    note_credentials("sweep_asset", "storage", storage)
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


def refuse_metric(metric: str) -> None:
    """Refuse a name that MLflow would refuse after the first trial.

    Raises:
        DagsterInvalidDefinitionError: it is one.
    """
    is_path = metric == posixpath.normpath(metric) and not metric.startswith(("/", "."))
    if not is_path or not re.fullmatch(r"[\w\-. /:]{1,250}", metric):
        raise dg.DagsterInvalidDefinitionError(
            f"metric={metric!r} is not a name that MLflow accepts: letters, digits, '_', '-', '.', ' ', ':', and '/' "
            "between names."
        )


class SweepFunction(TrainingFunction):
    """The user's function, with an argument ``trial`` from Optuna, and others from Dagster."""

    def __init__(self, function: Callable[..., float]) -> None:
        if "trial" not in inspect.signature(function).parameters:
            raise dg.DagsterInvalidDefinitionError(f"{function.__name__} needs an argument `trial`, Optuna's.")
        super().__init__(function, extra_arguments=("trial",))

    def load_inputs(self, context: dg.AssetExecutionContext, asset: dg.AssetsDefinition) -> dict[str, Any]:
        """The function's inputs in a step of `asset`, loaded in a step of another one.

        Raises:
            TrainingRunError: the function takes a config or resources, which only the other step has.
        """
        keys = asset.keys_by_input_name
        if missing := [p.name for p in self.inputs if p.name not in keys]:
            raise TrainingRunError(
                f"{self.function.__name__} takes {', '.join(missing)}, which only the steps of the trials have: the "
                "best trial cannot be run again in another step."
            )

        def load(parameter: inspect.Parameter) -> Any:
            kind = parameter.annotation
            has_type = isinstance(kind, type) and kind is not inspect.Parameter.empty
            return loaded_value(context, keys[parameter.name], python_type=kind if has_type else None)

        return {parameter.name: load(parameter) for parameter in self.inputs}

    def objective(
        self, context: dg.AssetExecutionContext, mlflow: MlflowResource, inputs: Mapping[str, Any]
    ) -> Objective:
        """The function of a trial alone."""
        call = self.bind(context, mlflow, inputs)
        return lambda trial: call(trial=trial)
