"""The app that serves a model, called as a server would call it: limits, refusals, joined calls, what is logged."""

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import Model, ModelSignature, infer_signature
from mlflow.sklearn import save_model
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from sklearn.linear_model import LinearRegression

from dagster_mlops.serving.runtime import PredictionLog
from dagster_mlops.serving.runtime.app import PredictionApp
from dagster_mlops.serving.runtime.attempts import NUMBER, TOKEN, Attempts
from dagster_mlops.serving.runtime.limits import Limits
from dagster_mlops.serving.runtime.log.predictions import SHADOW
from dagster_mlops.serving.runtime.scorer import Scorer
from tests.support import known_warnings

pytestmark = [*known_warnings.MLFLOW, *known_warnings.MLFLOW_HINTS]

SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec("double", "x"), ColSpec("long", "n")]),
    params=ParamSchema([ParamSpec("scale", "double", 1.0)]),
)
EXAMPLES = [{"x": value, "n": 1} for value in (0.5, 1.5, 2.5)]


class Behaviour:
    """x + n, unless x asks for something else."""

    calls: list[int]
    gate: threading.Event

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        self.calls.append(len(model_input))
        if (model_input.x == -1).any():
            raise ValueError("a secret of a customer")
        if (model_input.x == -2).any():
            return [1.0] * (len(model_input) + 1)
        if (model_input.x == -3).any():
            self.gate.wait(5)
        return (model_input.x + model_input.n) * (params or {"scale": 1.0})["scale"]


@pytest.fixture
def behaviour():
    model = Behaviour()
    model.calls, model.gate = [], threading.Event()
    yield model
    model.gate.set()


class Wrapped:
    """The parts of MLflow's PyFuncModel that serving uses, around a model in memory."""

    def __init__(self, model: Behaviour) -> None:
        self.metadata = Model(signature=SIGNATURE)
        self.metadata.flavors = {"python_function": {}}
        self._model = model

    def predict(self, frame: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        return self._model.predict(frame, params)


def app_of(model: Any, log: PredictionLog | None = None, examples: Any = EXAMPLES, **limits: Any) -> PredictionApp:
    app = PredictionApp(Limits(**limits))
    mirrored: Any = {"mirrored_log": lambda: PredictionLog(Path(log.log_dir, SHADOW), deployment="d")} if log else {}
    app.serve(model, name="delay/1", deployment="d", log=log, probe="s3cret", examples=examples, **mirrored)
    return app


async def ask(
    app: PredictionApp,
    body: Any,
    *,
    path: str = "/predict",
    method: str = "POST",
    receive: Callable[[], Awaitable[dict[str, Any]]] | None = None,
    **headers: Any,
) -> tuple[int, dict[str, Any]]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {
        "type": "http",
        "path": path,
        "method": method,
        "headers": [(n.encode(), v.encode()) for n, v in sent.items()],
    }
    answers: list[dict[str, Any]] = []

    async def whole() -> dict[str, Any]:
        return {"type": "http.request", "body": content}

    async def send(message: dict[str, Any]) -> None:
        answers.append(message)

    await app(scope, receive or whole, send)
    return answers[0]["status"], json.loads(answers[1]["body"])


def rows(*values: float, n: int = 1) -> dict[str, Any]:
    return {"rows": [{"x": value, "n": n} for value in values]}


def test_predictions_are_answered_and_logged_row_by_row(behaviour, tmp_path):
    log = PredictionLog(tmp_path, deployment="d", model_name="delay", model_version="1")
    app = app_of(Wrapped(behaviour), log)

    async def run() -> None:
        trace: Any = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
        status, answer = await ask(app, rows(1.0, 2.0), x_request_id="r", **trace)
        assert status == 200
        assert answer == {
            "request_id": "r", "ids": ["r/0", "r/1"], "predictions": [2.0, 3.0], "model": "delay/1", "deployment": "d",
        }  # fmt: skip
        assert (await ask(app, {**rows(1.0), "params": {"scale": 3}}, x_request_id="p"))[1]["predictions"] == [6.0]
        assert (await ask(app, rows(5.0), x_probe="s3cret", x_request_id="golden"))[0] == 200
        assert (await ask(app, rows(6.0), x_mirrored="s3cret", x_request_id="copy"))[0] == 200
        assert (await ask(app, rows(7.0), x_mirrored="guess", x_request_id="own"))[0] == 200

    asyncio.run(run())
    logged = PredictionLog.read(tmp_path).set_index("request_id")
    assert PredictionLog.find(tmp_path, "r/1")["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"  # pyright: ignore[reportOptionalSubscript]
    assert PredictionLog.find(tmp_path, "p")["params"] == {"scale": 3.0}  # pyright: ignore[reportOptionalSubscript]
    assert PredictionLog.read(tmp_path / SHADOW)["request_id"].tolist() == ["copy"]
    assert set(logged.index) == {"r/0", "r/1", "p", "own"} and list(logged.loc[["r/0", "r/1"], "output"]) == [2.0, 3.0]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (rows(1.0), {"path": "/"}, 404),
        (rows(1.0), {"method": "GET"}, 405),
        (rows(1.0), {"content_type": "text/plain"}, 415),
        (rows(1.0), {"content_encoding": "gzip"}, 415),
        (rows(1.0), {"x_request_id": "a b"}, 400),
        (rows(1.0), {"content_length": "-5"}, 413),
        (rows(1.0), {"content_length": "99999999999"}, 413),
        ({"rows": [{"x": "1", "n": 1}]}, {}, 400),
        (rows(*[1.0] * 101), {}, 400),
        (b"x" * 20_001, {}, 413),
        (rows(-1.0), {}, 422),
        (rows(-2.0), {}, 500),
    ],
)
def test_what_cannot_be_answered_has_its_status_and_no_internals(behaviour, tmp_path, body, headers, status):
    log = PredictionLog(tmp_path)
    app = app_of(Wrapped(behaviour), log, rows=100, body_bytes=20_000)
    code, answer = asyncio.run(ask(app, body, **headers))
    assert code == status and set(answer) == {"error"} and "secret" not in answer["error"]
    assert len(PredictionLog.read(tmp_path)) == 0


