"""A sweep's function: what Dagster gives it, and how a trial calls it."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops.errors import TrainingRunError
from dagster_mlops.mlflow.assets import CONTEXT_NAMES
from dagster_mlops.mlflow.resource import MlflowResource

if TYPE_CHECKING:
    import optuna

_BY_NAME = inspect.Parameter.POSITIONAL_OR_KEYWORD


@dataclass(frozen=True)
class SweepFunction:
    """The user's function, with an argument `trial` that Optuna gives, and others that Dagster gives."""

    function: Callable[..., float]

    def __post_init__(self) -> None:
        if not any(parameter.name == "trial" for parameter in self._parameters):
            raise dg.DagsterInvalidDefinitionError(f"{self.function.__name__} needs an argument `trial`, Optuna's.")

    @property
    def _parameters(self) -> list[inspect.Parameter]:
        return list(inspect.signature(self.function).parameters.values())

    @property
    def _takes_context(self) -> bool:
        return self._parameters[0].name in CONTEXT_NAMES

    @property
    def signature(self) -> inspect.Signature:
        """What Dagster reads inputs, config and resources from: the function's own without the trial."""
        own = [p for p in self._parameters[self._takes_context :] if p.name not in ("trial", "mlflow")]
        context = inspect.Parameter("context", _BY_NAME, annotation=dg.AssetExecutionContext)
        resource = inspect.Parameter("mlflow", _BY_NAME, annotation=MlflowResource)
        return inspect.Signature([context, *(p.replace(kind=_BY_NAME) for p in own), resource])

    def load_inputs(self, context: dg.AssetExecutionContext, asset: dg.AssetsDefinition) -> dict[str, Any]:
        """What Dagster gives to the function in a step of `asset`, loaded in a step of another one.

        Raises:
            TrainingRunError: the function takes a config or resources, which the other step had.
        """
        own = [p for p in self.signature.parameters.values() if p.name not in ("context", "mlflow")]
        keys = asset.keys_by_input_name
        if missing := [p.name for p in own if p.name not in keys]:
            raise TrainingRunError(
                f"{self.function.__name__} takes {', '.join(missing)}, which each trial's own step was given: the best "
                "trial cannot be run again in another step."
            )
        typed = {p.name: p.annotation for p in own if isinstance(p.annotation, type) and p.annotation is not p.empty}
        return {p.name: context.load_asset_value(keys[p.name], python_type=typed.get(p.name)) for p in own}

    def objective(
        self, context: dg.AssetExecutionContext, mlflow: MlflowResource, inputs: Mapping[str, Any]
    ) -> "Callable[[optuna.Trial], float]":
        """What one trial calls."""
        takes_resource = any(parameter.name == "mlflow" for parameter in self._parameters)
        given = {**inputs, "mlflow": mlflow} if takes_resource else dict(inputs)

        def objective(trial: "optuna.Trial") -> float:
            return self.function(*[context][: self._takes_context], trial=trial, **given)

        return objective
