"""MLflow's flavours: storing a model as data rather than as a pickle, calling it, and verifying what was stored."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg

from dagster_mlops.core.arrays import np, pd
from dagster_mlops.core.extras import extra
from dagster_mlops.core.model_code import ModelCode
from dagster_mlops.core.model_formats import EXPORTED_PROGRAM, KERAS_FILE, untrusted
from dagster_mlops.core.model_inputs import fitting_first
from dagster_mlops.errors import TrainingRunError
from dagster_mlops.mlflow.lazy import ModelInfo, mlflow, torch
from dagster_mlops.provenance import mask_credentials

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


_GAPS = 5  # rows with missing values that are tried as they are


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
    if foreign := untrusted(types, [*trust, *native.get("skops_trusted_types", ())]):
        raise TrainingRunError(
            f'{distrust(model, foreign)} Or write serialization="pickle": then anyone who can write the file can run '
            "code where it is loaded."
        )
    return {"serialization_format": "skops", "skops_trusted_types": types or None}


def distrust(model: Any, foreign: Sequence[str]) -> str:
    """Sentences on what in a model may be more than data, and the ways out."""
    local = [name for name in foreign if name.startswith("__main__.") or "<" in name]
    return f"{name_of(type(model))} holds {', '.join(foreign)}, which may be more than data. " + (
        f"Define {', '.join(local)} in a module that can be imported where the model is loaded."
        if local
        else f"If you trust that, write log_model(…, trust={[*foreign]}), and have it importable where the model "
        "is loaded: installed, or below code_paths=[…]."
    )


def files_as_written(info: ModelInfo, flavor: str, options: dict[str, Any]) -> dict[str, Sequence[str]]:
    """The file of a model that was stored unverified, with the names in it as MLflow recorded them."""
    if flavor == "pytorch":
        return {EXPORTED_PROGRAM: ()} if options.get("serialization_format") == "pt2" else {}
    if flavor == "keras":
        return {KERAS_FILE: ()}
    conf = info.flavors.get("sklearn") or info.flavors.get("lightgbm") or {}
    return {str(conf.get("pickled_model") or conf.get("data")): conf.get("skops_trusted_types") or ()}


def log_function(flavor: str) -> Callable[..., ModelInfo]:
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


def predict_function(model: Any, flavor: str, name: str) -> Callable[[Any], Any] | None:
    """The function of a model that MLflow calls on the stored one; None when only MLflow can call the model."""
    if flavor == "pytorch":
        return lambda rows: model(torch.as_tensor(plain(rows)))
    # A pyfunc and a bare booster are called through MLflow's wrapper, which then also infers the signature.
    if flavor == "pyfunc" or type(model).__name__ == "Booster":
        return None
    return getattr(model, name, None) or getattr(model, "transform", None)


def first_rows(example: Any, count: int) -> Any:
    """The first rows of a frame, an array or a list; other examples as they are."""
    has_rows = hasattr(example, "__getitem__") and not isinstance(example, dict | str | bytes)
    return example[:count] if has_rows else example


def mixed_rows(rows: Any) -> Any:
    """A frame whose rows are made of the values of different rows, so that none of them describes a person.

    Other examples, which have no columns, as they are.
    """
    module, count = type(rows).__module__.partition(".")[0], len(rows) if hasattr(rows, "__len__") else 0
    if module not in ("pandas", "polars") or getattr(rows, "ndim", 2) != 2 or count < 2:
        return rows
    # Turned by the place of the column only, the rows could be put together again: what is turned is in order.
    if module == "polars":
        columns = [rows.to_series(place) for place in range(rows.shape[1])]
        return rows.with_columns([column[_turned(column, place)] for place, column in enumerate(columns)])
    columns = [rows.iloc[:, place].array for place in range(rows.shape[1])]
    mixed = {place: column.take(_turned(column, place)) for place, column in enumerate(columns)}
    return pd.DataFrame(mixed, index=rows.index).set_axis(rows.columns, axis=1)


def _turned(column: Any, steps: int) -> list[int]:
    """The places of the values in their order, from another one on for each column."""
    values = list(column)
    try:
        order = sorted(range(len(values)), key=lambda place: (values[place] != values[place], values[place]))
    except TypeError:
        order = sorted(range(len(values)), key=lambda place: str(values[place]))
    steps %= len(order)
    return order[steps:] + order[:steps]


def plain(value: Any) -> Any:
    """The value as MLflow accepts it: no tensor, no polars frame, no integers or booleans with missing values."""
    if hasattr(value, "detach"):
        return value.detach().cpu().numpy()
    value = value.to_pandas() if type(value).__module__.partition(".")[0] == "polars" else value
    if not isinstance(value, pd.DataFrame):
        return value
    types, frame = pd.api.types, value.copy(deep=False)
    for name, dtype in value.dtypes.items():
        if types.is_extension_array_dtype(dtype) and value[name].isna().to_numpy().any():
            if types.is_bool_dtype(dtype):
                frame[name] = value[name].astype(object).where(value[name].notna(), None)
            elif types.is_integer_dtype(dtype):
                frame[name] = value[name].astype("float64")
    return frame


@contextmanager
def evaluating(model: Any, flavor: str) -> Iterator[None]:
    """Put a network into evaluation mode on the CPU; afterwards, each of its parts is as it was."""
    if flavor != "pytorch":
        yield
        return
    training = [(module, module.training) for module in model.modules()]
    devices = [(tensor, tensor.device) for tensor in (*model.parameters(), *model.buffers())]
    model.eval().cpu()
    try:
        with torch.no_grad():
            yield
    finally:
        for tensor, device in devices:
            tensor.data = tensor.data.to(device)
        for module, was in training:
            module.training = was


def verify_stored(
    folder: Path, info: ModelInfo, flavor: str, rows: Any, expected: Any, predict: str, frame: Any
) -> None:
    """Load the model and compare its predictions for the example rows, as a server gets them and as they were given.

    `frame` is the whole example. MLflow's own wrapper may refuse its types, where this library's loaders adapt them:
    then a warning names the columns.

    Raises:
        TrainingRunError: it cannot be loaded, or has different predictions.
    """
    try:
        with ModelCode.of(folder, info.flavors).active():
            if "python_function" in info.flavors:
                stored = mlflow.pyfunc.load_model(str(folder))
                # As a server receives it: the stored example went through JSON.
                predictions = stored.predict(rows if stored.input_example is None else stored.input_example)
                _verify_as_given(stored, frame)
            else:
                function = predict_function(extra(f"mlflow.{flavor}").load_model(str(folder)), flavor, predict)
                predictions = function(rows) if function else None
    except Exception as error:
        raise TrainingRunError(
            f"the model that was just stored cannot be used: {type(error).__name__}: "
            f"{mask_credentials(str(error))[:500]}\nIs `example` an input of the model? MLflow calls models with plain "
            "columns, with text instead of pandas categories: encode categories in a pipeline. For a model that MLflow "
            "never serves, set verify=False."
        ) from error
    if not are_equal(expected, predictions):
        raise TrainingRunError(
            f"the stored model answers differently from the one in memory for the same rows: "
            f"{str(predictions)[:200]} instead of {str(expected)[:200]}. Does it read more than its input, such "
            "as the index, categories or the clock?"
        )


def refused_columns(example: Any) -> list[str]:
    """The columns of an example whose types MLflow refuses except from JSON: integers with missing values, say."""
    if not isinstance(example, pd.DataFrame):
        return []
    adapted = plain(example)
    return [str(name) for name in example if example[name].dtype != adapted[name].dtype]


def are_equal(expected: Any, predictions: Any) -> bool:
    """True if predictions are the expected ones, or none are expected."""
    return expected is None or _equal(plain(expected), plain(predictions))


def _verify_as_given(stored: Any, frame: Any) -> None:
    """Let the model answer the rows with missing values as they were given."""
    if not (changed := refused_columns(frame)):
        return
    has_gaps = np.asarray(frame.isna()).any(axis=1)
    fitting_first(stored.predict, stored)(frame[has_gaps].head(_GAPS))
    types = dict.fromkeys(changed, "float64")
    dg.get_dagster_logger().warning(
        f"MLflow refuses {', '.join(changed)} in the types of the example ({frame[changed[0]].dtype} with missing "
        f"values), except from JSON. dagster_mlops.mlflow.models.load_version(…, pyfunc=True) and evaluations convert "
        f"them; a caller of mlflow.pyfunc.load_model has to. Or train and call with rows.astype({types})."
    )


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_equal, left, right))

    def frame(value: Any) -> Any:
        value = value.toarray() if hasattr(value, "toarray") else value
        if not isinstance(value, pd.DataFrame):
            value = np.atleast_1d(np.asarray(value))
            value = value.reshape(len(value), -1)
        return pd.DataFrame(value)

    left, right = frame(left), frame(right)
    if left.shape != right.shape:
        return False
    for (_, old), (_, new) in zip(left.items(), right.items(), strict=True):
        try:
            # Networks compute in single precision.
            same = np.allclose(old.astype(float), new.astype(float), rtol=1e-4, atol=1e-6, equal_nan=True)
        except (TypeError, ValueError):
            missing = old.isna().to_numpy() & new.isna().to_numpy()
            same = missing | (old.to_numpy(object) == new.to_numpy(object))
        if not np.all(same):
            return False
    return True