@pytest.mark.parametrize("text", ["[1]", "{", '{"row": 1}', '{"rows": 0}', '{"timeout": "9"}', '{"rows": true}'])
def test_limits_that_make_no_sense_are_named(text):
    with pytest.raises(ValueError, match=r"DAGSTER_MLOPS_LIMITS: .* Its names are timeout, body_timeout"):
        Limits().changed_by(text)
    assert Limits(rows=5).changed_by('{"timeout": 0.5}') == Limits(rows=5, timeout=0.5)


def test_what_another_server_has_begun_is_not_scored_and_the_rest_is(behaviour, tmp_path):
    model: Any
    log = PredictionLog(tmp_path / "log", deployment="d")
    app, other = PredictionApp(Limits()), Attempts(tmp_path, "other")
    attempts, model = Attempts(tmp_path, "own"), Wrapped(behaviour)
    app.serve(model, name="delay/1", deployment="d", log=log, attempts=attempts)
    other.begin({TOKEN: b"begun", NUMBER: b"1"})

    def again(token: str) -> tuple[int, Any]:
        headers: Any = {"x-attempt-token": token, "x-envoy-attempt-count": "2", "x-request-id": token}
        return asyncio.run(ask(app, rows(1.0), **headers))

    assert again("begun") == (503, {"error": "the server that had this request has ended, and may have scored it"})
    assert again("unread")[0] == 200 and again("unread")[0] == 503
    assert list(PredictionLog.read(log.log_dir).request_id) == ["unread"]


def test_nothing_is_answered_before_a_model_is_there():
    assert asyncio.run(ask(PredictionApp(Limits()), rows(1.0)))[0] == 503


def test_rows_that_wait_are_scored_together_and_one_bad_request_fails_alone(behaviour, tmp_path):
    app = app_of(Wrapped(behaviour), PredictionLog(tmp_path))

    async def run() -> list[tuple[int, dict[str, Any]]]:
        slow = asyncio.create_task(ask(app, rows(-3.0)))
        while not behaviour.calls or behaviour.calls[-1] != 1 or len(behaviour.calls) < 5:
            await asyncio.sleep(0.01)
        others = [asyncio.create_task(ask(app, rows(float(i)))) for i in (1, 2, -1, 4)]
        await asyncio.sleep(0.05)
        behaviour.gate.set()
        return [await slow, *(await asyncio.gather(*others))]

    answers = asyncio.run(run())
    assert [status for status, _ in answers] == [200, 200, 200, 422, 200]
    assert [answer["predictions"] for status, answer in answers if status == 200] == [[-2.0], [2.0], [3.0], [5.0]]
    assert behaviour.calls[5:] == [4, 1, 1, 1, 1]  # together, then, because that failed, each alone
    assert len(PredictionLog.read(tmp_path)) == 4


@pytest.mark.parametrize(("rounding", "joins"), [(1e-14, True), (1e-6, False)])
def test_rows_are_joined_where_their_number_changes_no_more_than_the_rounding(rounding, joins):
    class Products(Behaviour):
        def predict(self, model_input: pd.DataFrame, params: Any = None) -> Any:
            return [
                {"late": float(x) * (1 + rounding * len(model_input)), "missing": float("nan")} for x in model_input.x
            ]

    model: Any = Wrapped(Products())
    assert Scorer(model, EXAMPLES).joins == joins


def test_rows_of_a_model_that_looks_at_all_of_them_are_never_joined(behaviour):
    class Ranks(Behaviour):
        def predict(self, model_input: pd.DataFrame, params: Any = None) -> Any:
            return model_input.x.rank()

    assert Scorer(Wrapped(behaviour), EXAMPLES).joins  # pyright: ignore[reportArgumentType]
    assert not Scorer(Wrapped(Ranks()), EXAMPLES).joins  # pyright: ignore[reportArgumentType]
    assert not Scorer(Wrapped(behaviour), EXAMPLES[:1]).joins  # pyright: ignore[reportArgumentType]


