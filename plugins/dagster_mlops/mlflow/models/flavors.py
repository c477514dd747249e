"""MLflow's flavours: the one of a model, and the options that store it as data rather than as a pickle."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dagster_mlops.core.extras import extra
from dagster_mlops.core.model_formats import untrusted
from dagster_mlops.errors import TrainingRunError
from dagster_mlops.mlflow.lazy import ModelInfo, mlflow

# MLflow's module by the package of a model's class. Estimators of the first packages are also scikit-learn's: the most
# specific class decides.
_FLAVORS = {
    "lightgbm": "lightgbm",
    "xgboost": "xgboost",
    "catboost": "catboost",
    "keras": "keras",
    "tensorflow": "keras",
    "torch": "pytorch",
    "statsmodels": "statsmodels",
    "sklearn": "sklearn",
    "mlflow": "pyfunc",
}


def flavor_of(model: Any) -> str:
    """The module of MLflow that logs and loads this kind of model.

    Raises:
        TrainingRunError: none is known.
    """
    for cls in type(model).__mro__:
        if name := _FLAVORS.get(cls.__module__.partition(".")[0]):
            return name
    raise TrainingRunError(
        f"no flavour of MLflow is known for {name_of(type(model))}, only for {', '.join(_FLAVORS)}. Log it "
        "with mlflow.<flavor>.log_model, or wrap it in an mlflow.pyfunc.PythonModel."
    )


def storing(
    model: Any, flavor: str, serialization: str, trust: Sequence[str], native: dict[str, Any]
) -> dict[str, Any]:
    """MLflow's options that store the model in this `serialization`.

    Raises:
        TrainingRunError: it cannot be stored safely.
    """
    if serialization not in ("safe", "pickle"):
        raise TrainingRunError(f"serialization is {serialization!r}; it is 'safe' or 'pickle'.")
    pickle = serialization == "pickle"
    is_booster = flavor == "lightgbm" and type(model).__name__ == "Booster"
    if "serialization_format" in native or is_booster or flavor in ("xgboost", "catboost", "keras"):
        return {}
    if flavor in ("statsmodels", "pyfunc"):
        if not pickle:
            raise TrainingRunError(
                f"MLflow stores models of {flavor} only as pickles, and loading a pickle runs whatever code is in it. "
                'Write log_model(…, serialization="pickle") if you trust everyone who can write to the '
                "artifact store."
            )
        return {}
    if flavor == "pytorch":
        return {"serialization_format": "pickle" if pickle else "pt2"}
    if pickle:
        return {"serialization_format": "cloudpickle"}
    skops = extra("skops.io", extra="mlflow")
    try:
        types = skops.get_untrusted_types(data=skops.dumps(model))
    except Exception as error:
        raise TrainingRunError(
            f"{name_of(type(model))} cannot be stored as data: {type(error).__name__}: {str(error)[:300]}\n"
            "skops stores only classes and functions that a module defines at its top level. Move lambdas and "
            'local classes there, or write log_model(…, serialization="pickle").'
        ) from error
    foreign = untrusted(types, [*trust, *native.get("skops_trusted_types", ())])
    if foreign:
        local = [name for name in foreign if name.startswith("__main__.") or "<" in name]
        raise TrainingRunError(
            f"{name_of(type(model))} holds {', '.join(foreign)}, which may be more than data. "
            + (
                f"Define {', '.join(local)} in a module that can be imported where the model is loaded. "
                if local
                else f"If you trust that, write log_model(…, trust={foreign}), and have it importable where the model "
                "is loaded: installed, or below code_paths=[…]. "
            )
            + 'Or write serialization="pickle": then anyone who can write the file can run code where it is loaded.'
        )
    return {"serialization_format": "skops", "skops_trusted_types": types or None}


def log_function(flavor: str) -> Callable[..., "ModelInfo"]:
    """MLflow's function that logs a model, its first argument, of a flavour."""
    module = extra(f"mlflow.{flavor}", extra="mlflow")
    if flavor == "pyfunc":
        return lambda model, **options: module.log_model(python_model=model, **options)
    if flavor != "keras":
        return module.log_model

    # mlflow.keras writes the input example before it creates the folder (3.17).
    def save_model(path: str, **options: Any) -> None:
        Path(path).mkdir(exist_ok=True)
        module.save_model(path=path, **options)

    keras, log = SimpleNamespace(__name__="mlflow.keras", save_model=save_model), mlflow.models.Model.log
    return lambda model, **options: log(artifact_path=None, flavor=keras, model=model, **options)


def name_of(cls: type) -> str:
    """Module and name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"
