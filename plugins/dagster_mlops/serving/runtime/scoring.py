"""Rows in, predictions out, for any MLflow model with a column signature; the same code serves and verifies."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.pyfunc import PyFuncModel

TAKES_AN_ARRAY = (
    "the model takes an array, as networks of Keras and PyTorch do, and the rows of a deployment have named columns. "
    "Log an mlflow.pyfunc.PythonModel that takes the columns and calls the network."
)


def features_of(model: "PyFuncModel", rows: Sequence[Mapping[str, Any]]) -> "pd.DataFrame":
    """The rows as the model's signature wants them: its columns, its order, its types; other keys are left out.

    Raises:
        ValueError: a required feature is missing, or a value does not fit its type; the message names it.
    """
    import pandas as pd

    schema = signature_inputs(model)
    missing = {
        col.name: [i for i, row in enumerate(rows) if col.name not in row] for col in schema.inputs if col.required
    }
    missing = {name: at for name, at in missing.items() if at}
    if missing:
        raise ValueError(
            f"missing feature(s) {', '.join(missing)} (first in row {min(a[0] for a in missing.values())}). "
            f"The model takes: {', '.join(schema.input_names())}."
        )
    columns = {}
    for col in schema.inputs:
        values = [row.get(col.name) for row in rows]
        dtype = col.type.to_pandas()
        try:
            if col.type.name in ("double", "float"):
                columns[col.name] = pd.Series(pd.to_numeric(pd.Series(values, dtype=object)), dtype=dtype)
            elif col.type.name in ("integer", "long"):
                columns[col.name] = _integers(values).astype(dtype)
            elif col.type.name == "boolean":
                if not all(isinstance(value, bool) for value in values):
                    raise TypeError("expected true or false")
                columns[col.name] = pd.Series(values, dtype=bool)
            elif col.type.name == "datetime":
                columns[col.name] = pd.to_datetime(pd.Series(values, dtype=object)).astype("datetime64[ns]")
            else:
                columns[col.name] = pd.Series(values, dtype=object)
        except (TypeError, ValueError) as error:
            raise ValueError(f"feature {col.name!r} is not of type {col.type.name}: {error}") from error
    return pd.DataFrame(columns, columns=schema.input_names())


def outputs_of(model: "PyFuncModel", features: "pd.DataFrame") -> list[Any]:
    """One plain value per row: the pyfunc's own output, or the probability of class 1 of a ``predict_proba`` pyfunc."""
    import numpy as np

    raw = np.asarray(model.predict(features))
    pyfunc = model.metadata.flavors.get("python_function", {})
    if pyfunc.get("predict_fn") == "predict_proba" and raw.ndim == 2 and raw.shape[1] == 2:
        raw = raw[:, 1]
    elif raw.ndim == 2 and raw.shape[1] == 1:
        raw = raw[:, 0]
    return [_plain(value) for value in raw.tolist()]


def records_of(frame: "pd.DataFrame") -> list[dict[str, Any]]:
    """The rows of a dataframe as JSON can carry them: missing values are None, timestamps ISO 8601, numbers exact."""
    names = list(frame.columns)
    columns = [[_plain(value) for value in frame[name].tolist()] for name in names]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def signature_inputs(model: "PyFuncModel") -> Any:
    """The model's input schema.

    Raises:
        ValueError: the model was logged without a signature of named columns.
    """
    schema = model.metadata.get_input_schema()
    if schema is not None and schema.is_tensor_spec():
        raise ValueError(TAKES_AN_ARRAY)
    if schema is None or not schema.has_input_names():
        raise ValueError(
            "the model has no signature with named columns. Log it with signature=infer_signature(X, predictions)."
        )
    return schema


def _integers(values: Sequence[Any]) -> "pd.Series":
    import pandas as pd

    if any(value is None for value in values):
        raise TypeError("null is not an integer")
    if any(isinstance(value, float) and not value.is_integer() for value in values):
        raise TypeError("has a fraction")
    return pd.Series(pd.to_numeric(pd.Series(values, dtype=object)))


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        return _plain(value.item())
    if value != value:  # NaT and pd.NA-like scalars differ from themselves
        return None
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
