"""Models of libraries with a format of their own go through every door, and none of them unpickles anything.

`make formats` installs the libraries, which the locked environment leaves out, and runs this file.
"""

import asyncio
import json
import os
import pickle
import shutil
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow.artifacts import download_artifacts

from dagster_mlops.bentoml import BentomlResource, bento_asset
from dagster_mlops.core.model_contents import foreign_names
from dagster_mlops.core.model_loading import FORMAT, load_stored
from dagster_mlops.errors import DeploymentError, ModelVersionError, TrainingRunError
from dagster_mlops.mlflow import MlflowResource, evaluation_asset, training_asset
from dagster_mlops.mlflow.models import find_version, load_version, log_model
from dagster_mlops.mlflow_serving import MlflowServingResource, scoring_package_asset
from dagster_mlops.mlflow_serving.scoring_app import scoring_app
from dagster_mlops.provenance import ModelVersion, Package
from dagster_mlops.serving.golden.answers import largest_difference
from dagster_mlops.tools import StoredModel
from tests.support import native_models

pytestmark = [
    pytest.mark.formats,
    pytest.mark.slow,
    pytest.mark.thorough,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore"),  # of ten libraries
]

DRAWN = np.random.default_rng(0)
ROWS = pd.DataFrame({"hour": DRAWN.uniform(0, 24, 200), "wind": DRAWN.normal(10, 3, 200)})
X, Y = ROWS.copy(), (ROWS["hour"] + ROWS["wind"] > 22).astype(int)
FORMATS = {
    "xgboost": "XGBoost",
    "xgboost_booster": "XGBoost",
    "xgboost_pipeline": "skops",
    "lightgbm": "skops",
    "lightgbm_booster": "LightGBM",
    "lightgbm_pipeline": "skops",
    "catboost": "CatBoost",
    "catboost_pipeline": "skops",
    "torch": "pt2",
    "keras": "Keras",
}
NETWORKS = ("torch", "keras")
# PyTorch stores the example inputs of a graph as its own pickle, which MLflow has looked into before.
OF_TENSORS = {"collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch.FloatStorage"}

_looked_up: list[set[str]] = []
sys.addaudithook(
    lambda event, arguments: (
        _looked_up[-1].add(".".join(map(str, arguments))) if _looked_up and event == "pickle.find_class" else None
    )
)


@contextmanager
def unpickles_nothing() -> Iterator[None]:
    _looked_up.append(set())
    try:
        yield
    finally:
        names = _looked_up.pop()
    assert names <= OF_TENSORS


class World:
    def __init__(self, root: Path) -> None:
        self.uri = f"sqlite:///{root}/mlflow.db"
        self.mlflow = MlflowResource(tracking_uri=self.uri, experiment="formats")
        self.serving = MlflowServingResource(home=str(root / "packages"), tracking_uri=self.uri)
        self.bentoml = BentomlResource(home=str(root / "bentoml"), tracking_uri=self.uri)
        (root / "dagster").mkdir()
        self.instance = dg.DagsterInstance.local_temp(str(root / "dagster"))
        self.trained: dict[str, Any] = {}

    def make(self, *assets: Any, selection: Any = None) -> dg.ExecuteInProcessResult:
        resources = {"mlflow": self.mlflow, "mlflow_serving": self.serving, "bentoml": self.bentoml}
        return dg.materialize(assets, resources=resources, instance=self.instance, selection=selection)

    def training(self, kind: str) -> Any:
        """The training of this kind, whose version has the alias champion."""
        if kind not in self.trained:
            self.trained[kind] = self._training(kind)
        return self.trained[kind]

    def _training(self, kind: str) -> Any:
        @training_asset(name=kind, registered_model_name=kind)
        def train() -> None:
            log_model(*native_models.FITS[kind](X, Y, 1))

        assert self.make(train).success
        self.mlflow.client().set_registered_model_alias(kind, "champion", "1")
        return train

    def champion(self, kind: str) -> ModelVersion:
        return find_version(self.mlflow, f"{kind}@champion")

    def promoted(self, kind: str) -> Any:
        @dg.asset(name=f"{kind}_champion")
        def champion() -> dg.MaterializeResult:
            return dg.MaterializeResult(metadata=self.champion(kind).to_metadata())

        return champion

    def package(self, factory: Any, kind: str) -> Any:
        champion = self.promoted(kind)
        packed = factory(promoted=champion, name=f"{kind}_package")
        events = self.make(champion, packed).asset_materializations_for_node(f"{kind}_package")
        return Package.from_metadata(events[0].metadata)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("formats"))


@pytest.fixture(params=FORMATS)
def kind(request, world) -> str:
    if not native_models.installed(request.param):
        pytest.skip(f"{request.param} is not installed")
    world.training(request.param)
    return request.param


