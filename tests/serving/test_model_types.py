"""Each kind of model and signature is served right, or refused when it is packed, with the reason."""

import importlib
import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import Array, Map, Object, Property
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestRegressor
from sklearn.linear_model import LinearRegression
from sklearn.multioutput import MultiOutputRegressor

from dagster_mlops.serving.model_check import refusal_of_model
from dagster_mlops.serving.runtime.examples import examples_of
from dagster_mlops.serving.runtime.outputs import records_of
from dagster_mlops.serving.runtime.requests import RequestReader
from dagster_mlops.serving.runtime.scorer import Scorer
from tests.support import known_warnings

pytestmark = [
    *known_warnings.MLFLOW,
    *known_warnings.MLFLOW_HINTS,
    pytest.mark.filterwarnings("ignore:X does not have valid feature names"),
    pytest.mark.filterwarnings("ignore:.*type hint"),
]
RNG = np.random.default_rng(0)
NUMBERS: Any = pd.DataFrame(
    {"hour": RNG.integers(0, 24, 60), "wind": RNG.normal(10, 3, 60), "wet": RNG.random(60) > 0.5}
)
TARGET = NUMBERS.hour * 0.5 + NUMBERS.wind


def stored(folder: Path, model: Any, **options: Any) -> Path:
    place = folder / "model"
    if isinstance(model, str):
        model = getattr(importlib.import_module("tests.support.pyfuncs"), model)()
        mlflow.pyfunc.save_model(str(place), python_model=model, pip_requirements=[], **options)
    else:
        form = {"serialization_format": "cloudpickle"}
        importlib.import_module("mlflow.sklearn").save_model(model, str(place), pip_requirements=[], **form, **options)
    return place


def served(place: Path, body: dict[str, Any]) -> tuple[Scorer, list[Any]]:
    """Predictions for a body of JSON, by the code of a server."""
    model = mlflow.pyfunc.load_model(str(place))
    scorer = Scorer(model, examples_of(model, place))
    reader = RequestReader(scorer.features, model.metadata.get_params_schema(), most_rows=1000)
    request = reader.json(json.dumps(body).encode())
    return scorer, scorer.score(request.values, request.params)


@pytest.mark.parametrize(
    ("model", "way"),
    [
        (HistGradientBoostingClassifier(max_iter=5), "array"),
        (RandomForestRegressor(5), "array"),
        (MultiOutputRegressor(RandomForestRegressor(3)), "array"),
    ],
    ids=["classifier", "regressor", "several outputs"],
)
def test_models_of_scikit_learn_answer_as_themselves(tmp_path, model, way):
    target = TARGET > 20 if hasattr(model, "predict_proba") else TARGET
    target = np.column_stack([TARGET, -TARGET]) if isinstance(model, MultiOutputRegressor) else target
    model.fit(NUMBERS, target)
    signature = infer_signature(NUMBERS, model.predict(NUMBERS))
    place = stored(tmp_path, model, signature=signature, input_example=NUMBERS.head(10))
    assert refusal_of_model(place) == ""
    scorer, predictions = served(place, {"rows": records_of(NUMBERS)})
    assert scorer.way == way and scorer.joins
    assert predictions == model.predict(NUMBERS).tolist()


def test_a_model_of_statsmodels_answers_as_itself(tmp_path):
    statsmodels = pytest.importorskip("statsmodels.api")
    features: Any = NUMBERS[["hour", "wind"]].astype(float)
    model = statsmodels.OLS(TARGET, features).fit()
    place = tmp_path / "model"
    signature = infer_signature(features, model.predict(features))
    importlib.import_module("mlflow.statsmodels").save_model(
        model, str(place), signature=signature, input_example=features.head(5), pip_requirements=[]
    )
    assert refusal_of_model(place) == ""
    scorer, predictions = served(place, {"rows": records_of(features)})
    assert scorer.way == "pyfunc" and predictions == pytest.approx(TARGET.tolist())


FARES = ModelSignature(
    inputs=Schema(
        [
            ColSpec(Array(DataType.double), "legs"),
            ColSpec(Object([Property("x", DataType.double)]), "place"),
            ColSpec(Map(DataType.double), "extra"),
            ColSpec("datetime", "at"),
            ColSpec("string", "note", required=False),
        ]
    ),
    params=ParamSchema([ParamSpec("factor", "double", 1.0)]),
)


def test_a_pyfunc_with_state_parameters_nested_and_optional_columns_answers_as_itself(tmp_path):
    place = stored(tmp_path, "Fare", signature=FARES)
    row = {"legs": [1.5, 2], "place": {"x": 1}, "extra": {"bag": 30.0}, "at": "2026-03-01T23:30:00-02:00"}
    _, predictions = served(place, {"rows": [row]})
    assert predictions == [{"fare": 134.5, "day": "2026-03-02", "note": "none asked"}]
    _, predictions = served(place, {"rows": [row, {**row, "note": "late"}], "params": {"factor": 2}})
    assert [one["note"] for one in predictions] == [None, "late"] and predictions[0]["fare"] == 269.0


def test_a_table_of_several_columns_is_an_object_for_each_row(tmp_path):
    place = stored(tmp_path, "Wide", signature=infer_signature(NUMBERS), input_example=NUMBERS.head(3))
    assert refusal_of_model(place) == ""
    scorer, predictions = served(place, {"rows": records_of(NUMBERS.head(2))})
    assert predictions == records_of(pd.DataFrame({"low": NUMBERS.wind - 1, "high": NUMBERS.wind + 1}).head(2))
    assert scorer.way == "pyfunc" and scorer.joins


def test_what_cannot_be_served_is_refused_when_it_is_packed(tmp_path):
    carriers = pd.DataFrame({"carrier": ["AA", "UA"]})
    array = ModelSignature(Schema([TensorSpec(np.dtype("float32"), (-1, 4))]))
    cases: dict[str, tuple[Any, dict[str, Any]]] = {
        "no signature with named columns": (LinearRegression().fit(NUMBERS, TARGET), {}),
        "takes an array": ("Wide", {"signature": array}),
        "6 values for 3 rows": ("TwoForOne", {"signature": infer_signature(NUMBERS), "input_example": NUMBERS.head(3)}),
        "refuses its own input example": (
            "Categories", {"signature": infer_signature(carriers), "input_example": carriers},
        ),
    }  # fmt: skip
    for number, (reason, (model, options)) in enumerate(cases.items()):
        (tmp_path / str(number)).mkdir()
        assert reason in refusal_of_model(stored(tmp_path / str(number), model, **options))
