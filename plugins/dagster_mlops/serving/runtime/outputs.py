"""Predictions as JSON can carry them: one value for each row, and none turned into what it is not."""

import base64
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


class OutputError(RuntimeError):
    """A model returned what is not one value for each row, or a value that JSON has no form of."""


def outputs_by_row(raw: Any, rows: int) -> list[Any]:
    """One plain value for each of `rows` rows: of an array, a series, a list; a dictionary for those of a table of
    several columns.

    >>> outputs_by_row(np.array([[0.25], [0.5]]), 2)
    [0.25, 0.5]
    >>> outputs_by_row({"low": [1, 2], "high": np.array([3.0, float("inf")])}, 2)
    [{'low': 1, 'high': 3.0}, {'low': 2, 'high': None}]

    Raises:
        OutputError: there are more or fewer, or a value has no form in JSON.
    """
    values: Any
    if isinstance(raw, np.ndarray) and raw.dtype.kind == "f" and raw.ndim <= 2:
        raw = raw[:, 0] if raw.ndim == 2 and raw.shape[1] == 1 else raw
        values = raw.tolist() if np.isfinite(raw).all() else plain(raw)
    elif hasattr(raw, "columns") and hasattr(raw, "iloc"):
        table: Any = raw
        values = records_of(table) if table.shape[1] != 1 else plain(table.iloc[:, 0].tolist())
    elif isinstance(raw, Mapping):
        columns = {str(name): outputs_by_row(column, rows) for name, column in raw.items()}
        values = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    else:
        values = plain(raw)
        if isinstance(raw, np.ndarray) and raw.ndim == 2 and raw.shape[1] == 1:
            values = [value for (value,) in values]
    if not isinstance(values, list) or len(values) != rows:
        count = f"{len(values)} values" if isinstance(values, list) else f"a {type(raw).__name__}"
        raise OutputError(f"the model returned {count} for {rows} rows.")
    return values


def positive_class(raw: Any) -> Any:
    """Of the output of ``predict_proba`` for two classes, the probability of class 1; of more classes, all of it."""
    raw = np.asarray(raw)
    return raw[:, 1] if raw.ndim == 2 and raw.shape[1] == 2 else raw


def records_of(frame: "pd.DataFrame") -> list[dict[str, Any]]:
    """The rows of a dataframe as JSON can carry them: missing values are None, timestamps ISO 8601, numbers exact."""
    names = [str(name) for name in frame.columns]
    columns = [[plain(value) for value in frame.iloc[:, number].tolist()] for number in range(len(names))]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def plain(value: Any) -> Any:
    """A value in the types of JSON: not finite is None, bytes are base64, times ISO 8601.

    Raises:
        OutputError: the value is of another type.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise OutputError(f"a dictionary has keys that are not text, such as {next(iter(value))!r}.")
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, bytes | bytearray):
        return base64.b64encode(value).decode()
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else str(value)
    if hasattr(value, "detach"):  # a tensor of PyTorch
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray) and value.dtype.kind in "mM":
        return [plain(item) for item in value] if value.ndim else plain(value[()])
    if isinstance(value, np.ndarray | np.generic) or hasattr(value, "to_list"):
        return plain(value.tolist())
    if type(value).__name__ in ("NaTType", "NAType"):  # of pandas, which need not be there
        return None
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise OutputError(f"a value is a {type(value).__name__}, which JSON has no form of.")
