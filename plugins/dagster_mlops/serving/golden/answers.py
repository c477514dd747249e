"""The answers that golden rows must get, made without the code that serves them, and how far an answer is from one.

A fault in the conversions of a server would cancel out if both sides shared them. So the registered model is asked
through MLflow's own pyfunc and schema, and Python's ``json`` writes its predictions.
"""

import base64
import json
import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, TypeGuard

from dagster_mlops.core.arrays import PyFuncModel, np, pd

_DATE = re.compile(r"\d{4}-\d\d-\d\d")


def expected_answers(model: PyFuncModel, frame: "pd.DataFrame") -> list[Any]:
    """The JSON of the model's prediction for each row, in the form that the generic service promises.

    Raises:
        ValueError: the model returns more or fewer predictions than rows.
        TypeError: a prediction has no form in JSON.
    """
    raw: Any = model.predict(frame)
    if model.metadata.flavors.get("python_function", {}).get("predict_fn") == "predict_proba":
        raw = np.asarray(raw)
        raw = raw[:, 1] if raw.ndim == 2 and raw.shape[1] == 2 else raw
    rows = _by_row(raw)
    if len(rows) != len(frame):
        raise ValueError(f"the model returned {len(rows)} predictions for {len(frame)} rows.")
    return json.loads(json.dumps(rows, default=_as_json))


def _by_row(raw: Any) -> list[Any]:
    if isinstance(raw, pd.DataFrame) and raw.shape[1] != 1:
        return raw.astype(object).to_dict("records")
    if isinstance(raw, Mapping):
        columns = [_by_row(column) for column in raw.values()]
        return [dict(zip(raw, row, strict=True)) for row in zip(*columns, strict=True)]
    if hasattr(raw, "detach"):  # a tensor of PyTorch
        raw = raw.detach().cpu()
    if len(getattr(raw, "shape", ())) == 2 and raw.shape[1] == 1 and not isinstance(raw, pd.DataFrame):
        return list(np.asarray(raw)[:, 0])
    return list(raw.iloc[:, 0] if isinstance(raw, pd.DataFrame) else raw)


def _as_json(value: Any) -> Any:
    """A value that Python's ``json`` does not write by itself, in types that it does."""
    if value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, bytes | bytearray):
        return base64.standard_b64encode(value).decode()
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else str(value)
    if isinstance(value, np.ndarray) and value.ndim:
        return list(value)
    if (isoformat := getattr(value, "isoformat", None)) is not None:
        return isoformat()
    if hasattr(value, "tolist"):  # numpy's scalars, tensors
        return value.tolist()
    raise TypeError(f"a prediction holds a {type(value).__name__}, which JSON has no form of.")


def largest_difference(expected: Any, served: Any) -> float:
    """The largest difference of numbers between two predictions, or lists of them; infinite if anything else differs.

    What is missing or not finite is served as null. Times may be written in different ways.

    >>> largest_difference([1, {"low": 0.5, "at": "2026-03-01"}], [1.0, {"low": 0.25, "at": "2026-03-01T00:00:00Z"}])
    0.25
    >>> largest_difference([math.nan, math.inf], [None, None]), largest_difference(1, True)
    (0.0, inf)
    """
    if isinstance(expected, list) and isinstance(served, list) and len(expected) == len(served):
        return max((largest_difference(a, b) for a, b in zip(expected, served, strict=True)), default=0.0)
    if isinstance(expected, dict) and isinstance(served, dict) and expected.keys() == served.keys():
        return max((largest_difference(value, served[name]) for name, value in expected.items()), default=0.0)
    if _is_null(expected) and _is_null(served) and (expected is None or served is None or str(expected) == str(served)):
        return 0.0
    if _is_number(expected) and _is_number(served):
        return float(abs(Fraction(expected) - Fraction(served)))  # exact, as large integers are not all floats
    if type(expected) is type(served) and (expected == served or _is_one_time(expected, served)):
        return 0.0
    return math.inf


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and not _is_null(value)


def _is_one_time(expected: Any, served: Any) -> bool:
    texts = (expected, served)
    if not all(isinstance(text, str) and _DATE.match(text) for text in texts):
        return False
    first, second = (pd.to_datetime(text, utc=True, errors="coerce", format="ISO8601") for text in texts)
    return first == second
