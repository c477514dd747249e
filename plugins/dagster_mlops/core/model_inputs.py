"""Inputs of a model in the types of its signature, as far as no value changes by that."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from dagster_mlops.core.arrays import PyFuncModel, np, pd


def fitting(values: Any, kind: str) -> Any:
    """A column in the type `kind` of the signature, if none of its values changes.

    A column may be integral in these rows only by chance, and categories are text to MLflow, which also refuses
    integers and booleans of pandas' own types where values are missing.
    """
    types = pd.api.types
    if kind == "string" and isinstance(values.dtype, pd.CategoricalDtype):
        return values.astype(object)
    if kind in ("double", "float") and types.is_numeric_dtype(values) and not types.is_float_dtype(values):
        floats = values.to_numpy("float64", na_value=np.nan) if types.is_extension_array_dtype(values) else values
        return pd.Series(floats, values.index).astype("float64" if kind == "double" else "float32")
    if kind == "boolean" and types.is_extension_array_dtype(values) and bool(values.isna().any()):
        return values.astype(object).where(values.notna(), None)
    number = kind in ("long", "integer") and types.is_float_dtype(values)
    if number and values.notna().all() and bool(values.eq(values.round()).all()):
        return values.astype("int64" if kind == "long" else "int32")
    return values


def fitting_frame(frame: "pd.DataFrame", model: PyFuncModel) -> Any:
    """The columns of a frame that the model's signature names, in its types; for networks, an array in their type."""
    schema = model.metadata.get_input_schema()
    if schema and schema.is_tensor_spec() and not schema.has_input_names() and len(schema.inputs[0].shape) == 2:
        return frame.to_numpy(schema.inputs[0].type)
    specs = schema.input_dict() if schema and schema.has_input_names() else {}
    adapted = frame.copy(deep=False)
    for name, spec in specs.items():
        if name in frame:
            adapted[name] = fitting(frame[name], getattr(spec.type, "name", ""))
    return adapted


def fitting_first(predict: Callable[..., Any], model: PyFuncModel) -> Callable[..., Any]:
    """`predict` of a model, with frames in the types of its signature."""

    @wraps(predict)
    def call(data: Any, *arguments: Any, **options: Any) -> Any:
        fits = fitting_frame(data, model) if isinstance(data, pd.DataFrame) else data
        return predict(fits, *arguments, **options)

    return call