@pytest.mark.parametrize("pyfunc", [False, True])
def test_a_version_is_loaded_by_its_alias_as_data(world, kind, pyfunc):
    with unpickles_nothing():
        loaded = load_version(world.mlflow, world.champion(kind), pyfunc=pyfunc)
    assert (str(loaded.format), loaded.format.runs_code) == (FORMATS[kind], "")
    client = world.mlflow.client()
    [logged] = client.search_logged_models(["1"], f"source_run_id='{loaded.record.run_id}'")
    assert logged.tags[FORMAT] == FORMATS[kind]
    if pyfunc:
        answers = np.asarray(loaded.model.predict(X))
        assert answers.reshape(len(X), -1).shape[1] == 1 and len(np.unique(answers)) > 1


def test_a_version_is_evaluated_on_frames(world, kind):
    @dg.asset
    def rows() -> pd.DataFrame:
        return X.assign(late=Y)

    evaluation = evaluation_asset(
        name=f"{kind}_evaluation", model=world.training(kind), rows=rows, label="late", compare_with=None, resamples=20
    )
    assert world.make(rows, world.training(kind), evaluation, selection=[rows, evaluation]).success


def test_a_scoring_package_answers_its_golden_rows(world, kind, monkeypatch):
    package = world.package(scoring_package_asset, kind)
    folder = Path(package.home) / package.tag.replace(":", "/")
    # Set by the server, and put back here.
    monkeypatch.setenv(
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION", os.environ.get("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    )
    if kind in NETWORKS:
        with pytest.raises(DeploymentError, match="takes an array, as networks"):
            world.serving.golden(package, X, 20)
        return
    with unpickles_nothing():
        golden = world.serving.golden(package, X, 20)
        app = scoring_app(folder)

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://server") as client:
            return await client.post("/invocations", json={"dataframe_records": golden.rows})

    response = asyncio.run(ask())
    assert response.status_code == 200, response.text
    differences = map(largest_difference, golden.expected, response.json()["predictions"])
    assert max(differences) < 1e-6


def test_a_bento_holds_the_model_as_it_was_judged(world, kind):
    if kind in NETWORKS:
        with pytest.raises(DeploymentError, match="takes an array, as networks"):
            world.package(bento_asset, kind)
        return
    package = world.package(bento_asset, kind)
    assert package.sha256 == world.champion(kind).sha256 or not world.champion(kind).sha256
    facts = list(Path(package.home).rglob("dagster_mlops.json"))
    environments = [json.loads(file.read_text())["environment"] for file in facts]
    strict = {} if FORMATS[kind] == "skops" else {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    assert strict in environments


def load(folder: Path, **options: Any) -> Any:
    version = ModelVersion(name="model", version="1", tracking_uri="sqlite://")
    return load_stored(lambda _: StoredModel.read(folder, version), **options).model


def stored(world: World, kind: str, folder: Path) -> Path:
    """A copy of the champion's files."""
    if not native_models.installed(kind):
        pytest.skip(f"{kind} is not installed")
    world.training(kind)
    with world.mlflow.activate():
        return shutil.copytree(download_artifacts(f"models:/{kind}/1"), folder / "model")


@pytest.mark.parametrize("pyfunc", [False, True])
def test_a_graph_whose_sizes_are_code_runs_none_of_it(world, tmp_path, pyfunc):
    """MLflow takes such a file for data: it looks for pickles only."""
    folder, ran = stored(world, "torch", tmp_path), tmp_path / "ran"
    load(folder, pyfunc=pyfunc)
    code = f"__import__('pathlib').Path({str(ran)!r}).touch()"
    file, written = folder / "data" / "model.pt2", tmp_path / "written.pt2"
    with zipfile.ZipFile(file) as before, zipfile.ZipFile(written, "w") as after:
        for member in before.infolist():
            content = before.read(member)
            if member.filename.endswith("models/model.json"):
                content = json.dumps(with_code(json.loads(content), code)).encode()
            after.writestr(member.filename, content)
    shutil.move(written, file)
    with pytest.raises(ModelVersionError, match=r"it names __import__.*If you trust what it names"):
        load(folder, pyfunc=pyfunc)
    assert not ran.exists()
    torch = pytest.importorskip("torch")
    with pytest.raises(Exception, match=""):
        torch.export.load(file)
    assert ran.exists(), "PyTorch runs it: what is refused above is no longer needed if this fails"


def with_code(value: Any, code: str) -> Any:
    if isinstance(value, dict):
        return {name: code if name == "expr_str" else with_code(inner, code) for name, inner in value.items()}
    return [with_code(inner, code) for inner in value] if isinstance(value, list) else value


def test_a_pickle_in_the_place_of_a_graph_is_refused(world, tmp_path):
    folder = stored(world, "torch", tmp_path)
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(2, 1), folder / "data" / "model.pth")
    with pytest.raises(ModelVersionError, match="stored as torch pickle"):
        load(folder)


