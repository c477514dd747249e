"""The user's training function: its signature for Dagster, its arguments, and the settings of its asset."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.mlflow.resource import MlflowResource

_CONTEXT_NAMES = {"context", "_context", "context_", "_"}
_BY_NAME = inspect.Parameter.POSITIONAL_OR_KEYWORD


@lazy_dataclass(frozen=True, kw_only=True)
class Training:
    """The settings of a training asset; `seed` is None where another one may have been used.

    With `several_models`, the function returns the one of its models that becomes the version.
    """

    function: Callable[..., Any]
    registered_model_name: str
    experiment: str | None
    seed: int | None = None
    deterministic: bool = False
    system_metrics: bool = False
    several_models: bool = False


class TrainingFunction:
    """A function of the user, which may take the context first, inputs, a config, and the resource ``mlflow``.

    `extra_arguments` do not come from Dagster.
    """

    def __init__(self, function: Callable[..., Any], *, extra_arguments: tuple[str, ...] = ()) -> None:
        try:
            # Annotations that are text (`from __future__ import annotations`) cannot be resolved in this module.
            parameters = list(inspect.signature(function, eval_str=True).parameters.values())
        except NameError:  # names for type checkers only
            parameters = list(inspect.signature(function).parameters.values())
        self.function = function
        self._takes_context = bool(parameters) and parameters[0].name in _CONTEXT_NAMES
        self._takes_resource = any(parameter.name == "mlflow" for parameter in parameters)
        inputs = parameters[self._takes_context :]
        self.inputs = [p.replace(kind=_BY_NAME) for p in inputs if p.name not in ("mlflow", *extra_arguments)]

    def set_signature(self, step: Callable[..., Any], *, inputs: bool = True) -> None:
        """Give `step` the signature from which Dagster takes inputs, config, context and resource."""
        context = inspect.Parameter("context", _BY_NAME, annotation=dg.AssetExecutionContext)
        resource = inspect.Parameter("mlflow", _BY_NAME, annotation=MlflowResource)
        parameters = [context, *(self.inputs if inputs else ()), resource]
        step.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
        step.__annotations__ = {p.name: p.annotation for p in parameters if p.annotation is not p.empty}

    def bind(
        self, context: dg.AssetExecutionContext, mlflow: MlflowResource, inputs: Mapping[str, Any]
    ) -> Callable[..., Any]:
        """The function with its arguments from Dagster."""
        arguments = {**inputs, "mlflow": mlflow} if self._takes_resource else inputs
        return functools.partial(self.function, *[context][: self._takes_context], **arguments)
