"""Rows in, predictions out, for a service of your own: checked as the generic service does."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .outputs import outputs_by_row, positive_class
from .schema import features_of_model

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.pyfunc import PyFuncModel


def features_of(model: "PyFuncModel", rows: Sequence[Mapping[str, Any]]) -> "pd.DataFrame":
    """The rows as the model's signature wants them: its columns, its order, its types; other keys are left out.

    Raises:
        ValueError: a required feature is missing, or a value does not fit its type; the message names it.
    """
    features = features_of_model(model)
    return features.frame(features.checked(rows))


def outputs_of(model: "PyFuncModel", features: "pd.DataFrame") -> list[Any]:
    """One plain value per row: the pyfunc's own output, or the probability of class 1 of a ``predict_proba`` pyfunc.

    Raises:
        OutputError: the model returned more or fewer, or a value that JSON has no form of.
    """
    raw = model.predict(features)
    if model.metadata.flavors.get("python_function", {}).get("predict_fn") == "predict_proba":
        raw = positive_class(raw)
    return outputs_by_row(raw, len(features))
