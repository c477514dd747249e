"""A model behind FastAPI, as its documentation would have it: typed rows, the model itself, no log."""

import os
from typing import Any

import numpy as np
import pandas as pd
from fastapi import FastAPI
from mlflow.sklearn import load_model
from pydantic import BaseModel, create_model

model: Any = load_model(os.environ["RAW_MODEL"])
NAMES: Any = list(model.feature_names_in_)
NUMERIC = "carrier" not in NAMES
TYPES = {name: str if name == "carrier" else float for name in NAMES}
Row = create_model("Row", **{name: (kind, ...) for name, kind in TYPES.items()})  # pyright: ignore[reportCallIssue, reportArgumentType]


class Rows(BaseModel):
    rows: list[Row]  # pyright: ignore[reportInvalidTypeForm]


app = FastAPI()


@app.post("/predict")
def predict(request: Rows) -> dict[str, list[float]]:
    if NUMERIC:
        features = np.array([[getattr(row, name) for name in NAMES] for row in request.rows])
    else:
        features = pd.DataFrame([row.model_dump() for row in request.rows], columns=NAMES)
    return {"predictions": model.predict_proba(features)[:, 1].tolist()}
