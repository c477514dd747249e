"""The same model behind LitServe."""

import os
import sys
from typing import Any

import litserve  # pyright: ignore[reportMissingImports]
import numpy as np
import pandas as pd
from mlflow.sklearn import load_model


class Delay(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model: Any = load_model(os.environ["RAW_MODEL"])
        self.names: Any = list(self.model.feature_names_in_)

    def decode_request(self, request: dict[str, Any]) -> Any:
        if "carrier" in self.names:
            return pd.DataFrame(request["rows"], columns=self.names)
        return np.array([[row[name] for name in self.names] for row in request["rows"]])

    def predict(self, x: Any) -> Any:
        return self.model.predict_proba(x)[:, 1]

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"predictions": output.tolist()}


if __name__ == "__main__":
    litserve.LitServer(Delay(), accelerator="cpu").run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False
    )
