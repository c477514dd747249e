"""Predictions beside the labels that have arrived."""

from typing import Any

from dagster_mlops.core.arrays import np, pd
from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring.normalise import normalise
from dagster_mlops.monitoring.performance.metrics import Task

_EXACT = 2**53
_ROUNDING = 1e-6  # that much beyond 0 and 1 a probability may be, as sums of float32 are
_WORDS = {"True": 1.0, "False": 0.0, "true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0}


def with_labels(predictions: "pd.DataFrame", labels: "pd.DataFrame", key: str, target: str) -> "pd.DataFrame":
    """The predictions with their labels, the last of each key; without one where none has arrived.

    Keys are compared by value, whole numbers exactly, whatever their types on either side.

    Raises:
        MonitoringError: a column is not there, or keys are too large for the floats that they are.
    """
    for frame, whose, columns in ((predictions, "the checked asset", [key]), (labels, "labels", [key, target])):
        require_columns(frame, columns, whose)
    complete: Any = labels[[key, target]].dropna()
    by_key = pd.Series(complete[target].to_numpy(dtype=object), index=_keys(complete[key], key))
    by_key = by_key[~by_key.index.duplicated(keep="last")]
    return predictions.assign(**{target: _keys(predictions[key], key).map(by_key)})


def clean(
    frame: "pd.DataFrame", target: str, prediction: str, task: Task, *, whose: str, segment: str | None = None
) -> "pd.DataFrame":
    """The rows with a label and a prediction as numbers, in their order: labels of classes are 0 and 1.

    Raises:
        MonitoringError: a column is not there, or holds other values than the task needs.
    """
    require_columns(frame, [target, prediction, *([segment] if segment else [])], whose)
    normal = normalise(frame, [target, prediction])
    data: Any = normal.data.copy()
    if task == "classification" and normal.kinds[target] == "category":
        data[target] = data[target].map(_WORDS)
        if data[target].notna().sum() < normal.data[target].notna().sum():
            raise MonitoringError(f"{whose}: '{target}' must be true/false or 1/0; it holds other text.")
    for name in (target, prediction):
        if data[name].dtype == object or normal.kinds[name] == "date":
            raise MonitoringError(f"{whose}: '{name}' must be numbers; it is {normal.kinds[name]}.")
    if segment:
        data[segment] = frame[segment].astype(object).map(str, na_action="ignore").to_numpy()
    data = data.dropna(subset=[target, prediction]).reset_index(drop=True)
    if task == "classification":
        if not data[target].isin([0, 1]).all():
            hint = "Use task='regression' for numbers."
            raise MonitoringError(f"{whose}: '{target}' must be true/false or 1/0. {hint}")
        if not data[prediction].between(-_ROUNDING, 1 + _ROUNDING).all():
            probability = f"the probability of {target}=1, between 0 and 1"
            raise MonitoringError(f"{whose}: '{prediction}' must be {probability}.")
        data[prediction] = data[prediction].clip(0, 1)
        data[target] = data[target].astype(int)
    return data


def without_prediction(frame: "pd.DataFrame", target: str, prediction: str) -> int:
    """The rows with a label whose prediction is missing or not finite."""
    columns: Any = frame.loc[:, ~frame.columns.duplicated()]  # of two columns of one name
    numbers = np.asarray(pd.to_numeric(columns[prediction], errors="coerce"), float)
    return int((~np.isfinite(numbers) & columns[target].notna().to_numpy()).sum())


def require_columns(frame: "pd.DataFrame", columns: list[str], whose: str) -> None:
    """Refuse a frame that lacks a column.

    Raises:
        MonitoringError: a column is not there.
    """
    if absent := [name for name in columns if name not in frame.columns]:
        columns_there = ", ".join(map(str, frame.columns[:30]))
        raise MonitoringError(f"{whose} has no column {', '.join(map(repr, absent))}; it has {columns_there}.")


def _keys(values: Any, key: str) -> Any:
    """Keys as text: 7, 7.0 and "7" are one, 9007199254740993 and 9007199254740992 are two."""
    if pd.api.types.is_float_dtype(values.dtype):
        numbers = values.to_numpy(dtype=float, na_value=np.nan)
        if (abs(numbers[np.isfinite(numbers)]) > _EXACT).any():
            raise MonitoringError(
                f"'{key}' holds floats beyond 2^53, which do not tell such keys apart. Store it as whole numbers or as "
                "text."
            )
    return values.astype(object).map(_key, na_action="ignore")


def _key(value: Any) -> str:
    return str(int(value)) if isinstance(value, float | np.floating) and value == value // 1 else str(value)