class Hostile:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("kind", ["xgboost", "lightgbm_booster", "catboost", "torch", "keras", "xgboost_pipeline"])
@pytest.mark.parametrize("pyfunc", [False, True])
def test_a_pickle_under_the_name_of_a_models_file_is_not_unpickled(world, tmp_path, kind, pyfunc):
    folder, ran = stored(world, kind, tmp_path), tmp_path / "ran"
    [file] = [file for suffix in ("ubj", "lgb", "cb", "pt2", "keras", "skops") for file in folder.rglob(f"*.{suffix}")]
    file.write_bytes(pickle.dumps(Hostile(ran)))
    with pytest.raises(Exception, match=""):  # an error of each library, where it is the first to see it
        load(folder, pyfunc=pyfunc)
    assert not ran.exists()
    assert pickle.loads(file.read_bytes()) is None and ran.exists(), "it is hostile"


@pytest.mark.parametrize("kind", ["xgboost", "keras"])
def test_a_file_beside_the_model_is_not_loaded_in_its_place(world, tmp_path, kind):
    folder = stored(world, kind, tmp_path)
    described = yaml.safe_load((folder / "MLmodel").read_text())
    described["flavors"][kind]["data"] = "/srv/data"
    (folder / "MLmodel").write_text(yaml.safe_dump(described))
    with pytest.raises(ModelVersionError, match="elsewhere"):
        load(folder)


def test_networks_of_many_shapes_are_graphs_and_nothing_else(tmp_path):
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.reader = nn.Embedding(10, 8), nn.LSTM(8, 8, batch_first=True)
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, words: Any) -> Any:
            read, _ = self.reader(self.words(words))
            return torch.einsum("bij, bkj -> bik", self.layer(read), read)

    class Shapes(nn.Module):
        def forward(self, rows: Any) -> Any:
            count, width = rows.shape
            with torch.no_grad():
                best, place = torch.max(rows, 1)
            pairs = rows.reshape(count * width // 2, 2).sum(1)
            wide = nn.functional.interpolate(rows[:, None], scale_factor=1.5, mode="linear")
            return {"best": best, "place": place, "pairs": torch.div(pairs, 2, rounding_mode="floor"), "wide": wide}

    pictures = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    inputs = {
        Words(): torch.zeros(2, 5, dtype=torch.long),
        Shapes(): torch.zeros(4, 6),
        pictures: torch.zeros(2, 1, 8, 8),
    }
    for network, rows in inputs.items():
        shapes = [dict.fromkeys(range(rows.ndim), torch.export.Dim.AUTO)]
        torch.export.save(torch.export.export(network.eval(), (rows,), dynamic_shapes=shapes), tmp_path / "model.pt2")
        assert foreign_names(tmp_path / "model.pt2") == []


@pytest.fixture
def run(world):
    with world.mlflow.activate(), mlflow.start_run() as active:
        yield active


def test_a_network_is_logged_with_arrays(run):
    pytest.importorskip("torch")
    network, _ = native_models.torch(X, Y, 1)
    with pytest.raises(TrainingRunError, match=r"example` is a frame.* frame\.to_numpy\('float32'\)"):
        log_model(network, X)


def test_layers_and_estimators_of_ones_own_are_trusted_by_name(run, tmp_path):
    keras = pytest.importorskip("keras")

    @keras.saving.register_keras_serializable(package="shop")
    class Doubled(keras.layers.Layer):
        def call(self, rows: Any) -> Any:
            return rows * 2

    Doubled.__module__ = "shop.layers"
    rows = X.to_numpy("float32")
    network = keras.Sequential([keras.Input((2,)), Doubled(), keras.layers.Dense(1)])
    with pytest.raises(TrainingRunError, match=r"holds shop\.layers\.Doubled.*trust=\['shop\.layers\.Doubled'\]"):
        log_model(network, rows)
    info = log_model(network, rows, trust=["shop"])
    assert info is not None
    folder = Path(download_artifacts(info.model_uri))
    with pytest.raises(ModelVersionError, match=r"names shop\.layers\.Doubled"):
        load(folder)
    np.testing.assert_allclose(load(folder, trust=["shop"]).predict(rows), network.predict(rows), rtol=1e-5)


def test_a_lambda_of_keras_is_refused_when_it_is_logged(run):
    keras = pytest.importorskip("keras")
    network = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda rows: rows * 2)])
    with pytest.raises(TrainingRunError, match="Lambda"):
        log_model(network, X.to_numpy("float32"))


def test_an_estimator_of_ones_own_is_trusted_by_name(run):
    xgboost = pytest.importorskip("xgboost")

    class Careful(xgboost.XGBClassifier): ...

    model = Careful(n_estimators=2).fit(X, Y)
    with pytest.raises(TrainingRunError, match="Careful"):
        log_model(model, X)
