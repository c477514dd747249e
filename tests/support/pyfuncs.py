"""Models of one's own, in the ways that MLflow allows. MLflow warns when it is imported, so import this in tests."""

from typing import Any

import pandas as pd
from mlflow.pyfunc.model import PythonModel

_Base: Any = PythonModel  # whose own predict is typed to return nothing


class Fare(_Base):
    """State, parameters, and every type of a signature but numbers."""

    def __init__(self, base: float = 100.0) -> None:
        self.base = base

    def predict(self, context, model_input, params=None):
        factor = (params or {"factor": 1.0})["factor"]
        return [
            {
                "fare": (self.base + sum(row.legs) + row.place["x"] + row.extra.get("bag", 0.0)) * factor,
                "day": row.at.date(),
                "note": getattr(row, "note", "none asked"),
            }
            for row in model_input.itertuples()
        ]


class Wide(_Base):
    def predict(self, context, model_input, params=None):
        return pd.DataFrame({"low": model_input.wind - 1, "high": model_input.wind + 1})


class TwoForOne(_Base):
    def predict(self, context, model_input, params=None):
        return list(model_input.wind) * 2


class Categories(_Base):
    """As LightGBM with categories does: it needs a type that no signature has."""

    def predict(self, context, model_input, params=None):
        return model_input.carrier.cat.codes


class Echo(_Base):
    """Each row as it came, once more as an object and a list."""

    def predict(self, context, model_input, params=None):
        parts = [{"wind": row.wind, "list": [row.big, row.note]} for row in model_input.itertuples()]
        return model_input.assign(parts=parts)


class Features(_Base):
    """The features of each row."""

    def predict(self, context, model_input, params=None):
        return model_input.to_dict("records")
