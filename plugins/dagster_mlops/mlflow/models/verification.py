"""Comparing the predictions of a stored model with those of the model in memory."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dagster_mlops.core.extras import extra
from dagster_mlops.errors import TrainingRunError
from dagster_mlops.mlflow.lazy import ModelInfo, mlflow


def predict_function(model: Any, flavor: str, name: str) -> Callable[[Any], Any] | None:
    """The function of a model that MLflow calls on the stored one; None when only MLflow can call the model."""
    if flavor == "pytorch":
        torch = importlib.import_module("torch")
        return lambda rows: model(torch.as_tensor(plain(rows)))
    # A pyfunc and a bare booster are called through MLflow's wrapper, which then also infers the signature.
    if flavor == "pyfunc" or type(model).__name__ == "Booster":
        return None
    return getattr(model, name, None) or getattr(model, "transform", None)


def first_rows(example: Any, count: int) -> Any:
    """The first rows of a frame, an array or a list; other examples as they are."""
    has_rows = hasattr(example, "__getitem__") and not isinstance(example, dict | str | bytes)
    return example[:count] if has_rows else example


def plain(value: Any) -> Any:
    """The value as MLflow accepts it: no tensor, no polars frame, no integers or booleans with missing values."""
    if hasattr(value, "detach"):
        return value.detach().cpu().numpy()
    pandas = extra("pandas", extra="mlflow")
    value = value.to_pandas() if type(value).__module__.partition(".")[0] == "polars" else value
    if not isinstance(value, pandas.DataFrame):
        return value
    types, frame = pandas.api.types, value.copy(deep=False)
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
    torch = importlib.import_module("torch")
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


def verify_stored(folder: Path, info: "ModelInfo", flavor: str, rows: Any, expected: Any, predict: str) -> None:
    """Load the model and compare its predictions for the example rows.

    Raises:
        TrainingRunError: it cannot be loaded, or has different predictions.
    """
    try:
        if "python_function" in info.flavors:
            stored = mlflow.pyfunc.load_model(str(folder))
            # As a server receives it: the stored example went through JSON.
            predictions = stored.predict(rows if stored.input_example is None else stored.input_example)
        else:
            loaded = extra(f"mlflow.{flavor}").load_model(str(folder))
            function = predict_function(loaded, flavor, predict)
            predictions = function(rows) if function else None
    except Exception as error:
        raise TrainingRunError(
            f"the model that was just stored cannot be used: {type(error).__name__}: {str(error)[:500]}\nIs `example` "
            "an input of the model? MLflow calls models with plain columns, with text instead of pandas categories: "
            "encode categories in a pipeline. For a model that MLflow never serves, set verify=False."
        ) from error
    if expected is not None and not _equal(plain(expected), plain(predictions)):
        raise TrainingRunError(
            f"the stored model answers differently from the one in memory for the same rows: "
            f"{str(predictions)[:200]} instead of {str(expected)[:200]}. Does it read more than its input, such "
            "as the index, categories or the clock?"
        )


def _equal(left: Any, right: Any) -> bool:
    numpy, pandas = extra("numpy", extra="mlflow"), extra("pandas", extra="mlflow")
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_equal, left, right))

    def frame(value: Any) -> Any:
        value = value.toarray() if hasattr(value, "toarray") else value
        if not isinstance(value, pandas.DataFrame):
            value = numpy.atleast_1d(numpy.asarray(value))
            value = value.reshape(len(value), -1)
        return pandas.DataFrame(value)

    left, right = frame(left), frame(right)
    if left.shape != right.shape:
        return False
    for (_, old), (_, new) in zip(left.items(), right.items(), strict=True):
        try:
            # Networks compute in single precision.
            same = numpy.allclose(old.astype(float), new.astype(float), rtol=1e-4, atol=1e-6, equal_nan=True)
        except (TypeError, ValueError):
            missing = old.isna().to_numpy() & new.isna().to_numpy()
            same = missing | (old.to_numpy(object) == new.to_numpy(object))
        if not numpy.all(same):
            return False
    return True
