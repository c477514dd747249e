"""A sweep's function: what Dagster gives it, and how a trial calls it."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg

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

    def objective(
        self, context: dg.AssetExecutionContext, mlflow: MlflowResource, inputs: Mapping[str, Any]
    ) -> "Callable[[optuna.Trial], float]":
        """What one trial calls."""
        takes_resource = any(parameter.name == "mlflow" for parameter in self._parameters)
        given = {**inputs, "mlflow": mlflow} if takes_resource else dict(inputs)

        def objective(trial: "optuna.Trial") -> float:
            return self.function(*[context][: self._takes_context], trial=trial, **given)

        return objective