def test_a_request_that_took_too_long_is_neither_answered_nor_logged_later_and_others_go_elsewhere(behaviour, tmp_path):
    app = app_of(Wrapped(behaviour), PredictionLog(tmp_path), timeout=0.2)

    async def run() -> tuple[int, int, int]:
        running = asyncio.create_task(ask(app, rows(-3.0)))
        await asyncio.sleep(0.05)
        queued = asyncio.create_task(ask(app, rows(7.0)))
        assert app.is_ready()
        late = (await running)[0], (await queued)[0]
        assert not app.is_ready()
        behaviour.gate.set()
        answer = await ask(app, rows(1.0))
        assert app.is_ready()
        return (*late, answer[0])

    assert asyncio.run(run()) == (504, 504, 200)
    assert list(PredictionLog.read(tmp_path)["x"]) == [1.0]
    assert behaviour.calls[-1] == 1 and len(behaviour.calls) == 6  # what only waited was not scored at all


def test_clients_that_are_slow_or_many_are_refused_and_the_others_served(behaviour):
    app = app_of(Wrapped(behaviour), body_timeout=0.1, waiting=2)

    async def never() -> dict[str, Any]:
        await asyncio.sleep(30)
        return {}

    async def run() -> None:
        start = time.monotonic()
        half = [asyncio.create_task(ask(app, b"", receive=never)) for _ in range(300)]
        assert (await ask(app, rows(1.0)))[0] == 200
        assert {status for status, _ in await asyncio.gather(*half)} == {408} and time.monotonic() - start < 20
        many = [asyncio.create_task(ask(app, rows(-3.0))) for _ in range(3)]
        await asyncio.sleep(0.05)
        behaviour.gate.set()
        assert sorted(status for status, _ in await asyncio.gather(*many)) == [200, 200, 429]

    asyncio.run(run())


def test_large_bodies_are_limited_until_they_are_answered_and_small_ones_go_on(behaviour):
    app = app_of(Wrapped(behaviour), held_bytes=700_000)
    large = json.dumps(rows(-3.0)).encode() + b" " * 300_000

    async def run() -> None:
        first = [asyncio.create_task(ask(app, large)) for _ in range(2)]
        while len(behaviour.calls) < 5:
            await asyncio.sleep(0.01)
        assert (await ask(app, large))[0] == 429
        small = asyncio.create_task(ask(app, rows(1.0)))
        await asyncio.sleep(0.05)
        behaviour.gate.set()
        assert [status for status, _ in await asyncio.gather(*first, small)] == [200] * 3
        assert (await ask(app, large))[0] == 200

    asyncio.run(run())


def test_requests_without_predictions_are_counted_beside_the_log(behaviour, tmp_path):
    app, start = app_of(Wrapped(behaviour), PredictionLog(tmp_path)), datetime.now(UTC)

    async def run() -> None:
        for body in (rows(1.0), rows(-1.0), rows(-2.0), {"rows": [{"y": 1}]}):
            await ask(app, body)
        await ask(app, rows(-1.0), x_probe="s3cret")
        await asyncio.sleep(1.1)

    asyncio.run(run())
    [count] = PredictionLog.failures(tmp_path, start, datetime.now(UTC))
    assert (count.failed, count.refused) == (1, 2)
    assert PredictionLog.failures(tmp_path, start, count.time) == []


def test_a_full_disk_is_a_refusal(behaviour, tmp_path):
    class Full(PredictionLog):
        def write_all(self, requests: Any) -> None:
            raise OSError(28, "No space left on device")

    status, answer = asyncio.run(ask(app_of(Wrapped(behaviour), Full(tmp_path)), rows(1.0)))
    assert status == 503 and "cannot be logged" in answer["error"] and "space" not in answer["error"]


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_the_library_is_asked_itself_where_it_answers_as_mlflow_does(tmp_path):
    features = pd.DataFrame({"x": [0.5, 1.5, 2.5, 4.0], "n": [1, 2, 3, 5]})
    model = LinearRegression().fit(features, features.x * 2)
    signature = infer_signature(features, model.predict(features))
    save_model(model, str(tmp_path / "m"), signature=signature, serialization_format="cloudpickle", pip_requirements=[])
    pyfunc = mlflow.pyfunc.load_model(str(tmp_path / "m"))
    rows = features.to_dict("records")
    assert Scorer(pyfunc).way == "pyfunc"
    scorer = Scorer(pyfunc, rows)
    assert scorer.way == "array"
    values = scorer.features.checked([{"x": 0.25, "n": 2**60}, {"x": None, "n": 1}])
    assert scorer.score(values[:1]) == pyfunc.predict(scorer.features.frame(values[:1])).tolist()
    with pytest.raises(ValueError, match="NaN"):
        scorer.score(values)
    assert np.isfinite(scorer.score(scorer.features.checked(rows))).all()


def test_the_features_are_described_in_openapi(behaviour):
    status, document = asyncio.run(ask(app_of(Wrapped(behaviour)), b"", path="/openapi.json", method="GET"))
    row = document["components"]["schemas"]["Row"]["properties"]
    assert status == 200 and row["n"] == {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
    assert document["components"]["schemas"]["Request"]["additionalProperties"] is False
