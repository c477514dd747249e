"""Training assets: the user's function trains with MLflow's own API inside an MLflow run."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import dagster as dg

from dagster_mlops.core.model_versions import refuse_model
from dagster_mlops.core.options import asset_with
from dagster_mlops.mlflow.metadata_keys import REGISTERED_AS
from dagster_mlops.mlflow.resource import MlflowResource
from dagster_mlops.mlflow.training.function import Training, TrainingFunction


def training_asset(
    *,
    registered_model_name: str,
    experiment: str | None = None,
    seed: int = 0,
    deterministic: bool = False,
    system_metrics: bool = True,
    several_models: bool = False,
    **asset_options: Any,
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Make an asset of a function that trains and logs one model with MLflow's own API.

        @training_asset(registered_model_name="arrival_delay", group_name="training")
        def arrival_delay_model(context: dg.AssetExecutionContext, training_set: pd.DataFrame) -> None:
            model = LogisticRegression().fit(training_set[FEATURES], training_set["late"])
            mlflow.log_metrics({"auc": ...})
            mlflow.sklearn.log_model(
                model, name="model", signature=infer_signature(...), input_example=training_set[FEATURES].head(3),
                pip_requirements=["scikit-learn==1.7.2"],
            )

    The MLflow run is open when the function starts, has code, inputs, seed and Dagster run as tags, and is closed
    however the function ends. The model becomes a version of `registered_model_name`; aliases are left to promotion.
    The function returns nothing, or a :class:`dagster.MaterializeResult` whose metadata and check results are kept.
    A second model in the run is refused when it is logged. With `several_models`, such as one for every tenth epoch,
    the function returns the one that becomes the version: what ``log_model`` returned for it.

    `seed` seeds `random`, NumPy and PyTorch; with `deterministic`, PyTorch refuses operations whose result differs from
    run to run. `system_metrics` records the use of CPUs, memory and GPUs. `experiment` overrides the resource's.
    Everything else that :func:`dagster.asset` takes (`ins`, `deps`, `partitions_def`, `retry_policy`, `op_tags`, …) is
    passed on.
    The resource key is ``mlflow``.
    """

    refuse_model(registered_model_name, "mlflow")

    def decorate(function: Callable[..., Any]) -> dg.AssetsDefinition:
        if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
            raise dg.DagsterInvalidDefinitionError(
                f"{function.__name__} is a generator or coroutine; a training asset is a plain function. Return a "
                "MaterializeResult instead of yielding it."
            )
        training_function = TrainingFunction(function)

        @functools.wraps(function)
        def train(context: dg.AssetExecutionContext, mlflow: MlflowResource, **inputs: Any) -> dg.MaterializeResult:
            from dagster_mlops.mlflow.training.step import train_step  # for steps, not for code locations

            training = Training(
                function=function,
                registered_model_name=registered_model_name,
                experiment=experiment,
                seed=seed,
                deterministic=deterministic,
                system_metrics=system_metrics,
                several_models=several_models,
            )
            return train_step(training_function.bind(context, mlflow, inputs), context, mlflow, training)

        training_function.set_signature(train)
        return asset_with(asset_options, kinds=["mlflow"], metadata={REGISTERED_AS: registered_model_name})(train)

    return decorate
