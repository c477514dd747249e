"""Rows of a golden set may be a customer's: messages name them, and show their values on request only."""

import json
import traceback
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import httpx
import mlflow
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from dagster_mlops.errors import DagsterMlopsError, DeploymentError
from dagster_mlops.evaluation.predictions import predict
from dagster_mlops.serving.golden.golden_set import Golden, score_golden
from tests.support import known_warnings
from tests.support.http_servers import QuietHandler, QuietServer, serving

pytestmark = [*known_warnings.MLFLOW, *known_warnings.MLFLOW_HINTS]

ROWS = [{"name": f"Ann{i} Smith", "age": 40 + i} for i in range(7)]
RECORD = SimpleNamespace(state_dir="")
STATE = cast("Any", SimpleNamespace(route="/predict", rows_field="rows", probe="p", record=RECORD))


class Server(QuietHandler):
    status, alone = 200, 0.5

    def do_POST(self) -> None:
        rows = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["rows"]
        body: Any = (
            {"predictions": [0.5] * len(rows) if len(rows) > 1 else [self.alone]}
            if self.status == 200
            else {"detail": rows[0]}
        )
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())


def message(status: int, expected: Sequence[float] = (0.0, *[0.123456] * 6), alone: float = 0.5) -> str:
    handler = type("Handler", (Server,), {"status": status, "alone": alone})
    golden = Golden(rows=ROWS, expected=list(expected))
    with (
        serving(QuietServer(handler)) as server,
        httpx.Client(base_url=server.url, trust_env=False) as client,
        pytest.raises(DeploymentError) as refusal,
    ):
        golden.compare(client, STATE, tolerance=0.01)
    return str(refusal.value)


def test_the_worst_rows_are_named_by_number_feature_and_difference():
    text = message(200)
    assert "row 0: difference 0.5" in text and text.count("  row ") == 5 and "Features: name, age." in text
    assert "Smith" not in text and "0.123456" not in text and "DAGSTER_MLOPS_SHOW_ROWS=1" in text


def test_a_prediction_that_depends_on_the_rows_beside_it_is_a_difference():
    assert "7 of 7 golden predictions differ" in message(200, [0.5] * 7, alone=0.75)


def test_a_refusal_does_not_quote_the_row_that_the_server_repeats():
    text = message(422)
    assert "answers golden rows with 422" in text and "Smith" not in text


def test_values_are_shown_on_request(monkeypatch):
    monkeypatch.setenv("DAGSTER_MLOPS_SHOW_ROWS", "1")
    assert "registry 0.0, served 0.5, features {'name': 'Ann0 Smith'" in message(200) and "Smith" in message(422)


@pytest.mark.parametrize("shown", [False, True])
def test_a_model_that_refuses_rows_does_not_quote_them(monkeypatch, tmp_path, shown):
    """MLflow prints the frame, pandas the value."""
    from mlflow.models import infer_signature  # their import warns
    from mlflow.sklearn import save_model

    if shown:
        monkeypatch.setenv("DAGSTER_MLOPS_SHOW_ROWS", "1")
    good = pd.DataFrame({"age": [1.0, 2.0]})
    signature = infer_signature(good, [0.0, 1.0])
    regression = LinearRegression().fit(good, [0.0, 1.0])
    save_model(regression, tmp_path / "model", signature=signature, pip_requirements=["scikit-learn"])
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    rows = pd.DataFrame({"age": ["Ann Smith", "52"]})
    for attempt in (lambda: score_golden(model, "delay/1", rows, 5), lambda: predict(model, rows, cast("Any", None))):
        with pytest.raises(DagsterMlopsError) as caught:
            attempt()
        told = "".join(traceback.format_exception(caught.value))
        assert ("Ann Smith" in told) is shown and "MlflowException" in told and (shown or "SHOW_ROWS=1" in told)
