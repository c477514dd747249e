"""The same model in a plain BentoML service."""

import os
from typing import Any

import bentoml
import pandas as pd
from mlflow.sklearn import load_model


@bentoml.service(name="raw_delay", threads=4, logging={"access": {"enabled": False}})
class RawDelay:
    def __init__(self) -> None:
        self.model: Any = load_model(os.environ["RAW_MODEL"])

    @bentoml.api(route="/predict")
    def predict(self, rows: list[dict]) -> dict:
        features = pd.DataFrame(rows, columns=self.model.feature_names_in_)
        return {"predictions": self.model.predict_proba(features)[:, 1].tolist()}
