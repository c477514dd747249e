"""The service of the plain script: one model, one route, one JSON line per row."""

import json
import os
import time
from pathlib import Path

import bentoml
import pandas as pd

LOG = Path(os.environ.get("RAW_PREDICTION_LOG", "predictions.jsonl"))


@bentoml.service(name="raw_arrival_delay", threads=4, traffic={"timeout": 30}, logging={"access": {"enabled": False}})
class RawArrivalDelay:
    model_ref = bentoml.models.BentoModel("raw_arrival_delay:latest")

    def __init__(self) -> None:
        self.model = bentoml.mlflow.load_model(self.model_ref)
        inputs = self.model.metadata.get_input_schema().inputs
        self.numbers = [column.name for column in inputs if column.type.name == "double"]
        self.log = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    @bentoml.api(route="/predict")
    def predict(self, rows: list[dict], ids: list[str]) -> list[float]:
        frame = pd.DataFrame(rows)
        frame[self.numbers] = frame[self.numbers].astype("float64")
        answers = self.model.predict(frame)[:, 1].tolist()
        now = time.time()
        lines = [
            json.dumps({"request_id": i, "timestamp": now, "inputs": row, "output": answer})
            for i, row, answer in zip(ids, rows, answers, strict=True)
        ]
        os.write(self.log, ("\n".join(lines) + "\n").encode())
        return answers
