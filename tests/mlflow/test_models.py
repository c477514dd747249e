"""A fitted model of any flavour is stored as data, quickly, and read back exactly as it was."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import mlflow
import mlflow.sklearn as sklearn_flavor
import numpy as np
import pandas as pd
import polars as pl
import pytest
import skops.io
import statsmodels.api as statsmodels
from mlflow.artifacts import download_artifacts
from mlflow.models.model import ModelInfo
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, QuantileTransformer, StandardScaler
from sklearn.svm import SVC

from dagster_mlops.core.model_formats import stored_format
from dagster_mlops.core.model_judgement import named_types
from dagster_mlops.core.model_loading import DIGEST, FORMAT, load_stored
from dagster_mlops.errors import TrainingRunError
from dagster_mlops.mlflow import MlflowResource
from dagster_mlops.mlflow.models.log import log_model as log_or_defer
from dagster_mlops.provenance import ModelVersion
from dagster_mlops.tools import StoredModel
from tests.support import known_warnings

pytestmark = [*known_warnings.MLFLOW, *known_warnings.MLFLOW_HINTS]

RNG = np.random.default_rng(0)
ROWS = 120
NUMBERS = pd.DataFrame({"a": RNG.normal(size=ROWS), "b": RNG.normal(size=ROWS)})
LATE = (NUMBERS.a + NUMBERS.b > 0).astype(int)
# The table of a real question: gaps, names, categories, counts, switches.
TABLE = NUMBERS.assign(
    carrier=[("UA", "DL", None)[row % 3] for row in range(ROWS)],
    origin=pd.Categorical(RNG.choice(["JFK", "EWR"], ROWS)),
    gust=RNG.choice([3.5, np.nan], ROWS),
    seats=RNG.integers(0, 300, ROWS),
    holiday=RNG.choice([True, False], ROWS),
)


class Clip(TransformerMixin, BaseEstimator):
    """A team's own transformer."""

    def fit(self, rows, target=None):
        self.columns_ = list(rows.columns)
        return self

    def transform(self, rows):
        return rows[self.columns_].clip(upper=1.0)


class Switch(ClassifierMixin, BaseEstimator):
    """A model of a switch that may be unknown."""

    def predict(self, rows):
        return rows["seats"].astype("boolean").fillna(False).astype(int).to_numpy()


@pytest.fixture(scope="module")
def tracking(tmp_path_factory, empty_database):
    file = shutil.copy(empty_database, tmp_path_factory.mktemp("mlflow"))
    resource = MlflowResource(tracking_uri=f"sqlite:///{file}", experiment="models")
    with resource.activate() as client:
        yield client


@pytest.fixture
def run(tracking):
    with mlflow.start_run() as active:
        yield active


def log_model(*args, **options) -> ModelInfo:
    info = log_or_defer(*args, **options)
    assert info is not None
    return info


def tags(tracking, info) -> dict[str, str]:
    return tracking.get_logged_model(info.model_id).tags


def form_of(info, trust=()):
    return stored_format(info.flavors, files=named_types(Path(download_artifacts(info.model_uri))), trust=trust)


def requirements(info) -> list[str]:
    return Path(download_artifacts(info.model_uri), "requirements.txt").read_text().split()


NUMERIC = [
    LogisticRegression(),
    RandomForestClassifier(5),
    GradientBoostingClassifier(n_estimators=5),
    HistGradientBoostingClassifier(max_iter=5),
    ExtraTreesClassifier(5),
    VotingClassifier([("line", LogisticRegression()), ("wood", RandomForestClassifier(3))]),
    StackingClassifier([("line", LogisticRegression()), ("wood", RandomForestClassifier(3))]),
    KNeighborsClassifier(algorithm="ball_tree"),
    SVC(),
    IsolationForest(n_estimators=5),
    CalibratedClassifierCV(RandomForestClassifier(3)),
    GaussianProcessClassifier(),
    MLPClassifier((4,), max_iter=1000, tol=0.1),
    GridSearchCV(RandomForestClassifier(2), {"max_depth": [1, 2]}),
    make_pipeline(
        make_column_transformer((QuantileTransformer(n_quantiles=20), ["a"]), remainder="passthrough"),
        FunctionTransformer(np.nan_to_num),
        LogisticRegression(),
    ),
]


