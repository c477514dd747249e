"""Training assets: the user's function trains with MLflow's own API, inside a run that is always closed."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import dagster as dg

from dagster_mlops.core.options import merged_options
from dagster_mlops.errors import TrainingRunError
from dagster_mlops.mlflow.metadata_keys import REGISTERED_AS
from dagster_mlops.mlflow.resource import MlflowResource
from dagster_mlops.mlflow.training.run_facts import run_facts
from dagster_mlops.mlflow.training.step import Training, train_step

CONTEXT_NAMES = {"context", "_context", "context_", "_"}


def training_asset(
    *,
    registered_model_name: str,
    experiment: str | None = None,
    seed: int = 0,
    deterministic: bool = False,
    system_metrics: bool = True,
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

    The MLflow run is open when the function starts, carries code, inputs, seed and Dagster run as tags, and is closed
    however the function ends. The model becomes a version of `registered_model_name`; aliases are left to promotion.
    The function returns nothing, or a :class:`dagster.MaterializeResult` whose metadata and check results are kept.

    `seed` seeds `random`, NumPy and PyTorch; with `deterministic`, PyTorch refuses operations that give other numbers
    each time. `system_metrics` watches processors, memory and GPUs. `experiment` overrides the resource's. Everything
    else that :func:`dagster.asset` takes (`ins`, `deps`, `partitions_def`, `retry_policy`, `op_tags`, …) is passed on.
    The resource key is ``mlflow``.
    """

    if not registered_model_name.strip() or set(registered_model_name) & set("/:"):
        raise dg.DagsterInvalidDefinitionError(
            f"registered_model_name={registered_model_name!r}: MLflow takes no empty names, and none with '/' or ':'."
        )
    training = Training(
        registered_model_name=registered_model_name,
        experiment=experiment,
        seed=seed,
        deterministic=deterministic,
        system_metrics=system_metrics,
    )

    def decorate(function: Callable[..., Any]) -> dg.AssetsDefinition:
        if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
            raise dg.DagsterInvalidDefinitionError(
                f"{function.__name__} is a generator or coroutine; a training asset is a plain function. Return a "
                "MaterializeResult instead of yielding it."
            )
        try:
            # Annotations that are text, by `from __future__ import annotations`, mean nothing in this module.
            signature = inspect.signature(function, eval_str=True)
        except NameError:  # names for type checkers only
            signature = inspect.signature(function)
        parameters = list(signature.parameters.values())
        takes_context = bool(parameters) and parameters[0].name in CONTEXT_NAMES
        takes_resource = any(parameter.name == "mlflow" for parameter in parameters)

        @functools.wraps(function)
        def train(context: dg.AssetExecutionContext, mlflow: MlflowResource, **inputs: Any) -> dg.MaterializeResult:
            arguments = {**inputs, "mlflow": mlflow} if takes_resource else inputs
            call = functools.partial(function, *[context][:takes_context], **arguments)
            facts = run_facts(
                context,
                mlflow,
                experiment=experiment or mlflow.experiment,
                seed=seed,
                deterministic=deterministic,
                function=function,
                registered_model_name=registered_model_name,
            )
            try:
                return train_step(call, context, mlflow, training, facts)
            except TrainingRunError as error:
                # Training once more would break the same contract once more.
                raise dg.Failure(str(error), allow_retries=False) from error

        by_name = inspect.Parameter.POSITIONAL_OR_KEYWORD
        # Dagster reads inputs, config and resources from the signature: the user's own, plus what this wrapper needs.
        own = [parameter.replace(kind=by_name) for parameter in parameters[takes_context:]]
        context_first = inspect.Parameter("context", by_name, annotation=dg.AssetExecutionContext)
        resource = inspect.Parameter("mlflow", by_name, annotation=MlflowResource)
        wanted = [context_first, *(parameter for parameter in own if parameter.name != "mlflow"), resource]
        train.__signature__ = inspect.Signature(wanted)  # pyright: ignore[reportAttributeAccessIssue]
        train.__annotations__ = {p.name: p.annotation for p in wanted if p.annotation is not p.empty}
        options = merged_options(asset_options, kinds=["mlflow"], metadata={REGISTERED_AS: registered_model_name})
        return dg.asset(**options)(train)

    return decorate
