"""What a model answers: the one in memory, and the one that was stored."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster_mlops.core.extras import extra
from dagster_mlops.errors import TrainingRunError

if TYPE_CHECKING:
    from mlflow.models.model import ModelInfo


def predict_function(model: Any, flavor: str, name: str) -> Callable[[Any], Any] | None:
    """What answers for a row, where the model in memory is called with what the stored one will be called with."""
    if flavor == "pytorch":
        torch = importlib.import_module("torch")
        return lambda rows: model(torch.as_tensor(plain(rows)))
    # A pyfunc and a bare booster are called through MLflow's wrapper, which then finds the signature, too.
    if flavor == "pyfunc" or type(model).__name__ == "Booster":
        return None
    return getattr(model, name, None) or getattr(model, "transform", None)


def first_rows(example: Any, count: int) -> Any:
    """At most so many rows of a frame, an array or a list; other examples as they are."""
    whole = isinstance(example, dict | str | bytes) or not hasattr(example, "__getitem__")
    return example if whole else example[:count]


def plain(value: Any) -> Any:
    """As MLflow takes it: no tensor, no polars frame, and no column of whole numbers or truths that has gaps."""
    if hasattr(value, "detach"):
        return value.detach().cpu().numpy()
    pandas = extra("pandas", extra="mlflow")
    value = value.to_pandas() if type(value).__module__.partition(".")[0] == "polars" else value
    if not isinstance(value, pandas.DataFrame):
        return value
    types, made = pandas.api.types, value.copy(deep=False)
    for name, dtype in value.dtypes.items():
        if types.is_extension_array_dtype(dtype) and value[name].isna().to_numpy().any():
            if types.is_bool_dtype(dtype):
                made[name] = value[name].astype(object).where(value[name].notna(), None)
            elif types.is_integer_dtype(dtype):
                made[name] = value[name].astype("float64")
    return made


@contextmanager
def evaluating(model: Any, flavor: str) -> Iterator[None]:
    """A network predicts, and is exported, in evaluation mode on the CPU; afterwards it is as it was, part by part."""
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


def verify_stored(folder: Path, info: "ModelInfo", flavor: str, rows: Any, answers: Any, predict: str) -> None:
    """Load the model, ask it for the rows that are kept with it, and compare.

    Raises:
        TrainingRunError: it cannot be loaded, or answers differently.
    """
    try:
        if "python_function" in info.flavors:
            stored = extra("mlflow.pyfunc").load_model(str(folder))
            # As a server gets it: the example went through JSON.
            said = stored.predict(rows if stored.input_example is None else stored.input_example)
        else:
            loaded = extra(f"mlflow.{flavor}").load_model(str(folder))
            function = predict_function(loaded, flavor, predict)
            said = function(rows) if function else None
    except Exception as error:
        raise TrainingRunError(
            f"the model that was just stored cannot be used: {type(error).__name__}: {str(error)[:500]}\nIs `example` "
            "what the model is called with? MLflow calls models with plain columns, text instead of pandas categories: "
            "encode categories in a pipeline. A model that is never served by MLflow can do with verify=False."
        ) from error
    if answers is not None and not _equal(plain(answers), plain(said)):
        raise TrainingRunError(
            f"the stored model answers differently from the one in memory for the same rows: {str(said)[:200]} instead "
            f"of {str(answers)[:200]}. Does it read more than its input, such as the index, categories or the clock?"
        )


def _equal(one: Any, other: Any) -> bool:
    numpy, pandas = extra("numpy", extra="mlflow"), extra("pandas", extra="mlflow")
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))

    def frame(value: Any) -> Any:
        value = value.toarray() if hasattr(value, "toarray") else value
        if not isinstance(value, pandas.DataFrame):
            value = numpy.atleast_1d(numpy.asarray(value))
            value = value.reshape(len(value), -1)
        return pandas.DataFrame(value)

    one, other = frame(one), frame(other)
    if one.shape != other.shape:
        return False
    for (_, left), (_, right) in zip(one.items(), other.items(), strict=True):
        try:
            # Networks compute in single precision.
            same = numpy.allclose(left.astype(float), right.astype(float), rtol=1e-4, atol=1e-6, equal_nan=True)
        except (TypeError, ValueError):
            missing = left.isna().to_numpy() & right.isna().to_numpy()
            same = missing | (left.to_numpy(object) == right.to_numpy(object))
        if not numpy.all(same):
            return False
    return True