@pytest.mark.parametrize("model", NUMERIC, ids=lambda model: type(model).__name__)
def test_common_scikit_learn_models_are_stored_as_data_without_a_word_about_types(tracking, run, model):
    info = log_model(model.fit(NUMBERS, LATE), NUMBERS)
    assert tags(tracking, info)[FORMAT] == "skops"
    assert form_of(info).runs_code == ""
    assert info.signature is not None and info.saved_input_example_info is not None
    said = mlflow.pyfunc.load_model(info.model_uri).predict(NUMBERS)
    np.testing.assert_array_equal(said, model.predict(NUMBERS))
    wanted = {"mlflow", "numpy", "pandas", "scikit-learn", "skops"}
    assert {requirement.partition("==")[0] for requirement in requirements(info)} - {"scipy"} == wanted


def test_tables_with_gaps_categories_and_names_go_through_the_signature(tracking, run):
    columns = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["carrier", "origin"]), remainder="passthrough"
    )
    model = make_pipeline(columns, HistGradientBoostingClassifier(max_iter=5)).fit(TABLE, LATE)
    info = log_model(model, TABLE, pyfunc_predict_fn="predict_proba", metadata={"kept": "native option"})
    assert [column.name for column in info.signature.inputs] == list(TABLE.columns)
    assert not info.signature.inputs.input_dict()["carrier"].required
    assert info.signature.inputs.input_dict()["seats"].required
    assert info.metadata == {"kept": "native option"}
    said = mlflow.pyfunc.load_model(info.model_uri).predict(TABLE.astype({"origin": object}))
    np.testing.assert_allclose(said, model.predict_proba(TABLE))


def test_whole_numbers_with_gaps_and_polars_frames_are_examples_too(run):
    columns = make_column_transformer((SimpleImputer(), ["seats", "gust"]), remainder="drop")
    rows = TABLE[["seats", "gust"]].assign(seats=TABLE["seats"].astype("Int64").mask(TABLE["seats"] > 150))
    model = make_pipeline(columns, LogisticRegression(max_iter=500)).fit(rows, LATE)
    for example in (rows, pl.from_pandas(rows)):
        info = log_model(model, example)
        assert str(info.signature.inputs) == "['seats': double (optional), 'gust': double (optional)]"
        said = mlflow.pyfunc.load_model(info.model_uri).predict(rows.astype("float64"))
        np.testing.assert_array_equal(said, model.predict(rows))


