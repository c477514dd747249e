"""A sweep's function: its inputs from Dagster, and its call by a trial."""

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops.errors import TrainingRunError
from dagster_mlops.mlflow.resource import MlflowResource
from dagster_mlops.mlflow.training.function import TrainingFunction

if TYPE_CHECKING:
    import optuna


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
            return context.load_asset_value(keys[parameter.name], python_type=kind if has_type else None)

        return {parameter.name: load(parameter) for parameter in self.inputs}

    def objective(
        self, context: dg.AssetExecutionContext, mlflow: MlflowResource, inputs: Mapping[str, Any]
    ) -> "Callable[[optuna.Trial], float]":
        """The function of a trial alone."""
        call = self.bind(context, mlflow, inputs)
        return lambda trial: call(trial=trial)
