"""Requests that name entities: their features come from a lookup in time, or the answer says why not."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, Schema

from dagster_mlops.serving import PredictionLog
from dagster_mlops.serving.runtime.app import PredictionApp
from dagster_mlops.serving.runtime.limits import Limits
from dagster_mlops.serving.runtime.lookup import load_lookup
from tests.serving.test_app import ask
from tests.support import known_warnings

pytestmark = [*known_warnings.MLFLOW, *known_warnings.MLFLOW_HINTS]


class Doubled:
    """The parts of MLflow's PyFuncModel that serving uses."""

    def __init__(self) -> None:
        self.metadata = Model(signature=ModelSignature(Schema([ColSpec("double", "x"), ColSpec("boolean", "late")])))
        self.metadata.flavors = {"python_function": {}}

    def predict(self, frame: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        return 2 * frame.x


class Table:
    """Features of the entities 1 to 3; the store fails for 4 and hangs for 5."""

    def __init__(self) -> None:
        self.gate = threading.Event()

    def keys(self) -> dict[str, str]:
        return {"id": "long"}

    def features(self, entities: list[dict[str, Any]]) -> list[Any]:
        return [self._features(entity["id"]) for entity in entities]

    def _features(self, number: int) -> Any:
        if number == 4:
            raise OSError("postgres://me:hidden@db")
        if number == 5:
            self.gate.wait(20)
        return {"x": 0.5 * number, "late": number == 1, "more": "left out"} if number <= 3 else "no features in table"


@pytest.fixture
def table() -> Iterator[Table]:
    table = Table()
    yield table
    table.gate.set()


def served(table: Any, log: PredictionLog, **limits: Any) -> PredictionApp:
    app = PredictionApp(Limits(**limits))
    app.serve(Doubled(), name="m/1", deployment="d", log=log, lookup=table)  # pyright: ignore[reportArgumentType]
    return app


def test_entities_are_looked_up_and_logged_with_their_features(table, tmp_path):
    app = served(table, PredictionLog(tmp_path, rotate=False))
    body = {"entities": [{"id": 3}, {"id": 1}], "ids": ["three", "one"]}
    status, answer = asyncio.run(ask(app, body))
    assert status == 200 and answer["predictions"] == [3.0, 1.0]
    logged = PredictionLog.find(tmp_path, "one")
    assert logged and logged["inputs"] == {"id": 1, "x": 0.5, "late": True}


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({"entities": [{"id": 2}, {"id": 7}]}, 422, "entity 1 has no features in table"),
        ({"entities": [{"id": 4}]}, 503, "the feature store does not answer"),
        ({"entities": [{"id": 5}]}, 504, "the feature store did not answer within 0.2 s"),
        ({"entities": [{"id": "1"}]}, 400, "Expected `int`, got `str` - at `$.entities[0].id`"),
        ({"entities": [{"id": 1, "x": 2.0}]}, 400, "unknown field `x`"),
        ({"entities": [{"id": 1}], "ids": ["a", "b"]}, 400, "2 ids for 1 rows"),
        ({"entities": [{"id": 1}], "rows": [{"x": 1.0, "late": True}]}, 400, "either `rows` or `entities`"),
        ({"ids": ["a"]}, 400, "either `rows` or `entities`"),
    ],
)
def test_a_lookup_that_is_not_possible_is_refused_and_not_logged(table, tmp_path, body, status, reason):
    app = served(table, PredictionLog(tmp_path, rotate=False), timeout=0.2)
    answered, answer = asyncio.run(ask(app, body))
    assert answered == status and reason in answer["error"] and "hidden" not in answer["error"]
    assert PredictionLog.read(tmp_path).empty


def test_without_a_lookup_a_request_has_rows(tmp_path):
    app = served(None, PredictionLog(tmp_path, rotate=False))
    status, answer = asyncio.run(ask(app, {"entities": [{"id": 1}]}))
    assert status == 400 and "unknown field `entities`" in answer["error"]


def test_a_feature_that_does_not_fit_the_model_is_named(tmp_path):
    class Texts(Table):
        def _features(self, number: int) -> Any:
            return {"x": "text", "late": True}

    app = served(Texts(), PredictionLog(tmp_path, rotate=False))
    status, answer = asyncio.run(ask(app, {"entities": [{"id": 1}]}))
    assert status == 422 and "the features do not fit the model: Expected `float" in answer["error"]


def test_a_provider_that_is_not_a_lookup_is_not_called(tmp_path):
    for provider in ("os:system", "subprocess:Popen", "pathlib:Path.touch"):
        with pytest.raises((TypeError, AttributeError), match=r"not a class of lookups|has no attribute"):
            load_lookup({"provider": provider, "options": {"args": ["touch", str(tmp_path / "x")]}})
    assert not list(tmp_path.iterdir())