@pytest.mark.parametrize(
    ("dtype", "gap", "kind"),
    [
        ("Int64", True, "double"),
        ("Int8", True, "double"),
        ("int64[pyarrow]", True, "double"),
        ("boolean", True, "boolean"),
        ("bool[pyarrow]", True, "boolean"),
        ("Float64", True, "double"),
        ("Int64", False, "long"),
    ],
)
def test_a_frame_of_pandas_own_types_is_answered_as_it_was_when_the_model_was_logged(
    tracking, run, caplog, dtype, gap, kind
):
    values = pd.Series([1, 0] * (len(LATE) // 2) + [1] * (len(LATE) % 2), dtype=dtype)
    rows = pd.DataFrame({"seats": values.where(values.index % 3 != 2) if gap else values, "gust": TABLE["gust"]})
    model = Switch() if kind == "boolean" else HistGradientBoostingClassifier(max_iter=5).fit(rows, LATE)
    info = log_model(model, rows, serialization="pickle")
    assert info.signature.inputs.input_dict()["seats"].type.name == kind
    version = ModelVersion(name="shop", version="1", run_id="r", tracking_uri="u")

    def fetch(folder: Path) -> StoredModel:
        place = download_artifacts(info.model_uri, dst_path=str(folder))
        return StoredModel.read(Path(place), version)

    said = load_stored(fetch, pyfunc=True, allow_pickle=True).model.predict(rows)
    np.testing.assert_array_equal(said, model.predict(rows))
    # Whoever loads it by MLflow alone is told.
    try:
        mlflow.pyfunc.load_model(info.model_uri).predict(rows)
    except mlflow.MlflowException:
        assert "MLflow refuses seats" in caplog.text and "'seats': 'float64'" in caplog.text
    else:
        assert "MLflow refuses" not in caplog.text or dtype == "Int8"


@pytest.mark.parametrize("predict", ["predict", "predict_proba"])
def test_models_with_several_outputs_are_described_as_such(run, predict):
    classes = RandomForestClassifier(3).fit(NUMBERS, np.c_[LATE, 1 - LATE])
    if predict == "predict":
        assert log_model(RandomForestRegressor(3).fit(NUMBERS, NUMBERS), NUMBERS).signature.outputs.is_tensor_spec()
    log_model(classes, NUMBERS, pyfunc_predict_fn=predict)
    texts = RandomForestClassifier(3).fit(NUMBERS.to_numpy(), np.where(LATE, "late", "on time"))
    assert log_model(texts, NUMBERS.to_numpy()).signature.inputs.is_tensor_spec()


def test_a_transformer_has_no_prediction_and_is_stored_all_the_same(tracking, run):
    info = log_model(StandardScaler().fit(NUMBERS), NUMBERS)
    loaded: Any = sklearn_flavor.load_model(info.model_uri)
    np.testing.assert_allclose(loaded.transform(NUMBERS), StandardScaler().fit_transform(NUMBERS))
    assert info.signature is not None and DIGEST in tags(tracking, info)


def test_ones_own_class_is_refused_before_anything_is_stored_and_the_error_says_what_it_takes(tracking, run):
    model = make_pipeline(Clip(), LogisticRegression()).fit(NUMBERS, LATE)
    own = f"{Clip.__module__}.Clip"
    with pytest.raises(TrainingRunError, match=rf"holds {own}.*trust=\['{own}'\].*serialization=\"pickle\""):
        log_model(model, NUMBERS)
    assert not tracking.search_logged_models([run.info.experiment_id], f"source_run_id='{run.info.run_id}'")
    info = log_model(model, NUMBERS, trust=[own])
    assert tags(tracking, info)[FORMAT] == "skops"
    # Who loads it may see it otherwise: the file asks for a class that is not on the list.
    assert own in form_of(info).runs_code
    assert form_of(info, trust=[Clip.__module__]).runs_code == ""
    assert tags(tracking, log_model(model, NUMBERS, serialization="pickle"))[FORMAT] == "cloudpickle"
    assert tags(tracking, log_model(model, NUMBERS, serialization_format="cloudpickle"))[FORMAT] == "cloudpickle"


@pytest.mark.parametrize("function", [np.load, os.system, eval])
def test_functions_that_do_more_than_compute_are_refused_although_their_package_is_trusted(run, function):
    with pytest.raises(TrainingRunError, match="may be more than data"):
        log_model(make_pipeline(FunctionTransformer(function), LogisticRegression()), NUMBERS)


def test_a_lambda_is_told_to_get_a_name(run):
    with pytest.raises(TrainingRunError, match="in a module that can be imported"):
        log_model(FunctionTransformer(lambda rows: rows).fit(NUMBERS), NUMBERS)


def test_flavours_that_know_nothing_but_pickles_need_a_word(tracking, run):
    from mlflow.pyfunc.model import PythonModel  # which warns when it is imported

    class Double(PythonModel):
        def predict(self, context, model_input: pd.DataFrame, params=None) -> Any:
            return model_input["a"] * 2

    ols = statsmodels.OLS(NUMBERS.a, NUMBERS[["b"]]).fit()
    for model in (ols, Double()):
        with pytest.raises(TrainingRunError, match='serialization="pickle"'):
            log_model(model, NUMBERS)
    info = log_model(ols, NUMBERS[["b"]], serialization="pickle")
    assert tags(tracking, info)[FORMAT] == "pickle" and form_of(info).runs_code
    assert any(requirement.startswith("statsmodels==") for requirement in requirements(info))
    info = log_model(Double(), NUMBERS[["a"]], serialization="pickle", name="double")
    assert mlflow.pyfunc.load_model(info.model_uri).predict(NUMBERS[["a"]]).iloc[3] == NUMBERS.a[3] * 2


@pytest.mark.parametrize(
    ("model", "example", "says"),
    [
        ("a text", 1, "no flavour of MLflow is known for builtins.str"),
        (LogisticRegression().fit(NUMBERS, LATE), LATE, "`example` is a Series"),
    ],
)
def test_what_cannot_be_logged_is_told_so(run, model, example, says):
    with pytest.raises(TrainingRunError, match=says):
        log_model(model, example)


class Reader(TransformerMixin, BaseEstimator):
    """Answers by the type of its columns, which MLflow does not keep."""

    def fit(self, rows, target=None):
        self.fitted_ = True
        return self

    def transform(self, rows):
        return np.array([[float(rows["origin"].dtype == "category")]] * len(rows))


def test_a_model_that_answers_differently_once_stored_is_refused(tracking, run):
    model = make_pipeline(Reader(), LogisticRegression()).fit(TABLE, LATE)
    line = model.named_steps["logisticregression"]
    line.coef_, line.intercept_ = np.array([[10.0]]), np.array([-5.0])
    with pytest.raises(TrainingRunError, match="answers differently"):
        log_model(model, TABLE, trust=[f"{Reader.__module__}.Reader"])
    [logged] = tracking.search_logged_models([run.info.experiment_id], f"source_run_id='{run.info.run_id}'")
    assert str(logged.status) == "FAILED"


@pytest.mark.parametrize("damaged", [False, True])
def test_a_model_that_changes_on_its_way_to_the_store_is_refused_although_it_was_asked_before(
    tracking, run, monkeypatch, damaged
):
    """MLflow asks a model before it uploads it. That counts only for exactly the same files."""
    model, other = LogisticRegression().fit(NUMBERS, LATE), LogisticRegression().fit(NUMBERS, 1 - LATE)
    upload, load, loads = mlflow.MlflowClient.log_model_artifacts, mlflow.pyfunc.load_model, []

    def uploaded(client, model_id, folder):
        if damaged:
            skops.io.dump(other, Path(folder, "model.skops"))
        upload(client, model_id, folder)

    monkeypatch.setattr(mlflow.MlflowClient, "log_model_artifacts", uploaded)
    monkeypatch.setattr(mlflow.pyfunc, "load_model", lambda *a, **options: loads.append(a) or load(*a, **options))
    if not damaged:
        assert DIGEST in tags(tracking, log_model(model, NUMBERS)) and len(loads) == 1
        return
    with pytest.raises(TrainingRunError, match="answers differently"):
        log_model(model, NUMBERS)
    assert len(loads) == 2


def test_logging_takes_a_fraction_of_a_second(run):
    model = RandomForestClassifier(20).fit(NUMBERS, LATE)
    log_model(model, NUMBERS)  # what has to be imported is imported
    started = time.perf_counter()
    log_model(model, NUMBERS)
    # MLflow alone needs 11 s to find out the requirements, in a process of its own.
    assert time.perf_counter() - started < 3


@pytest.mark.formats
def test_a_network_is_exported_as_it_predicts_not_as_it_trains(tracking, run):
    torch = pytest.importorskip("torch")
    network = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    rows = NUMBERS.to_numpy("float32")
    info = log_model(network, rows[:1])
    assert tags(tracking, info)[FORMAT] == "pt2" and network.training
    said = mlflow.pyfunc.load_model(info.model_uri).predict(rows)
    np.testing.assert_allclose(said, network.eval()(torch.tensor(rows)).detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.formats
def test_a_network_is_afterwards_as_it_was_part_by_part(tracking, run):
    torch = pytest.importorskip("torch")
    network = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1))
    network[1].eval()  # frozen, as one does with what was trained before
    log_model(network, NUMBERS.to_numpy("float32"))
    assert [module.training for module in network] == [True, False, True] and network.training


@pytest.mark.formats
def test_boosters_keep_their_own_format(tracking, run):
    lightgbm = pytest.importorskip("lightgbm")
    xgboost = pytest.importorskip("xgboost")
    catboost = pytest.importorskip("catboost")
    models = {
        "skops": lightgbm.LGBMClassifier(n_estimators=3, verbose=-1).fit(NUMBERS, LATE),
        "LightGBM": lightgbm.train({"verbose": -1}, lightgbm.Dataset(NUMBERS, LATE), 3),
        "XGBoost": xgboost.XGBClassifier(n_estimators=3).fit(NUMBERS, LATE),
        "XGBoost ": xgboost.train({}, xgboost.DMatrix(NUMBERS, LATE), 3),
        "CatBoost": catboost.CatBoostRegressor(iterations=3, verbose=0, allow_writing_files=False).fit(NUMBERS, LATE),
    }
    for kind, model in models.items():
        info = log_model(model, NUMBERS)
        assert tags(tracking, info)[FORMAT] == kind.strip() and not form_of(info).runs_code
        assert info.signature.outputs is not None


SKOPS = {"serialization_format": "skops", "pickled_model": "model.skops"}
FILES = {"model.skops": ["numpy.dtype"]}
TORCH = {"loader_module": "mlflow.pytorch"}
SERVED = {"loader_module": "mlflow.sklearn", "model_path": "model.skops"}


@pytest.mark.parametrize(
    ("flavors", "files"),
    [
        ({"sklearn": SKOPS, "python_function": {"loader_module": "mlflow.pyfunc.model", "python_model": "m.pkl"}}, ()),
        ({"sklearn": SKOPS, "python_function": {**SERVED, "data": "more/model.pkl"}}, ()),
        ({"sklearn": SKOPS, "python_function": {**SERVED, "data": "more"}}, ("more/MLmodel",)),
        ({"sklearn": SKOPS, "python_function": {**SERVED, "data": "other.bin"}}, ("other.bin",)),
        ({"sklearn": SKOPS, "python_function": {**SERVED, "data": ".."}}, ()),
        (
            {"pytorch": {"model_data": "data"}, "python_function": {**TORCH, "data": "more"}},
            ("data/model.pt2", "more/model.pth"),
        ),
        ({"xgboost": {"data": "/srv/model.ubj"}, "python_function": {"loader_module": "mlflow.xgboost"}}, ()),
        ({"sklearn": SKOPS, "statsmodels": {"data": "model.statsmodels"}}, ()),
        ({"sklearn": SKOPS, "python_function": {"model_path": "model.skops"}}, ()),
        ({"pytorch": {"model_data": "data"}}, ("data/model.pt2", "data/model.pth")),
        ({"pytorch": {"model_data": "other"}}, ("data/model.pt2",)),
        ({"keras": {"data": "data", "save_exported_model": True}}, ()),
        ({"lightgbm": {"model_class": "shop.Model", "data": "model.pkl"}}, ()),
        ({"lightgbm": {**SKOPS, "data": "other.bin"}}, ("other.bin",)),
        ({"sklearn": {**SKOPS, "pickled_model": "model.pkl"}, "python_function": SERVED}, ("model.pkl",)),
        ({"sklearn": SKOPS, "python_function": {**SERVED, "model_path": "model.pkl"}}, ("model.pkl",)),
        ({"sklearn": {**SKOPS, "pickled_model": "../model.skops"}}, ()),
        ({"python_function": {"loader_module": "mlflow.pyfunc.model"}}, ()),
    ],
)
def test_what_is_loaded_decides_and_not_what_stands_beside_it(flavors, files):
    assert stored_format(flavors, files={**FILES, **dict.fromkeys(files, ())}).runs_code


@pytest.mark.parametrize(
    ("flavors", "name"),
    [
        ({"sklearn": SKOPS, "python_function": SERVED}, "skops"),
        ({"keras": {"data": "data"}, "python_function": {"loader_module": "mlflow.keras"}}, "Keras"),
        (
            {"pytorch": {"model_data": "data"}, "python_function": {"loader_module": "mlflow.pytorch", "data": "data"}},
            "pt2",
        ),
        (
            {
                "xgboost": {"data": "model.ubj", "model_class": "xgboost.core.Booster"},
                "python_function": {"loader_module": "mlflow.xgboost", "data": "model.ubj"},
            },
            "XGBoost",
        ),
    ],
)
def test_formats_that_hold_data_only_are_known_as_such(flavors, name):
    found = stored_format(flavors, files={**FILES, "data/model.pt2": (), "data/model.keras": ()})
    assert (found.name, found.runs_code) == (name, "")
